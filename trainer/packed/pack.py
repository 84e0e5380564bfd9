"""Trains many trials on one frozen base, each at its own step.

A pack holds `LoraRecipe`s in slots. One forward and backward pass processes a micro-batch of every slot at once. Then
each slot whose accumulation is complete takes its own optimizer step, with its own clipping, learning rate and decay.

Invariants: the numbers of a trial in a pack are those of the trial alone, up to rounding. Each slot has its own data
position, generators, schedule and row of the adapter store. Its start, its end, a loss that is not finite and a failure
therefore change no other slot's numbers. A pass that fails leaves every gradient as it was. If memory runs out, later
passes process fewer slots at a time, and no trial ends for it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchtune.modules.peft import LoRALinear

from trainer.packed.dropout import dropout_masks
from trainer.packed.generation import answer_together
from trainer.packed.layout import Layout, build_layout
from trainer.packed.memory import MARGIN, Memory, MemoryProbe, Need, device_memory
from trainer.packed.model import CHUNK, Decoder
from trainer.packed.readback import Readback
from trainer.packed.refusal import unpackable_reason
from trainer.packed.slot import Batch, Slot, SlotBatch, SlotResult
from trainer.packed.store import AdapterStore, bind
from trainer.packed.undo import PassUndo
from trainer.packed.update import gradient_norms, take_steps
from trainer.randomness import Randomness
from trainer.recipe import LoraRecipe, Scored
from trainer.sampling import Answer, Prompt, Sampling

_log = logging.getLogger(__name__)


class Pack:
    """Trials on one base.

    Args:
        budget: tokens of the largest pass, padding included; None: all slots in one pass.
        memory_probe: the memory of a device.
    """

    def __init__(self, budget: int | None = None, memory_probe: MemoryProbe = device_memory) -> None:
        self.budget, self._memory_probe = budget, memory_probe
        self._longest_row = 0  # tokens of the longest row of all passes so far
        self._layouts: dict[tuple[int, ...], tuple[Sequence[SlotBatch], Layout]] = {}
        self.slots: list[Slot] = []
        self._decoder: Decoder | None = None
        self._store: AdapterStore | None = None
        self._base: object = None

    def refusal_reason(self, recipe: LoraRecipe) -> str | None:
        """Why this trial cannot join the others now, as half a sentence; None if it can."""
        if reason := unpackable_reason(recipe):
            return reason
        if self._decoder is not None and self._base_of(recipe) != self._base:
            return None if not self.slots else "the trials in the pack have another base or other adapted layers"
        return None

    def put(self, recipe: LoraRecipe) -> Slot:
        """Add a trial at its present state.

        No other trial may have been built since this one, so that the process's generators are its own.
        """
        random = Randomness()
        if self._base != self._base_of(recipe):
            assert not self.slots, "`refusal_reason` was not called"
            self._decoder, self._store = Decoder(recipe.model), None
            self._base = self._base_of(recipe)
        rank = _first_lora(recipe.model).rank
        if self._store is None:
            self._store = AdapterStore(self.decoder.groups, 1, rank, self.decoder.like)
            self.decoder.warm_up(self._store)
        elif self._store.grow(rank):
            for slot in self.slots:
                bind(slot.recipe.model, slot.recipe.optimizer, self._store, slot.row, copy=False)
        layer = _first_lora(recipe.model)
        slot = Slot(recipe, self._store.allocate(layer.alpha / layer.rank), random)
        bind(recipe.model, recipe.optimizer, self._store, slot.row, copy=True)
        self.decoder.share(recipe.model)
        recipe.join(slot.data_state, lambda batch, correct: self._score(slot, batch, correct))
        self.slots.append(slot)
        return slot

    def never_fits(self, rank: int, rows: int) -> str | None:
        """Why a trial can never train on this device, with the figures; None if it may.

        The length of a row is taken from the passes so far, so that nothing is refused before the first one.

        Args:
            rank: of its adapter.
            rows: of its micro-batches.
        """
        if self._store is None or (memory := self._memory_probe(self.decoder.like.device)) is None:
            return None
        activations = self._pass_bytes(self._longest_row * rows, rank)
        adapter = self.store.row_bytes(rank)
        return Need(self.decoder.base_bytes, adapter, activations, rows, self._longest_row).exceeds(memory)

    def memory_shortage(self, rank: int, rows: int) -> tuple[int, Memory] | None:
        """Whether a pass with one more trial of this rank and this many rows exceeds the free memory.

        Returns:
            the bytes that the pass would need, and the memory; None if it fits.
        """
        if (memory := self._memory_probe(self.decoder.like.device)) is None:
            return None
        others = sum(self._longest_row * int(slot.recipe.cfg.batch_size) for slot in self.slots)
        tokens = self._longest_row * rows + others
        if self.budget is not None:
            tokens = min(tokens, max(self.budget, self._longest_row * rows))
        need = self.store.growth_bytes(rank) + self._pass_bytes(tokens, max(rank, self.store.rank))
        return None if need <= MARGIN * memory.free else (need, memory)

    def remove(self, slot: Slot) -> None:
        """Remove a trial, whose state must have been saved before."""
        self.slots.remove(slot)
        slot.recipe.leave()
        slot.prefetched = None  # the batch and its layout would keep the slot alive, and views of the whole store
        self._layouts = {key: of for key, of in self._layouts.items() if all(one.slot is not slot for one in of[0])}
        moved = self.store.release(slot.row)
        for other in self.slots:
            if other.row == moved:
                other.row = slot.row
                bind(other.recipe.model, other.recipe.optimizer, self.store, other.row, copy=False)
        self.slots.sort(key=lambda one: one.row)

    def step(self) -> list[SlotResult]:
        """Train one micro-batch of every slot; returns one result for each."""
        batches, results = self._take_prefetched()
        losses: dict[Slot, torch.Tensor] = {}
        for group in self._pass_groups(batches):
            done, failed = self._train_group(group)
            losses.update(done)
            results += failed
        trained = [batch for batch in batches if batch.slot in losses]
        due = [batch for batch in trained if batch.slot.recipe.advance(batch.labels)]
        readback = self._optimizer_steps(trained, due, losses)
        rates = [batch.slot.recipe.step_schedule() for batch in due]
        self._prefetch([batch.slot for batch in trained])  # while the GPU computes
        numbers = readback.read() if readback else []
        steps = zip(numbers[len(trained) :], rates, strict=True)
        steps_of = dict(zip([batch.slot for batch in due], steps, strict=True))
        for batch, loss in zip(trained, numbers, strict=False):
            recipe = batch.slot.recipe
            recipe.add_loss(loss)
            step = recipe.finish_step(*steps_of[batch.slot]) if batch.slot in steps_of else None
            results.append(SlotResult(batch.slot, recipe.progress(step)))
        return results

    def answer(self, requests: Mapping[Slot, Sequence[Prompt]], sampling: Sampling) -> dict[Slot, list[Answer]]:
        """Answer prompts, each slot by its own adapter, all in one decoding loop; training continues bit for bit.

        Args:
            requests: the prompts of the slots that answer.

        Returns:
            the answers in the order of the prompts, without the prompt and without the token that ended it.

        Raises:
            ValueError: a prompt cannot be answered; see `trainer.generation.check_prompts`.
            torch.OutOfMemoryError: not even one sequence fits.
        """
        rows = {slot.row: prompts for slot, prompts in requests.items()}
        answers = answer_together(self.decoder, self.store, rows, sampling, self._memory_probe)
        return {slot: answers[slot.row] for slot in requests}

    @property
    def decoder(self) -> Decoder:
        assert self._decoder is not None, "the pack has held no trial yet"
        return self._decoder

    @property
    def store(self) -> AdapterStore:
        assert self._store is not None, "the pack has held no trial yet"
        return self._store

    def _base_of(self, recipe: LoraRecipe) -> object:
        """Equal for recipes whose frozen parameters are the same objects, and that adapt the same layers."""
        model: Any = recipe.model
        names = tuple(name for name, module in model.named_modules() if isinstance(module, LoRALinear))
        return id(model.tok_embeddings.weight), names, recipe.ignored

    def _pass_bytes(self, tokens: int, rank: int) -> int:
        """Bytes that a pass over this many tokens keeps, logits included, in a store of this rank."""
        logits = min(CHUNK, tokens) * self.decoder.vocab_size * self.decoder.like.element_size()
        return tokens * self.decoder.activation_bytes(rank, any(slot.dropout for slot in self.slots)) + logits

    # --- one pass ----------------------------------------------------------------------------------------------------

    def _take_prefetched(self) -> tuple[list[SlotBatch], list[SlotResult]]:
        """The micro-batches of the slots that can train, and the results of those that cannot; each is taken once."""
        taken = []
        for slot in self.slots:
            if slot.prefetched is None:
                slot.prefetch(self.decoder.max_length)
            taken.append(slot.prefetched)
            slot.prefetched = None
        batches = [one for one in taken if isinstance(one, SlotBatch)]
        return batches, [one for one in taken if isinstance(one, SlotResult)]

    def _pass_groups(self, batches: Sequence[SlotBatch]) -> list[list[SlotBatch]]:
        """The slots of each pass: neighbours in the store, as many as the budget allows."""
        groups: list[list[SlotBatch]] = []
        size = 0
        for batch in batches:
            size += batch.tokens
            apart = not groups or groups[-1][-1].slot.row + 1 != batch.slot.row
            if apart or (self.budget is not None and size > self.budget):
                groups.append([])
                size = batch.tokens
            groups[-1].append(batch)
        return groups

    def _train_group(self, group: Sequence[SlotBatch]) -> tuple[dict[Slot, torch.Tensor], list[SlotResult]]:
        """Run one pass. If it fails, run its halves, down to the slot that fails alone.

        Returns:
            nats summed over the labels of each slot that was trained, and the errors of the others.
        """
        losses, failure = self._try_pass(group)
        if failure is None:
            return losses, []
        if len(group) == 1:
            return {}, [SlotResult(group[0].slot, None, failure)]
        if isinstance(failure, torch.OutOfMemoryError):
            self._lower_budget(group)
        half = len(group) // 2
        done, failed = self._train_group(group[:half])
        more, others = self._train_group(group[half:])
        return done | more, failed + others

    def _try_pass(self, group: Sequence[SlotBatch]) -> tuple[dict[Slot, torch.Tensor], Exception | None]:
        """Run one pass. If it fails, gradients and generators are afterwards as they were before.

        Returns:
            nats summed over the labels of each slot, or no numbers and the error.
        """
        undo = None
        try:
            undo = PassUndo(group, self.store.grads[group[0].slot.row : group[-1].slot.row + 1])
            sums = self._pass(group)
            return dict(zip([batch.slot for batch in group], sums.unbind(), strict=True)), None
        except Exception as error:
            failure = error
        out_of_memory = isinstance(failure, torch.OutOfMemoryError)
        if out_of_memory or len(group) > 1:
            failure.__traceback__ = None  # its frames hold the tensors of the pass
        if undo is not None:
            undo.undo()
        if out_of_memory:
            torch.cuda.empty_cache()
        return {}, failure

    def _lower_budget(self, group: Sequence[SlotBatch]) -> None:
        """Let later passes hold at most half as many tokens as this group, whose pass ran out of memory."""
        self.budget = sum(batch.tokens for batch in group) // 2
        _log.warning(
            "out of memory with %d trials in one pass; from now on a pass has at most %d tokens",
            len(group),
            self.budget,
        )

    def _pass(self, group: Sequence[SlotBatch]) -> torch.Tensor:
        """One forward and backward pass; returns nats summed over each slot's labels, shape [k], fp32."""
        _, layout = self._layouts.get(_key(group)) or (group, self._group_layout(group))
        self._longest_row = max(self._longest_row, layout.longest)
        if layout.size == 0:
            return torch.zeros(len(group), device=self.decoder.like.device)
        masks = dropout_masks(self.decoder.groups, [batch.slot for batch in group], layout, self.decoder.like)
        return self.decoder.loss(self.store, layout, masks, backward=True)

    def _optimizer_steps(
        self, trained: Sequence[SlotBatch], due: Sequence[SlotBatch], losses: dict[Slot, torch.Tensor]
    ) -> Readback | None:
        """Take the optimizer steps that are due.

        Returns:
            the losses of the trained slots, followed by the gradient norms of those that are due. They are sent to the
            host before the steps, so that the host reads them while the device takes the steps.
        """
        if not trained:
            return None
        summed = torch.stack([losses[batch.slot] for batch in trained])
        if not due:
            return Readback(summed)
        norms, divisors = gradient_norms(self.store, due)
        readback = Readback(torch.cat([summed, norms]))
        take_steps(self.store, due, divisors)
        return readback

    def _prefetch(self, slots: Sequence[Slot]) -> None:
        """Draw the next micro-batches of slots that have any, and copy them to the device, as the next pass needs."""
        for slot in slots:
            if slot.recipe.position < slot.recipe.total:
                slot.prefetch(self.decoder.max_length)
        batches = [slot.prefetched for slot in self.slots if isinstance(slot.prefetched, SlotBatch)]
        self._layouts = {_key(group): (group, self._group_layout(group)) for group in self._pass_groups(batches)}

    def _group_layout(self, group: Sequence[SlotBatch]) -> Layout:
        return self._layout([batch.batch for batch in group], group[0].slot)

    def _layout(self, batches: Sequence[Batch], first: Slot) -> Layout:
        return build_layout(batches, first.row, first.recipe.ignored, self.decoder.like.device)

    def _score(self, slot: Slot, batch: Batch, correct: bool) -> Scored:
        """Mean nats per label token of a validation batch, and its correct labels; in halves if memory runs out."""
        layout = self._layout([batch], slot)
        try:
            if correct:
                sums, hits = self.decoder.loss_and_correct(self.store, layout)
            else:
                sums, hits = self.decoder.loss(self.store, layout, {}, backward=False), torch.zeros(1)
            return sums[0] / layout.rows[0].labels, hits[0]
        except torch.OutOfMemoryError:
            if len(batch["tokens"]) == 1:
                raise
        torch.cuda.empty_cache()
        total, labels = torch.zeros((), dtype=torch.float64), 0
        counted = torch.zeros((), dtype=torch.float64)
        for half in zip(*(value.tensor_split(2) for value in batch.values()), strict=True):
            part = dict(zip(batch, half, strict=True))
            if count := slot.recipe.label_tokens(part):
                mean, hit = self._score(slot, part, correct)
                total, labels = total + mean.double().cpu() * count, labels + count
                counted += hit.double().cpu()
        return total / labels, counted


def _key(group: Sequence[SlotBatch]) -> tuple[int, ...]:
    """Identifies the micro-batches of a pass and the rows of their slots."""
    return group[0].slot.row, *(id(batch) for batch in group)


def _first_lora(model: nn.Module) -> LoRALinear:
    return next(module for module in model.modules() if isinstance(module, LoRALinear))
