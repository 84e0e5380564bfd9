"""Answers of all slots of a pack to prompts, in one decoding loop over the one frozen base.

Notation: n entries of the batch that is decoded, each with one sequence at a time.

Invariants: the tokens are those of each trial alone, up to rounding. Every entry belongs to one slot, and entries are
in the order of the slots, so that a step multiplies each slot's tokens by its own adapter. A sequence that ends leaves
its entry to the next one of its slot. A step has static shapes and buffers and does not wait for the device; the host
looks after every few steps which sequences have ended. Nothing is drawn, and nothing of a slot is written.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.packed.attention import causal_attention
from trainer.packed.kv_cache import KeyValueCache
from trainer.packed.layout import build_prompt_layout
from trainer.packed.memory import MemoryProbe
from trainer.packed.model import Decoder
from trainer.packed.products import Linear
from trainer.packed.store import AdapterStore
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

_log = logging.getLogger(__name__)

Tensor = torch.Tensor
PASS_TOKENS = 16_384  # of the prompts that enter in one pass, padding included
# cuDNN makes a plan for each number of sequences and of positions, which takes longer than the attention.
GPU_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt of a slot.

    Args:
        slot: the slot's row of the adapter store.
        row: the prompt's number among those of its slot.
    """

    slot: int
    row: int
    prompt: Prompt


def answer_together(
    decoder: Decoder,
    store: AdapterStore,
    prompts: Mapping[int, Sequence[Prompt]],
    sampling: Sampling,
    memory_probe: MemoryProbe,
) -> dict[int, list[Answer]]:
    """Answer the prompts of these slots; see `Pack.answer`.

    Args:
        prompts: by the slot's row of the store.
    """
    for of_slot in prompts.values():
        check_prompts(of_slot, sampling, decoder.max_length, decoder.vocab_size)
    requests = [Request(slot, row, one) for slot in sorted(prompts) for row, one in enumerate(prompts[slot])]
    answers: dict[Request, Answer] = {}
    if requests:
        _answer_all(decoder, store, requests, sampling, memory_probe, answers)
    return {
        slot: [answers[Request(slot, row, one)] for row, one in enumerate(of_slot)] for slot, of_slot in prompts.items()
    }


