"""The adapters of K slots, with their gradients and AdamW's moments, each slot in a row of its own.

Invariants: a slot's row is all that training it changes. A trial's own parameters, gradients and optimizer state are
views into its row, so that whatever reads or writes them (a checkpoint, an export, torchtune's own modules) sees and
changes the row. Occupied rows come first and without a gap. Ranks are padded with zeros, which stay zero: a padded
column of A meets a padded row of B, so neither gets a gradient.
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

RANK_STEP = 8  # ranks are padded to a multiple: of a product's row, in bf16, 16 bytes


@dataclass(frozen=True, slots=True)
class Shapes:
    """The adapters that share an input: `inputs` features, and the features that each of them puts out."""

    inputs: int
    outputs: tuple[int, ...]

    def size(self, rank: int) -> int:
        """Numbers in a row of this rank."""
        return rank * (len(self.outputs) * self.inputs + sum(self.outputs))


@dataclass(slots=True)
class Places:
    """Where one group of adapters lies in a tensor of rows [K, P]: a [K, M·R, D], and M times b [K, N_m, R]."""

    a: torch.Tensor
    b: tuple[torch.Tensor, ...]


class Store:
    """K rows of adapters.

    Args:
        projections: the groups of adapted layers, in order.
        capacity, rank: how many rows there are, and the largest rank that fits; `make_room` makes more.
    """

    def __init__(self, projections: Sequence[Projection], capacity: int, rank: int, like: torch.Tensor) -> None:
        self.projections = tuple(projections)
        self.shapes = [
            Shapes(p.weight.shape[1], tuple(end - begin for begin, end in p.columns)) for p in self.projections
        ]
        self.capacity, self.rank, self.used = capacity, padded(rank), 0
        self._like = like
        self._slices: dict[tuple[int, int, int], tuple[Any, ...]] = {}
        self.steps = torch.zeros(capacity, device=like.device)
        self.scales = torch.ones(capacity, device=like.device)
        size = sum(shape.size(self.rank) for shape in self.shapes)
        kinds = [torch.zeros(capacity, size, dtype=like.dtype, device=like.device) for _ in range(4)]
        self.values, self.grads, self.averages, self.squares = kinds
        self._kinds = tuple([*self._places(kind)] for kind in kinds)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Values, gradients and both moments, each of shape [K, P]."""
        return self.values, self.grads, self.averages, self.squares

    def take(self, scale: float) -> int:
        """The next row, zeroed, for a slot with this alpha / rank."""
        row = self.used
        self.used += 1
        self._clear(row)
        self.scales[row] = scale
        return row

    def release(self, row: int) -> int | None:
        """Give a row back. The last occupied one moves into it.

        Returns:
            The row that moved, whose trial must be bound anew; None where none did.
        """
        last = self.used - 1
        self.used = last
        if row == last:
            self._clear(last)
            return None
        for one in (*self.tensors, self.steps, self.scales):
            one[row].copy_(one[last])
        self._clear(last)
        return last

    def adapters(self, group: int, layout: Layout, scale: torch.Tensor, noise: Sequence[torch.Tensor]) -> Adapters:
        """What a pass over the layout's slots reads and adds to."""
        slots = layout.slots
        key = group, slots.start, slots.stop
        if key not in self._slices:  # the same in every pass, until slots come or go
            values, grads = self._kinds[0][group], self._kinds[1][group]
            self._slices[key] = (
                values.a[slots],
                tuple(b[slots] for b in values.b),
                grads.a[slots],
                tuple(b[slots] for b in grads.b),
            )
        a, b, grad_a, grad_b = self._slices[key]
        return Adapters(a, b, grad_a, grad_b, scale, noise)

    def views(self, row: int, rank: int) -> Iterator[tuple[str, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]]:
        """For each adapted layer its name, then (value, gradient, two moments) of its A [rank, D], then of its B
        [N, rank]."""
        for group, projection in enumerate(self.projections):
            for index, name in enumerate(projection.names):
                top = index * self.rank
                yield (
                    name,
                    tuple(kind[group].a[row, top : top + rank] for kind in self._kinds),
                    tuple(kind[group].b[index][row, :, :rank] for kind in self._kinds),
                )

    def make_room(self, rank: int) -> bool:
        """Make room for one more row of a rank; True where the rows are other ones now, and every trial must be bound
        anew."""
        if rank <= self.rank and self.used < self.capacity:
            return False
        capacity = self.capacity if self.used < self.capacity else 2 * self.capacity
        larger = Store(self.projections, capacity, max(rank, self.rank), self._like)  # no memory: nothing has changed
        larger.used, kept, before = self.used, slice(0, self.used), self.rank
        larger.steps[kept], larger.scales[kept] = self.steps[kept], self.scales[kept]
        for kind, origin in zip(larger._kinds, self._kinds, strict=True):
            for to, of in zip(kind, origin, strict=True):
                count = len(to.b)
                _apart(to.a[kept], count)[:, :, :before] = _apart(of.a[kept], count)
                for new, one in zip(to.b, of.b, strict=True):
                    new[kept, :, :before] = one[kept]
        self.__dict__ = larger.__dict__
        return True

    def room_bytes(self, rank: int) -> int:
        """Memory that `make_room` would take, while old and new rows exist side by side."""
        if rank <= self.rank and self.used < self.capacity:
            return 0
        rows = self.capacity if self.used < self.capacity else 2 * self.capacity
        return rows * self.row_bytes(max(rank, self.rank))

    def row_bytes(self, rank: int) -> int:
        """Memory of one slot: its adapter, gradient and moments."""
        return 4 * self._like.element_size() * sum(shape.size(padded(rank)) for shape in self.shapes)

    def _clear(self, row: int) -> None:
        for one in (*self.tensors, self.steps):
            one[row].zero_()

    def _places(self, rows: torch.Tensor) -> Iterator[Places]:
        begin = 0
        for shape in self.shapes:
            height = len(shape.outputs) * self.rank
            a = _apart(rows[:, begin : begin + height * shape.inputs], height)
            begin += height * shape.inputs
            found = []
            for outputs in shape.outputs:
                found.append(_apart(rows[:, begin : begin + outputs * self.rank], outputs))
                begin += outputs * self.rank
            yield Places(a, tuple(found))


def _apart(x: torch.Tensor, count: int) -> torch.Tensor:
    """The second dimension as two, the first of which has this size; a view."""
    return x.view(x.shape[0], count, x.shape[1] // count, *x.shape[2:])


def padded(rank: int) -> int:
    """The rank that a row is made for."""
    return -(-rank // RANK_STEP) * RANK_STEP


def bind(model: nn.Module, optimizer: torch.optim.Optimizer, store: Store, row: int, copy: bool) -> None:
    """Make a trial's parameters, gradients and AdamW state views into its row.

    Args:
        copy: bring what they hold into the row first; else the row already holds it.
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


def _rank(model: nn.Module, store: Store) -> int:
    layer = model.get_submodule(store.projections[0].names[0])
    return int(layer.rank)  # type: ignore[arg-type]
