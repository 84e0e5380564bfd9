"""Many trials on one frozen base, each at its own step.

A pack holds `LoraRecipe`s in slots. One forward and backward pass goes over a micro-batch of every slot at once; then
each slot whose accumulation is complete takes its own optimizer step, with its own clipping, rate and decay.

Invariants: the numbers of a trial in a pack are those of the trial alone, up to rounding. Each slot has its own data
position, generators, schedule, and row of the store, so that nothing that happens to one, its start, its end, a loss
that is not finite, a failure, changes another's numbers. A pass that fails leaves every gradient as it was. Where
memory runs out, passes go over fewer slots at a time from then on, and no trial ends for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchtune.modules.loss import CEWithChunkedOutputLoss
from torchtune.modules.peft import LoRALinear

from trainer.packed_layout import Layout, lay_out
from trainer.packed_model import CHUNK, Decoder, Noise, unpackable
from trainer.packed_store import Store, bind
from trainer.progress import MicroBatch
from trainer.randomness import Randomness
from trainer.recipe import LoraRecipe

Batch = dict[str, torch.Tensor]


@dataclass(slots=True, eq=False)
class Slot:
    """A trial in a pack.

    Args:
        row: of the store; the pack changes it when another slot is given back.
    """

    recipe: LoraRecipe
    row: int
    random: Randomness
    batches: Iterator[Batch] = field(init=False)
    ahead: Fed | Passed | None = None
    _behind: tuple[dict[str, Any], Any] = field(init=False)

    def __post_init__(self) -> None:
        self.batches = self.recipe.batches()

    def fetch(self, longest: int) -> None:
        """Draw the next micro-batch, before the numbers of the last are known: a GPU is still busy with them."""
        self._behind = self.recipe.loader_state(), self.random.now
        try:
            with self.random.own():
                batch = next(self.batches)
            if batch["tokens"].shape[1] > longest:
                raise ValueError(
                    f"a row of {batch['tokens'].shape[1]} tokens is longer than the model's max_seq_len ({longest})"
                )
            self.ahead = Fed(self, batch, self.recipe.label_tokens(batch))
        except Exception as error:
            self.ahead = Passed(self, None, error)

    def where(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The loader and the generators as they stood before the micro-batch that is drawn ahead."""
        if self.ahead is None:
            return self.recipe.loader_state(), self.random.to_checkpoint(self.random.now)
        loader, random = self._behind
        return loader, self.random.to_checkpoint(random)

    @property
    def dropout(self) -> float:
        return float(self.recipe.cfg.model.get("lora_dropout", 0.0))


@dataclass(frozen=True, slots=True)
class Passed:
    """What one pass came to for one slot: where it stands, or why it cannot go on."""

    slot: Slot
    batch: MicroBatch | None
    error: Exception | None = None


@dataclass(slots=True)
class Fed:
    """A slot with the micro-batch that it brings to this pass."""

    slot: Slot
    batch: Batch
    labels: int

    @property
    def tokens(self) -> int:
        return self.batch["tokens"].numel()


def refusal(recipe: LoraRecipe) -> str | None:
    """Why a trial cannot be in any pack, as a sentence's end; None where it can."""
    cfg = recipe.cfg
    for flag in ("enable_activation_checkpointing", "enable_activation_offloading"):
        if cfg.get(flag):
            return f"{flag} is set"
    if reason := unpackable(recipe.model):
        return reason
    loss: Any = recipe.loss
    plain = isinstance(loss, nn.CrossEntropyLoss) and loss.reduction == "mean" and not loss.label_smoothing
    if not (type(loss) is CEWithChunkedOutputLoss or (plain and loss.weight is None)):
        return f"its loss is {type(loss).__name__}"
    if reason := _odd_optimizer(recipe.optimizer):
        return reason
    if cfg.dataset.get("packed") if hasattr(cfg.dataset, "get") else any(one.get("packed") for one in cfg.dataset):
        return "its data set is packed by torchtune"
    if "padded_collate_sft" not in cfg.get("collate_fn", "padded_collate_sft"):
        return f"its collate_fn is {cfg.collate_fn}"
    return None


def _odd_optimizer(optimizer: torch.optim.Optimizer) -> str | None:
    if type(optimizer) is not torch.optim.AdamW:
        return f"its optimizer is {type(optimizer).__name__}, not AdamW"
    if len(optimizer.param_groups) != 1:
        return "its optimizer has several groups"
    for option in ("amsgrad", "maximize", "capturable", "differentiable"):
        if optimizer.param_groups[0].get(option):
            return f"its AdamW has {option}"
    return None


