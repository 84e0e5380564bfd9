"""Holds the adapters of K slots, with their gradients and AdamW's moments, one row for each slot.

Notation: K rows of P numbers, R the rank to which all rows are padded. A group is M adapters that share an input of D
features and put out N_1 … N_M features.

Invariants: training a slot changes its row and nothing else. A trial's own parameters, gradients and optimizer state
are views into its row. Whatever reads or writes them (a checkpoint, an export, torchtune's own modules) therefore reads
or writes the row. Occupied rows come first, without a gap. Ranks are padded with zeros, which stay zero: a padded
column of A meets a padded row of B, so that neither gets a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchtune.modules.peft import LoRALinear

from trainer.packed.layout import Layout
from trainer.packed.products import Adapters, Projection

RANK_STEP = 8  # ranks are padded to a multiple of it: the rows of a product are then multiples of 16 bytes in bf16


@dataclass(frozen=True, slots=True)
class Shapes:
    """The features of a group: D of the common input, and N_m of each adapter's output."""

    inputs: int
    outputs: tuple[int, ...]

    def size(self, rank: int) -> int:
        """How many numbers the group has in a row of this rank."""
        return rank * (len(self.outputs) * self.inputs + sum(self.outputs))


@dataclass(slots=True)
class AdapterViews:
    """One group in a tensor of rows [K, P], as views: a [K, M·R, D], and M times b [K, N_m, R]."""

    a: torch.Tensor
    b: tuple[torch.Tensor, ...]