def _answer_all(
    decoder: Decoder,
    store: AdapterStore,
    requests: Sequence[Request],
    sampling: Sampling,
    memory_probe: MemoryProbe,
    answers: dict[Request, Answer],
) -> None:
    """Add the answers to all requests; decode fewer sequences at a time if memory runs out."""
    device = decoder.like.device
    size = cells(max(len(one.prompt) for one in requests) + sampling.max_new_tokens, decoder.max_length)
    token = 2 * decoder.activation_bytes(store.rank, False) // decoder.layers  # of a pass, which keeps one layer
    each = KeyValueCache.entry_bytes(decoder, size) + token + decoder.vocab_size * (decoder.like.element_size() + 8)
    most = sequences_that_fit(PASS_TOKENS * token, each, memory_probe(device))
    while waiting := [one for one in requests if one not in answers]:
        slots = sorted({one.slot for one in waiting})[:most]
        chosen = [one for one in waiting if one.slot in slots]
        if not _try_batch(decoder, store, chosen, _entries(chosen, most), size, sampling, answers):
            most = max(1, min(most, len(chosen)) // 2)
            torch.cuda.empty_cache()
            _log.warning(
                "out of memory while %d slots answer; from now on at most %d answers at a time", len(slots), most
            )
    if device.type == "cuda":
        torch.cuda.empty_cache()  # training allocates other sizes


def _entries(requests: Sequence[Request], most: int) -> list[int]:
    """The slot of each entry of a batch of about `most` entries: each slot has its share, and at least one."""
    counts = Counter(one.slot for one in requests)
    shares = {slot: max(1, min(count, most * count // len(requests))) for slot, count in counts.items()}
    return [slot for slot in sorted(shares) for _ in range(shares[slot])]


def _try_batch(  # noqa: PLR0913, PLR0917
    decoder: Decoder,
    store: AdapterStore,
    requests: Sequence[Request],
    entries: Sequence[int],
    size: int,
    sampling: Sampling,
    answers: dict[Request, Answer],
) -> bool:
    """Add the answers to these requests; returns False if memory ran out before the last one, and less may fit."""
    try:
        with torch.no_grad():
            _Batch(decoder, store, requests, entries, size, sampling).run(answers)
    except torch.OutOfMemoryError:
        if len(entries) == 1:
            raise
        return False
    return True


class _Batch:
    """Sequences that are decoded together.

    Args:
        requests: what is to be answered.
        entries: the slot of each entry, in ascending order.
        size: positions of the longest sequence.
    """

    def __init__(
        self,
        decoder: Decoder,
        store: AdapterStore,
        requests: Sequence[Request],
        entries: Sequence[int],
        size: int,
        sampling: Sampling,
    ) -> None:
        self._decoder, self._store, self._limit = decoder, store, sampling.max_new_tokens
        self._device = decoder.like.device
        self._waiting: dict[int, deque[Request]] = {slot: deque() for slot in entries}
        for one in sorted(requests, key=lambda one: -len(one.prompt)):
            self._waiting[one.slot].append(one)
        self._cache = KeyValueCache(decoder, len(entries), size)
        self._answers = Answers(len(entries), sampling, self._device)
        self._used: set[int] = set()  # entries that have had a sequence
        self._generated: dict[int, int] = {}
        self._arrange(entries, {}, {})

    def run(self, answers: dict[Request, Answer]) -> None:
        """Decode until every request has its answer; adds each one as soon as it has ended."""
        while True:
            self._enter()
            if not self._held:
                return
            steps = min(steps_between_looks(self._device), self._limit - min(self._generated.values()))
            longest = max(len(self._held[entry].prompt) + tokens for entry, tokens in self._generated.items())
            for step in range(steps):
                self._step(longest + step)
            self._generated = {entry: tokens + steps for entry, tokens in self._generated.items()}
            for entry, answer in self._answers.ended(list(self._held)).items():
                answers[self._held.pop(entry)] = answer
                del self._generated[entry]
            if not any(self._waiting.values()) and len(self._held) <= len(self._entries) // 2:
                self._shrink()

    def _arrange(self, entries: Sequence[int], held: dict[int, Request], generated: dict[int, int]) -> None:
        """Have these entries from now on.

        Args:
            entries: the slot of each.
            held: the sequences in them.
            generated: how many tokens each of these has, as far as the host knows: it may have ended before.
        """
        self._entries, self._held, self._generated = list(entries), held, generated
        self._every = torch.arange(len(entries), device=self._device)
        one_token = [[(0,)] * entries.count(slot) for slot in range(entries[0], entries[-1] + 1)] if entries else []
        self._layout = build_prompt_layout(one_token, entries[0], self._device) if entries else None

    # --- prompts -----------------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Have the next prompts enter the free entries, as many in one pass as its tokens allow."""
        entering: list[tuple[int, Request]] = []
        longest = 0
        for entry, slot in enumerate(self._entries):
            if entry in self._held or not self._waiting[slot]:
                continue
            request = self._waiting[slot].popleft()
            longest = max(longest, len(request.prompt))
            if entering and (len(entering) + 1) * longest > PASS_TOKENS:
                self._prefill(entering)
                entering, longest = [], len(request.prompt)
            entering.append((entry, request))
        if entering:
            self._prefill(entering)

    def _prefill(self, entering: Sequence[tuple[int, Request]]) -> None:
        """Compute the prompts of these entries into the cache, and the first token of each answer."""
        decoder, cache, heads = self._decoder, self._cache, self._decoder.heads
        requests = [request for _, request in entering]
        first, last = requests[0].slot, requests[-1].slot
        prompts: list[list[Prompt]] = [[] for _ in range(first, last + 1)]
        for request in requests:
            prompts[request.slot - first].append(request.prompt)
        layout = build_prompt_layout(prompts, first, self._device)
        lengths = torch.tensor([len(request.prompt) for request in requests])
        at = torch.tensor([entry for entry, _ in entering])
        owners = torch.repeat_interleave(at, lengths).to(self._device)  # the entry of each token
        at = at.to(self._device)
        self._clear(entry for entry, _ in entering)

        def attention(number: int, x: Tensor, layer: Linear) -> Tensor:
            qkv = decoder.rotated_qkv(x, layer, layout)
            _, k, v = heads.split(qkv)
            cache.write(number, owners, layout.positions, k, v)
            return causal_attention(qkv, layout, heads)

        hidden = decoder.hidden(self._store, layout, {}, attention)
        rows = torch.tensor([request.row for request in requests])
        self._answers.begin(at, rows.to(self._device), lengths.to(self._device))
        self._answers.take(at, decoder.logits(hidden[layout.labelled]))
        self._held |= dict(entering)
        self._generated |= {entry: 1 for entry, _ in entering}

    def _clear(self, entries: Iterable[int]) -> None:
        """Clear those of these entries that have had another sequence."""
        entries = list(entries)
        if again := [entry for entry in entries if entry in self._used]:
            self._cache.clear(torch.tensor(again, device=self._device))
        self._used.update(entries)

    # --- one token ---------------------------------------------------------------------------------------------------

    def _step(self, longest: int) -> None:
        """Decode the next token of every entry; those whose sequence has ended repeat their last one.

        Args:
            longest: tokens of the longest sequence so far, at most.
        """
        decoder, cache, layout, heads = self._decoder, self._cache, self._layout, self._decoder.heads
        assert layout is not None
        count = len(self._entries)
        layout.tokens.copy_(self._answers.following[:count])
        layout.positions.copy_(self._answers.positions[:count])
        unseen = torch.arange(cells(longest, cache.size), device=self._device) > layout.positions[:, None]
        bias = decoder.like.new_zeros(unseen.shape).masked_fill_(unseen, -torch.inf)[:, None, None]

        def attention(number: int, x: Tensor, layer: Linear) -> Tensor:
            q, k, v = heads.split(decoder.rotated_qkv(x, layer, layout))
            cache.write(number, self._every, layout.positions, k, v)
            return cache.attend(number, q, bias)

        with sdpa_kernel(GPU_KERNELS, set_priority=True) if self._device.type == "cuda" else nullcontext():
            hidden = decoder.hidden(self._store, layout, {}, attention)
        self._answers.take(self._every, decoder.logits(hidden))

    def _shrink(self) -> None:
        """Give up the entries without a sequence, as no prompt waits."""
        kept = sorted(self._held)
        at = torch.tensor(kept, dtype=torch.int64, device=self._device)
        self._cache.keep(at)
        self._answers.keep(at)
        held = {index: self._held[entry] for index, entry in enumerate(kept)}
        generated = {index: self._generated[entry] for index, entry in enumerate(kept)}
        self._arrange([self._entries[entry] for entry in kept], held, generated)
