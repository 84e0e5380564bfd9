"""Many trials on one frozen base, each at its own step.

A pack holds `LoraRecipe`s in slots. One forward and backward pass goes over a micro-batch of every slot at once; then
each slot whose accumulation is complete takes its own optimizer step, with its own clipping, rate and decay.

Invariants: the numbers of a trial in a pack are those of the trial alone, up to rounding. Each slot has its own data
position, generators, schedule, and row of the store, so that nothing that happens to one, its start, its end, a loss
that is not finite, a failure, changes another's numbers. A pass that fails leaves every gradient as it was. Where
memory runs out, passes go over fewer slots at a time from then on, and no trial ends for it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchtune.modules.peft import LoRALinear

from trainer.packed.layout import Layout, lay_out
from trainer.packed.memory import MARGIN, Memories, Memory, Need, device_memory
from trainer.packed.model import CHUNK, Decoder, Noise
from trainer.packed.refusal import refusal
from trainer.packed.slot import Batch, Fed, Passed, Slot
from trainer.packed.store import Store, bind
from trainer.packed.update import gradient_norms, take_steps
from trainer.randomness import Randomness
from trainer.recipe import LoraRecipe

_log = logging.getLogger(__name__)


class Numbers:
    """Numbers on their way from the device that trains, which goes on with what it was given after them."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values
        self._come: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._come = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._come.record()

    def read(self) -> list[float]:
        """Wait for them."""
        if self._come is not None:
            self._come.synchronize()
        found: list[float] = self._values.tolist()
        return found