class Pack:
    """Trials on one base.

    Args:
        budget: tokens, padding included, of the largest pass to try; None: all slots in one.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
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
            self._decoder = Decoder(recipe.model)
            self._store = None
            self._base = self._identity(recipe)
        rank = _first_lora(recipe.model).rank
        if self._store is None:
            self._store = Store(self.decoder.groups, 1, rank, self.decoder.like)
        elif self._store.make_room(rank):
            for slot in self.slots:
                bind(slot.recipe.model, slot.recipe.optimizer, self._store, slot.row, copy=False)
        layer = _first_lora(recipe.model)
        slot = Slot(recipe, self._store.take(layer.alpha / layer.rank), random)
        bind(recipe.model, recipe.optimizer, self._store, slot.row, copy=True)
        recipe.join(slot.where, lambda batch: self._mean_loss(slot, batch))
        self.slots.append(slot)
        return slot

    def estimate(self, rank: int, rows: int) -> tuple[int, int]:
        """Bytes that the next pass would take with one more trial of this rank and so many rows, and bytes free.

        What a row is long is taken from those seen so far; without a GPU both are 0.
        """
        like = self.decoder.like
        if like.device.type != "cuda":
            return 0, 0
        tokens = self._longest * rows + sum(self._longest * int(slot.recipe.cfg.batch_size) for slot in self.slots)
        if self.budget is not None:
            tokens = min(tokens, max(self.budget, self._longest * rows))
        logits = CHUNK * self.decoder.words * like.element_size()
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return self.store.room_bytes(rank) + tokens * self.decoder.activation_bytes() + logits, free

    def remove(self, slot: Slot) -> None:
        """Let go of a trial; what it holds must have been saved before."""
        self.slots.remove(slot)
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
        norms = self._update(due)
        rates = {one.slot: one.slot.recipe.reschedule() for one in due}
        for one in trained:  # while the GPU works
            if one.slot.recipe.position < one.slot.recipe.total:
                one.slot.fetch(self.decoder.max_length)
        self._lay_out_ahead()
        numbers = torch.stack([sums[one.slot] for one in trained] + norms).tolist() if trained else []
        norm_of = dict(zip([one.slot for one in due], numbers[len(trained) :], strict=True))
        for one, value in zip(trained, numbers, strict=False):
            recipe = one.slot.recipe
            # no label at all: torchtune's mean over none of them
            recipe.took(torch.tensor(value if one.labels else float("nan")))
            step = recipe.stepped(norm_of[one.slot], rates[one.slot]) if one.slot in norm_of else None
            passed.append(Passed(one.slot, recipe.progress(step)))
        return passed

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
        before = self.store.grads[rows].clone() if begun else None
        try:
            sums = self._pass(group)
            return {one.slot: value for one, value in zip(group, sums.unbind(), strict=True)}, []
        except Exception as error:
            failure: Exception = error
        if len(group) > 1 or isinstance(failure, torch.OutOfMemoryError):
            failure.__traceback__ = None  # its frames hold the tensors of the pass
        self.store.grads[rows].copy_(before) if before is not None else self.store.grads[rows].zero_()
        for one, state in zip(group, randoms, strict=True):
            one.slot.random.rewind(state)
        memory = isinstance(failure, torch.OutOfMemoryError)
        if memory:
            torch.cuda.empty_cache()
        if len(group) == 1:
            return {}, [Passed(group[0].slot, None, failure)]
        if memory:
            self.budget = sum(one.tokens for one in group) // 2
            print(f"out of memory with {len(group)} trials in one pass: from now on {self.budget} tokens", flush=True)
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

    @torch.no_grad()
    def _update(self, due: Sequence[Fed]) -> list[torch.Tensor]:
        """Clip and step each of these slots; returns their gradients' norms, not yet waited for."""
        norms: list[torch.Tensor] = []
        store = self.store
        for one in due:
            recipe, row = one.slot.recipe, one.slot.row
            grad = store.grads[row]
            count = recipe.tokens_of_step
            norm = torch.linalg.vector_norm(grad, dtype=torch.float32) / count
            norms.append(norm)
            divisor = torch.full_like(norm, count)
            if recipe.clip is not None:  # as torch.nn.utils.clip_grads_with_norm_
                divisor = divisor / torch.clamp(recipe.clip / (norm + 1e-6), max=1.0)
            options = recipe.optimizer.param_groups[0]
            beta1, beta2 = options["betas"]
            step = store.steps[row].add_(1)
            torch._fused_adamw_(
                [store.values[row]],
                [grad],
                [store.averages[row]],
                [store.squares[row]],
                [],
                [step],
                lr=float(options["lr"]),
                beta1=beta1,
                beta2=beta2,
                weight_decay=options["weight_decay"],
                eps=options["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=divisor,
            )
            grad.zero_()
        return norms

    @torch.no_grad()
    def _mean_loss(self, slot: Slot, batch: Batch) -> torch.Tensor:
        layout = self._layout([batch], slot)
        sums = self.decoder.loss(self.store, layout, {}, backward=False)
        return sums[0] / layout.rows[0].labels


def _key(group: Sequence[Fed]) -> tuple[int, ...]:
    """Which micro-batches, and where their slots lie."""
    return group[0].slot.row, *(id(one) for one in group)


def _first_lora(model: nn.Module) -> LoRALinear:
    return next(module for module in model.modules() if isinstance(module, LoRALinear))