class AdapterStore:
    """K rows of adapters.

    Args:
        projections: the groups of adapted layers, in order.
        capacity: K; `grow` doubles it.
        rank: the largest rank that a row must hold; `grow` raises it.
        like: a tensor of the rows' dtype, on their device.
    """

    def __init__(self, projections: Sequence[Projection], capacity: int, rank: int, like: torch.Tensor) -> None:
        self.projections = tuple(projections)
        self.shapes = [
            Shapes(p.weight.shape[1], tuple(end - begin for begin, end in p.columns)) for p in self.projections
        ]
        self.capacity, self.rank, self.used = capacity, padded_rank(rank), 0
        self._like = like
        self._slices: dict[tuple[int, int, int], tuple[Any, ...]] = {}
        self.steps = torch.zeros(capacity, device=like.device)
        self.scales = torch.ones(capacity, device=like.device)
        size = sum(shape.size(self.rank) for shape in self.shapes)
        tensors = [torch.zeros(capacity, size, dtype=like.dtype, device=like.device) for _ in range(4)]
        self.values, self.grads, self.averages, self.squares = tensors
        self._views = tuple([*self._views_of(tensor)] for tensor in tensors)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Values, gradients and both moments, each of shape [K, P]."""
        return self.values, self.grads, self.averages, self.squares

    def allocate(self, scale: float) -> int:
        """The next free row, filled with zeros.

        Args:
            scale: alpha / rank of the slot.
        """
        row = self.used
        self.used += 1
        self._clear(row)
        self.scales[row] = scale
        return row

    def release(self, row: int) -> int | None:
        """Free a row. The last occupied row moves into it.

        Returns:
            the row that moved, whose trial must be bound again; None if none did.
        """
        last = self.used - 1
        self.used = last
        if row == last:
            self._clear(last)
            return None
        for tensor in (*self.tensors, self.steps, self.scales):
            tensor[row].copy_(tensor[last])
        self._clear(last)
        return last

    def adapters(self, group: int, layout: Layout, scale: torch.Tensor, masks: Sequence[torch.Tensor]) -> Adapters:
        """The adapters of a group that a pass over the layout's slots reads, with the gradients that it adds to.

        Args:
            group: its index.
            scale: alpha / rank of each token's slot, shape [T, 1].
            masks: M dropout masks of shape [T, D]; empty without dropout.
        """
        slots = layout.slots
        key = group, slots.start, slots.stop
        if key not in self._slices:  # the same in every pass, until a slot is added or removed
            values, grads = self._views[0][group], self._views[1][group]
            self._slices[key] = (
                values.a[slots],
                tuple(b[slots] for b in values.b),
                grads.a[slots],
                tuple(b[slots] for b in grads.b),
            )
        a, b, grad_a, grad_b = self._slices[key]
        return Adapters(a, b, grad_a, grad_b, scale, masks)

    def views(self, row: int, rank: int) -> Iterator[tuple[str, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]]:
        """For each adapted layer: its name, the views of its A [rank, D], and the views of its B [N, rank].

        The views are the value, the gradient and the two moments.
        """
        for group, projection in enumerate(self.projections):
            for index, name in enumerate(projection.names):
                top = index * self.rank
                yield (
                    name,
                    tuple(views[group].a[row, top : top + rank] for views in self._views),
                    tuple(views[group].b[index][row, :, :rank] for views in self._views),
                )

    def grow(self, rank: int) -> bool:
        """Have space for one more row of this rank.

        Returns:
            True if all rows have moved to new tensors, so that every trial must be bound again.

        Raises:
            torch.OutOfMemoryError: nothing has changed.
        """
        if rank <= self.rank and self.used < self.capacity:
            return False
        capacity = self.capacity if self.used < self.capacity else 2 * self.capacity
        larger = AdapterStore(self.projections, capacity, max(rank, self.rank), self._like)
        larger.used, occupied, before = self.used, slice(0, self.used), self.rank
        larger.steps[occupied], larger.scales[occupied] = self.steps[occupied], self.scales[occupied]
        for new_views, old_views in zip(larger._views, self._views, strict=True):
            for new, old in zip(new_views, old_views, strict=True):
                count = len(new.b)
                _split(new.a[occupied], count)[:, :, :before] = _split(old.a[occupied], count)
                for new_b, old_b in zip(new.b, old.b, strict=True):
                    new_b[occupied, :, :before] = old_b[occupied]
        self.__dict__ = larger.__dict__
        return True

    def growth_bytes(self, rank: int) -> int:
        """Bytes that `grow` would allocate, while old and new rows exist at the same time."""
        if rank <= self.rank and self.used < self.capacity:
            return 0
        rows = self.capacity if self.used < self.capacity else 2 * self.capacity
        return rows * self.row_bytes(max(rank, self.rank))

    def row_bytes(self, rank: int) -> int:
        """Bytes of one slot of this rank: its adapter, gradient and moments."""
        return 4 * self._like.element_size() * sum(shape.size(padded_rank(rank)) for shape in self.shapes)

    def _clear(self, row: int) -> None:
        for tensor in (*self.tensors, self.steps):
            tensor[row].zero_()

    def _views_of(self, rows: torch.Tensor) -> Iterator[AdapterViews]:
        """The groups in a tensor of rows [K, P], one after another."""
        begin = 0
        for shape in self.shapes:
            height = len(shape.outputs) * self.rank
            a = _split(rows[:, begin : begin + height * shape.inputs], height)
            begin += height * shape.inputs
            b = []
            for outputs in shape.outputs:
                b.append(_split(rows[:, begin : begin + outputs * self.rank], outputs))
                begin += outputs * self.rank
            yield AdapterViews(a, tuple(b))


def _split(x: torch.Tensor, count: int) -> torch.Tensor:
    """A view with the second dimension as two, the first of which has this size."""
    return x.view(x.shape[0], count, x.shape[1] // count, *x.shape[2:])


def padded_rank(rank: int) -> int:
    """The rank of the row that holds an adapter of this rank."""
    return -(-rank // RANK_STEP) * RANK_STEP


def bind(model: nn.Module, optimizer: torch.optim.Optimizer, store: AdapterStore, row: int, copy: bool) -> None:
    """Make a trial's parameters, gradients and AdamW state views into a row.

    Args:
        copy: copy what they hold into the row first; otherwise the row holds it already.
    """
    step = store.steps[row]
    for name, a_views, b_views in store.views(row, _rank(model, store)):
        layer = model.get_submodule(name)
        assert isinstance(layer, LoRALinear)
        for parameter, views in ((layer.lora_a.weight, a_views), (layer.lora_b.weight, b_views)):
            value, grad, average, square = views
            state: dict[str, Any] = optimizer.state[parameter]
            if copy:
                value.copy_(parameter.data)
                if parameter.grad is not None:
                    grad.copy_(parameter.grad)
                if state:
                    average.copy_(state["exp_avg"])
                    square.copy_(state["exp_avg_sq"])
                    step.copy_(state["step"])
            parameter.data = value
            parameter.grad = grad
            optimizer.state[parameter] = {"step": step, "exp_avg": average, "exp_avg_sq": square}


def _rank(model: nn.Module, store: AdapterStore) -> int:
    layer = model.get_submodule(store.projections[0].names[0])
    return int(layer.rank)  # type: ignore[arg-type]