class Pack:
    """Trials on one base.

    Args:
        budget: tokens, padding included, of the largest pass to try; None: all slots in one.
        memories: what memory a device has for it.
    """

    def __init__(self, budget: int | None = None, memories: Memories = device_memory) -> None:
        self.budget, self._memories = budget, memories
        self._longest = 0
        self._layouts: dict[tuple[int, ...], tuple[Sequence[Fed], Layout]] = {}
        self.slots: list[Slot] = []
        self._decoder: Decoder | None = None
        self._store: Store | None = None
        self._base: object = None

    def refuses(self, recipe: LoraRecipe) -> str | None:
        """Why this trial cannot join the others now; None where it can."""
        if reason := refusal(recipe):
            return reason
        if self._decoder is not None and self._identity(recipe) != self._base:
            return None if not self.slots else "the trials beside it have another base or other adapted layers"
        return None

    def put(self, recipe: LoraRecipe) -> Slot:
        """Take a trial in, where it stands. It must have been built last, so that the generators are its own."""
        random = Randomness()
        if self._base != self._identity(recipe):
            assert not self.slots, "`refuses` has not been asked"
            self._decoder, self._store = Decoder(recipe.model), None
            self._base = self._identity(recipe)
        rank = _first_lora(recipe.model).rank
        if self._store is None:
            self._store = Store(self.decoder.groups, 1, rank, self.decoder.like)
            self.decoder.warm_up(self._store)
        elif self._store.make_room(rank):
            for slot in self.slots:
                bind(slot.recipe.model, slot.recipe.optimizer, self._store, slot.row, copy=False)
        layer = _first_lora(recipe.model)
        slot = Slot(recipe, self._store.take(layer.alpha / layer.rank), random)
        bind(recipe.model, recipe.optimizer, self._store, slot.row, copy=True)
        self.decoder.share(recipe.model)
        recipe.join(slot.where, lambda batch: self._mean_loss(slot, batch))
        self.slots.append(slot)
        return slot

    def never_fits(self, rank: int, rows: int) -> str | None:
        """Why a trial of this rank and so many rows can never train here, with the figures; None where it may.

        What a row is long is taken from those seen so far, so that nothing is refused before any has been.
        """
        if self._store is None or (memory := self._memories(self.decoder.like.device)) is None:
            return None
        work = self._work(self._longest * rows, rank)
        row = self.store.row_bytes(rank)
        return Need(self.decoder.base_bytes, row, work, rows, self._longest).exceeds(memory)

    def short_of(self, rank: int, rows: int) -> tuple[int, Memory] | None:
        """Where a pass with one more trial of this rank and so many rows does not fit into what is free now: the bytes
        that it would take, and the memory."""
        if (memory := self._memories(self.decoder.like.device)) is None:
            return None
        tokens = self._longest * rows + sum(self._longest * int(slot.recipe.cfg.batch_size) for slot in self.slots)
        if self.budget is not None:
            tokens = min(tokens, max(self.budget, self._longest * rows))
        need = self.store.room_bytes(rank) + self._work(tokens, max(rank, self.store.rank))
        return None if need <= MARGIN * memory.free else (need, memory)

    def _work(self, tokens: int, rank: int) -> int:
        """Bytes that a pass over so many tokens keeps in a store of a rank, and its logits."""
        logits = min(CHUNK, tokens) * self.decoder.words * self.decoder.like.element_size()
        return tokens * self.decoder.activation_bytes(rank, any(slot.dropout for slot in self.slots)) + logits

    def remove(self, slot: Slot) -> None:
        """Let go of a trial; what it holds must have been saved before."""
        self.slots.remove(slot)
        slot.recipe.leave()
        slot.ahead = None  # what it drew, and what was laid out of it, would keep it, and views of the whole store
        self._layouts = {key: of for key, of in self._layouts.items() if all(one.slot is not slot for one in of[0])}
        moved = self.store.release(slot.row)
        for other in self.slots:
            if other.row == moved:
                other.row = slot.row
                bind(other.recipe.model, other.recipe.optimizer, self.store, other.row, copy=False)
        self.slots.sort(key=lambda one: one.row)

    def step(self) -> list[Passed]:
        """Train one micro-batch of every slot."""
        fed, passed = self._fed()
        sums: dict[Slot, torch.Tensor] = {}
        for group in self._rounds(fed):
            done, failed = self._attempt(group)
            sums.update(done)
            passed += failed
        trained = [one for one in fed if one.slot in sums]
        due = [one for one in trained if one.slot.recipe.advance(one.labels)]
        numbers = self._end_pass(trained, due, sums)
        rates = {one.slot: one.slot.recipe.reschedule() for one in due}
        for one in trained:  # while the GPU works
            if one.slot.recipe.position < one.slot.recipe.total:
                one.slot.fetch(self.decoder.max_length)
        self._lay_out_ahead()
        values = numbers.read() if numbers else []
        norms = dict(zip([one.slot for one in due], values[len(trained) :], strict=True))
        for one, value in zip(trained, values, strict=False):
            recipe = one.slot.recipe
            recipe.took(value if one.labels else math.nan)  # no label at all: torchtune's mean over none of them
            step = recipe.stepped(norms[one.slot], rates[one.slot]) if one.slot in norms else None
            passed.append(Passed(one.slot, recipe.progress(step)))
        return passed

    def _end_pass(self, trained: Sequence[Fed], due: Sequence[Fed], sums: dict[Slot, torch.Tensor]) -> Numbers | None:
        """Have the optimizer steps taken that are due; returns the losses of those trained, and the norms of those
        due. They are sent off before the steps, so that the host takes them in while these run."""
        if not trained:
            return None
        losses = torch.stack([sums[one.slot] for one in trained])
        if not due:
            return Numbers(losses)
        norms, divisors = gradient_norms(self.store, due)
        numbers = Numbers(torch.cat([losses, norms]))
        take_steps(self.store, due, divisors)
        return numbers

    @property
    def decoder(self) -> Decoder:
        assert self._decoder is not None, "the pack has held no trial yet"
        return self._decoder

    @property
    def store(self) -> Store:
        assert self._store is not None, "the pack has held no trial yet"
        return self._store

    def _identity(self, recipe: LoraRecipe) -> object:
        model: Any = recipe.model
        names = tuple(name for name, module in model.named_modules() if isinstance(module, LoRALinear))
        return id(model.tok_embeddings.weight), names, recipe.ignored

    def _fed(self) -> tuple[list[Fed], list[Passed]]:
        """What was drawn ahead, and is no more: the slots that can be trained, and those that cannot go on."""
        drawn = []
        for slot in self.slots:
            if slot.ahead is None:
                slot.fetch(self.decoder.max_length)
            drawn.append(slot.ahead)
            slot.ahead = None
        return [one for one in drawn if isinstance(one, Fed)], [one for one in drawn if isinstance(one, Passed)]

    def _rounds(self, fed: Sequence[Fed]) -> list[list[Fed]]:
        """Slots that are trained in one pass: neighbours in the store, as many as the budget allows."""
        rounds: list[list[Fed]] = []
        size = 0
        for one in fed:
            size += one.tokens
            apart = not rounds or rounds[-1][-1].slot.row + 1 != one.slot.row
            if apart or (self.budget is not None and size > self.budget):
                rounds.append([])
                size = one.tokens
            rounds[-1].append(one)
        return rounds

    def _attempt(self, group: Sequence[Fed]) -> tuple[dict[Slot, torch.Tensor], list[Passed]]:
        """One pass; where it fails, its halves, down to the slot that it fails for."""
        randoms = [one.slot.random.now for one in group]
        rows = slice(group[0].slot.row, group[-1].slot.row + 1)
        begun = any(one.slot.recipe.position % one.slot.recipe.accumulation for one in group)
        before: torch.Tensor | None = None
        untouched = begun  # there may be no memory for the copy itself
        try:
            before = self.store.grads[rows].clone() if begun else None
            untouched = False
            sums = self._pass(group)
            return {one.slot: value for one, value in zip(group, sums.unbind(), strict=True)}, []
        except Exception as error:
            failure: Exception = error
        if len(group) > 1 or isinstance(failure, torch.OutOfMemoryError):
            failure.__traceback__ = None  # its frames hold the tensors of the pass
        if not untouched:
            self.store.grads[rows].copy_(before) if before is not None else self.store.grads[rows].zero_()
        before = None
        for one, state in zip(group, randoms, strict=True):
            one.slot.random.rewind(state)
        memory = isinstance(failure, torch.OutOfMemoryError)
        if memory:
            torch.cuda.empty_cache()
        if len(group) == 1:
            return {}, [Passed(group[0].slot, None, failure)]
        if memory:
            self.budget = sum(one.tokens for one in group) // 2
            _log.warning(
                "out of memory with %d trials in one pass; from now on a pass has at most %d tokens",
                len(group),
                self.budget,
            )
        half = len(group) // 2
        done, failed = self._attempt(group[:half])
        more, others = self._attempt(group[half:])
        return done | more, failed + others

    def _pass(self, group: Sequence[Fed]) -> torch.Tensor:
        _, layout = self._layouts.get(_key(group)) or (group, self._group_layout(group))
        self._longest = max(self._longest, layout.longest)
        if layout.size == 0:
            return torch.zeros(len(group), device=self.decoder.like.device)
        return self.decoder.loss(self.store, layout, self._noise([one.slot for one in group], layout), backward=True)

    def _lay_out_ahead(self) -> None:
        """Bring the next pass's micro-batches onto the device, should its slots be the same."""
        fed = [slot.ahead for slot in self.slots if isinstance(slot.ahead, Fed)]
        self._layouts = {_key(group): (group, self._group_layout(group)) for group in self._rounds(fed)}

    def _group_layout(self, group: Sequence[Fed]) -> Layout:
        return self._layout([one.batch for one in group], group[0].slot)

    def _layout(self, batches: Sequence[Batch], first: Slot) -> Layout:
        return lay_out(batches, first.row, first.recipe.ignored, self.decoder.like.device)

    def _noise(self, slots: Sequence[Slot], layout: Layout) -> dict[int, Noise]:
        """Dropout masks, drawn as each trial alone would draw them: module after module, padding included."""
        if not any(slot.dropout for slot in slots):
            return {}
        like = self.decoder.like
        masks = [
            [torch.ones(layout.size, group.weight.shape[1], dtype=like.dtype, device=like.device) for _ in group.names]
            for group in self.decoder.groups
        ]
        for slot, row, (begin, end) in zip(slots, layout.rows, pairwise(layout.bounds), strict=True):
            if not slot.dropout:
                continue
            with slot.random.own():
                for group, of_group in zip(self.decoder.groups, masks, strict=True):
                    for mask in of_group:
                        ones = like.new_ones(*row.shape, group.weight.shape[1])
                        drawn = F.dropout(ones, slot.dropout).flatten(0, 1)
                        mask[begin:end] = drawn[layout.sources[begin:end]]
        return dict(enumerate(masks))

    def _mean_loss(self, slot: Slot, batch: Batch) -> torch.Tensor:
        layout = self._layout([batch], slot)
        try:
            sums = self.decoder.loss(self.store, layout, {}, backward=False)
            return sums[0] / layout.rows[0].labels
        except torch.OutOfMemoryError:
            if len(batch["tokens"]) == 1:
                raise
        torch.cuda.empty_cache()
        total, labels = torch.zeros((), dtype=torch.float64), 0
        for half in zip(*(value.tensor_split(2) for value in batch.values()), strict=True):
            part = dict(zip(batch, half, strict=True))
            if count := slot.recipe.label_tokens(part):
                total, labels = total + self._mean_loss(slot, part).double().cpu() * count, labels + count
        return total / labels


def _key(group: Sequence[Fed]) -> tuple[int, ...]:
    """Which micro-batches, and where their slots lie."""
    return group[0].slot.row, *(id(one) for one in group)


def _first_lora(model: nn.Module) -> LoRALinear:
    return next(module for module in model.modules() if isinstance(module, LoRALinear))
