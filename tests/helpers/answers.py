"""Trials whose answers differ, prompts for them, and the answers that torchtune itself gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchtune.generation import generate
from torchtune.modules.common_utils import local_kv_cache
from torchtune.modules.peft import LoRALinear

from trainer.recipe import LoraRecipe
from trainer.sampling import Answer, Prompt

# Another stop token than any, so that nothing ends early.
NEVER = -1


def with_random_adapter(recipe: LoraRecipe, seed: int) -> LoraRecipe:
    """The trial with random B instead of zeros, so that its answers are its own."""
    generator = torch.Generator().manual_seed(seed)
    for module in recipe.model.modules():
        if isinstance(module, LoRALinear):
            weight = module.lora_b.weight
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return recipe


def random_prompts(seed: int, lengths: Sequence[int], vocab_size: int = 1024) -> list[Prompt]:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(vocab_size, (length,), generator=generator).tolist()) for length in lengths]


def torchtune_answer(model: Any, prompt: Prompt, tokens: int, stop: Sequence[int] = (), cached: bool = True) -> Answer:
    """The answer of torchtune's `generate`, greedily, with or without its KV cache; the model is left in evaluation."""
    model.eval()
    chunks, model.num_output_chunks = model.num_output_chunks, 0
    device = model.tok_embeddings.weight.device
    size = len(prompt) + tokens
    options: dict[str, Any] = {"max_generated_tokens": tokens, "pad_id": NEVER, "top_k": 1, "stop_tokens": list(stop)}
    ids = torch.tensor(prompt, device=device)
    if cached:
        with local_kv_cache(
            model, batch_size=1, device=device, dtype=model.tok_embeddings.weight.dtype, decoder_max_seq_len=size
        ):
            out, _ = generate(model, ids, **options)
    else:
        out, _ = generate(model, ids, **options)
    model.num_output_chunks = chunks
    answer = out[0, len(prompt) :].tolist()
    ends = [index for index, token in enumerate(answer) if token in stop]
    return tuple(answer[: ends[0]] if ends else answer)


def early_stops(answers: Sequence[Answer]) -> tuple[int, ...]:
    """Tokens that end every third of these answers, each at another place, and others by chance."""
    return tuple(sorted({answer[(5 * index + 2) % len(answer)] for index, answer in enumerate(answers[::3])}))
