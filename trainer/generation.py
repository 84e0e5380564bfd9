"""Answers of a trial to prompts, alone on torchtune's modules; `trainer.packed.generation` answers for many trials.

Invariants: an answer depends on the trial's weights and on its own prompt, up to rounding on nothing else. Afterwards
the model is as it was before: its modes, gradients, attention and compiled code. Training therefore
continues bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.packed.memory import MemoryProbe, device_memory
from trainer.recipe import LoraRecipe
from trainer.sampling import (
    Answer,
    Answers,
    Prompt,
    Sampling,
    cells,
    check_prompts,
    sequences_that_fit,
    steps_between_looks,
)

__all__ = ["Answer", "Prompt", "Sampling", "answer_alone", "check_prompts"]

_log = logging.getLogger(__name__)

Tensor = torch.Tensor
CACHE = ("kv_cache", "cache_enabled")  # what torchtune's attention modules call their cache


def answer_alone(
    recipe: LoraRecipe, prompts: Sequence[Prompt], sampling: Sampling, memory_probe: MemoryProbe = device_memory
) -> list[Answer]:
    """Answer prompts by the trial's own model, whatever its layers are; the trial may be in a pack.

    Returns:
        the answer to each prompt, without the prompt and without the token that ended it.

    Raises:
        ValueError: a prompt cannot be answered; see `check_prompts`.
        torch.OutOfMemoryError: not even one sequence fits.
    """
    model: Any = recipe.model
    check_prompts(prompts, sampling, int(model.max_seq_len), int(model.tok_embeddings.weight.shape[0]))
    if not prompts:
        return []
    answers: dict[int, Answer] = {}
    waiting = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    size = len(prompts[waiting[-1]]) + sampling.max_new_tokens
    most = sequences_that_fit(0, _sequence_bytes(model, size), memory_probe(recipe.device))
    with _answering(model):
        while waiting:
            batch = {row: prompts[row] for row in waiting[:most]}
            if _try_batch(model, batch, sampling, recipe.device, answers):
                waiting = waiting[most:]
                continue
            most = len(batch) // 2
            torch.cuda.empty_cache()
            _log.warning("out of memory with %d answers at a time; from now on there are %d", len(batch), most)
    if recipe.device.type == "cuda":
        torch.cuda.empty_cache()  # training allocates other sizes
    return [answers[row] for row in range(len(prompts))]


def _sequence_bytes(model: Any, size: int) -> int:
    """An estimate of the bytes of a sequence of `size` tokens: its KV cache, activations of a layer, mask, logits."""
    vocab_size, width = int(model.tok_embeddings.weight.shape[0]), int(model.tok_embeddings.weight.element_size())
    heads = [(int(one.num_kv_heads), int(one.num_heads), int(one.head_dim)) for one in _attentions(model)]
    cached = 2 * sum(keys * features for keys, _, features in heads)
    repeated = 2 * max((queries * features for _, queries, features in heads), default=0)
    layer = 2 * sum(int(p.shape[0]) for p in model.layers[0].parameters() if p.dim() == 2)
    return width * size * (cached + repeated + layer + 2 * size) + 12 * vocab_size  # 2 · size: the causal mask


def _try_batch(
    model: Any, prompts: dict[int, Prompt], sampling: Sampling, device: torch.device, answers: dict[int, Answer]
) -> bool:
    """Answer the prompts of these rows; returns False if there is not enough memory, and less may fit."""
    try:
        answers.update(_answer_batch(model, prompts, sampling, device))
    except torch.OutOfMemoryError:
        if len(prompts) == 1:
            raise
        return False
    return True


def _answer_batch(
    model: Any, prompts: dict[int, Prompt], sampling: Sampling, device: torch.device
) -> dict[int, Answer]:
    rows = list(prompts)
    lengths = [len(prompt) for prompt in prompts.values()]
    longest, every = max(lengths), range(len(rows))
    size = longest + sampling.max_new_tokens
    tokens = nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts.values()], batch_first=True)
    tokens = nn.functional.pad(tokens, (0, sampling.max_new_tokens)).to(device)  # [n, size]
    at = torch.arange(len(rows), device=device)
    answers = Answers(len(rows), sampling, device)
    answers.begin(at, torch.tensor(rows, device=device), torch.tensor(lengths, device=device))
    place = _Place(torch.tensor(lengths, device=device) - 1, size)
    attentions = _attentions(model) if _can_cache(model, size) else []
    with _last_positions(model, place), _cached(attentions, place):
        answers.take(at, _prompt_logits(model, tokens[:, :longest], bool(attentions)))
        given, ended = 1, answers.ended(every)
        while len(ended) < len(rows):
            for _ in range(min(steps_between_looks(device), sampling.max_new_tokens - given)):
                place.last, place.used = answers.positions, cells(longest + given, size)
                if attentions:
                    answers.take(at, _step_logits(model, answers.following, place))
                else:
                    tokens[at, place.last] = answers.following
                    answers.take(at, _prompt_logits(model, tokens[:, : longest + given], False))
                given += 1
            ended = answers.ended(every)
    return {rows[index]: answer for index, answer in ended.items()}


@dataclass(slots=True)
class _Place:
    """Where the sequences of a batch are.

    Args:
        last: the position of each one's last token, shape [n].
        size: positions of a cache.
        used: how many of them attention sees; None: it sees the prompts, which go into an empty cache.
    """

    last: Tensor
    size: int
    used: int | None = None


class _Cache:
    """What torchtune's attention uses as its KV cache; each sequence writes at a position of its own."""

    def __init__(self, place: _Place) -> None:
        self._place = place
        self.k_cache, self.v_cache = torch.empty(0), torch.empty(0)

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the keys and values of new tokens, shape [n, heads, s, features]; returns those to attend to."""
        used = self._place.used
        if used is None:
            shape = k.shape[0], k.shape[1], self._place.size, k.shape[3]
            self.k_cache, self.v_cache = k.new_zeros(shape), v.new_zeros(shape)
            self.k_cache[:, :, : k.shape[2]], self.v_cache[:, :, : k.shape[2]] = k, v
            return k, v
        every, last = torch.arange(k.shape[0], device=k.device), self._place.last
        self.k_cache[every, :, last], self.v_cache[every, :, last] = k[:, :, 0], v[:, :, 0]
        return self.k_cache[:, :, :used], self.v_cache[:, :, :used]


def _prompt_logits(model: Any, tokens: Tensor, cached: bool) -> Tensor:
    """Logits behind the last token of each sequence, shape [n, V], from whole sequences, padded on the right."""
    if not cached:
        logits: Tensor = model(tokens)
        return logits[:, -1]
    length = tokens.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril_()
    positions = torch.arange(length, device=tokens.device).expand(tokens.shape)
    logits = model(tokens, mask=mask.expand(len(tokens), -1, -1), input_pos=positions)
    return logits[:, -1]


def _step_logits(model: Any, tokens: Tensor, place: _Place) -> Tensor:
    """Logits behind these tokens, shape [n, V], one of each sequence, with the KV cache of those before them."""
    mask = torch.arange(place.used or 0, device=tokens.device) <= place.last[:, None]
    logits: Tensor = model(tokens[:, None], mask=mask[:, None], input_pos=place.last[:, None])
    return logits[:, -1]


def _attentions(model: nn.Module) -> list[Any]:
    """The attention modules that can have a KV cache."""
    return [module for module in model.modules() if all(hasattr(module, name) for name in CACHE)]


def _can_cache(model: Any, size: int) -> bool:
    """Whether all layers have KV caches that serve sequences of this size.

    torchtune's sliding windows count from the first cell of a cache, and are wrong for a single later token.
    """
    attentions = _attentions(model)
    windows = [getattr(module, "sliding_window_size", None) for module in attentions]
    return len(attentions) == len(model.layers) and all(window is None or size <= window for window in windows)


@contextmanager
def _answering(model: Any) -> Iterator[None]:
    """Evaluation without gradients, compilation and chunks of logits; everything as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module, _ in modes)
    chunks = model.num_output_chunks
    model.eval()
    model.num_output_chunks = 0
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        model.num_output_chunks = chunks
        for module, mode in modes:
            module.training = mode


@contextmanager
def _last_positions(model: Any, place: _Place) -> Iterator[None]:
    """Compute logits behind the last token of each sequence only."""

    def only_last(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (hidden,) = inputs  # [n, s, D]
        if hidden.shape[1] == 1:
            return inputs
        return (hidden[torch.arange(len(hidden), device=hidden.device), place.last][:, None],)

    handle = model.norm.register_forward_pre_hook(only_last)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _cached(attentions: Sequence[Any], place: _Place) -> Iterator[None]:
    """Give attention modules our KV caches, past `nn.Module`: a compiled model must have its attributes again."""
    before = [(vars(one), {name: vars(one)[name] for name in CACHE if name in vars(one)}) for one in attentions]
    for attributes, _ in before:
        attributes.update(zip(CACHE, (_Cache(place), True), strict=True))
    try:
        yield
    finally:
        for attributes, earlier in before:
            for name in CACHE:
                if name in earlier:
                    attributes[name] = earlier[name]  # in its old place: compiled code looks at it
                else:
                    del attributes[name]
