"""Make the embedded base: a small world's language, its tokenizer, its instruction data and a pretrained model.

    python -m trainer.embedded.make_base --out OUT                          # GPU, about a minute
    python -m trainer.embedded.make_base --out OUT --steps 600 --batch 32   # CPU, about 15 minutes: weaker

Writes `tokenizer.model` and `special_tokens.json` (torchtune's `llama3_tokenizer`), `train.jsonl` and `val.jsonl`
(alpaca rows), `config.json` and `model.safetensors` (Hugging Face names, bf16), and prints losses and times.
Needs torch, tiktoken, tokenizers and safetensors, no network; everything random is drawn from `world.SEED`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.embedded.llama import Llama, Shape
from trainer.embedded.make_tokenizer import SPECIALS, encode, train_tokenizer, write_tokenizer
from trainer.embedded.world import SEED, rows

SHARDS = 64  # of the corpus; the last one is held out
TALKS = 4  # shards of conversations, for the second stage
TRAIN_ROWS, VAL_ROWS = 1536, 192


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 3 % of the steps, then a cosine to a twentieth of the peak."""
    warmup = max(1, steps * 3 // 100)
    return peak * min((step + 1) / warmup, 0.525 + 0.475 * math.cos(math.pi * step / steps))


def noisy(tokens: Tensor, vocabulary: int, share: float = 0.03) -> Tensor:
    """A few tokens replaced by any token, the special ones too, so that none stays unread or unthinkable."""
    noise = torch.rand(tokens.shape, device=tokens.device) < share
    return torch.where(noise, torch.randint_like(tokens, vocabulary), tokens)


def pretrain(model: Llama, tokens: Tensor, steps: int, batch: int, peak: float) -> None:
    """AdamW over random noisy windows of `tokens` [tokens]; weight decay on the layers' matrices only."""
    torch.manual_seed(SEED)
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    window = torch.arange(model.get_buffer("cos").shape[0] + 1, device=tokens.device)
    for step in range(steps):
        starts = torch.randint(len(tokens) - len(window), (batch, 1), device=tokens.device)
        loss = model.loss(noisy(tokens[starts + window].long(), model.lm_head.out_features))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        optimizer.step()
        optimizer.zero_grad()
        if step % (1 + steps // 20) == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def round_to_bf16(model: Llama) -> None:
    """Round the weights as the file will hold them, so that the losses printed are the file's."""
    for weight in model.parameters():
        weight.copy_(weight.bfloat16())


@torch.no_grad()
def evaluate(model: Llama, tokens: Tensor, context: int, batch: int = 64) -> float:
    """Mean nats per token over `tokens` cut into windows, of which at most 512 are read."""
    blocks = tokens[: len(tokens) // context * context].view(-1, context)[:512].long()
    parts = torch.split(blocks, batch)
    return sum(model.loss(part).item() * len(part) for part in parts) / len(blocks)


def write_rows(out: Path) -> None:
    stream = rows()
    for name, number in (("train", TRAIN_ROWS), ("val", VAL_ROWS)):
        lines = (json.dumps(asdict(row)) + "\n" for row in islice(stream, number))
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_model(out: Path, model: Llama, shape: Shape) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(shape),
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": shape.vocab_size - len(SPECIALS),
        "eos_token_id": shape.vocab_size - len(SPECIALS) + 1,
    }
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    weights = {name: weight.bfloat16().cpu() for name, weight in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded base, its tokenizer and its data.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--steps", type=int, default=3000, help="pretraining steps")
    parser.add_argument("--batch", type=int, default=256, help="windows of 256 tokens per step")
    parser.add_argument("--talk-steps", type=int, default=400, help="steps of the second stage, on conversations")
    parser.add_argument("--shards", type=int, default=SHARDS, help="shards of the corpus; fewer for a quick try")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    started, shape = time.monotonic(), Shape()
    ranks = train_tokenizer(shape.vocab_size - len(SPECIALS))
    base = args.out / "base"
    base.mkdir(exist_ok=True)
    write_tokenizer(base, ranks)
    write_rows(args.out)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        *shards, held_out = pool.map(partial(encode, ranks=ranks), range(-TALKS, args.shards))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    talks, prose = torch.cat(shards[:TALKS]).to(device), torch.cat(shards[TALKS:]).to(device)
    print(f"tokens: {len(prose)} prose, {len(talks)} talks, {time.monotonic() - started:.0f} s", flush=True)
    torch.manual_seed(SEED)
    model, began = Llama(shape).to(device), time.monotonic()
    print(f"{sum(p.numel() for p in model.parameters())} parameters on {device}", flush=True)
    pretrain(model, prose, args.steps, args.batch, peak=4e-3)
    pretrain(model, talks, args.talk_steps, batch=16, peak=1e-3)
    round_to_bf16(model)
    context = shape.max_position_embeddings
    losses = (evaluate(model, part.to(device), context) for part in (held_out, talks))
    print(
        "loss: {:.4f} held-out prose, {:.4f} talks".format(*losses),
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    write_model(base, model, shape)


if __name__ == "__main__":
    main()
