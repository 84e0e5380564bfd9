"""Takes the optimizer steps of a pack: clipping and AdamW for the slots whose accumulation is complete.

Invariant: a step equals torch's `clip_grads_with_norm_` followed by its fused AdamW, with the slot's own limit and
options.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from trainer.packed.slot import SlotBatch
from trainer.packed.store import AdapterStore


@torch.no_grad()
def gradient_norms(store: AdapterStore, due: Sequence[SlotBatch]) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of each slot's gradient, and the number by which to divide the gradient, both of shape [n], fp32.

    The norm is that of the gradient divided by the step's label tokens. The divisor also clips.

    Args:
        due: the n slots that take a step.
    """
    counts = _on_device([one.slot.recipe.tokens_of_step for one in due], store)
    limits = _on_device([math.inf if (clip := one.slot.recipe.clip) is None else clip for one in due], store)
    parts = [torch.linalg.vector_norm(store.grads[rows], dim=1, dtype=torch.float32) for rows, _ in _contiguous(due)]
    norms = torch.cat(parts) / counts
    kept = torch.where(limits < math.inf, torch.clamp(limits / (norms + 1e-6), max=1.0), 1.0)
    return norms, counts / kept


@torch.no_grad()
def take_steps(store: AdapterStore, due: Sequence[SlotBatch], divisors: torch.Tensor) -> None:
    """Take a step in each of these slots, with the learning rate that its schedule has now, and clear its gradient.

    Args:
        divisors: by which to divide each gradient, shape [n], fp32.
    """
    options = [one.slot.recipe.optimizer.param_groups[0] for one in due]
    table = [[float(o["lr"]), *o["betas"], o["weight_decay"], o["eps"]] for o in options]
    for rows, part in _contiguous(due):
        store.steps[rows] += 1
        if store.values.is_cuda:
            _step_rows(store, rows, _on_device(table[part], store), divisors[part])
        else:
            _step_each_row(store, rows, table[part], divisors[part])


def warm_up_adamw(store: AdapterStore) -> None:
    """Compile the AdamW kernel of a GPU by a step that leaves a first row of zeros as it is."""
    from trainer.packed.kernels import basic

    table = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]], device=store.values.device)
    values, grads, averages, squares = (kind[:1] for kind in store.tensors)
    basic.adamw(values, grads, averages, squares, table)


def _step_rows(store: AdapterStore, rows: slice, options: torch.Tensor, divisors: torch.Tensor) -> None:
    from trainer.packed.kernels import basic

    values, grads, averages, squares = (kind[rows] for kind in store.tensors)
    basic.adamw(values, grads, averages, squares, step_table(options, store.steps[rows], divisors))


def step_table(options: torch.Tensor, steps: torch.Tensor, divisors: torch.Tensor) -> torch.Tensor:
    """The table of `kernels.basic.adamw`, shape [n, 9], fp32.

    It is computed in fp64 from options in fp32, as in torch's kernel: 1 - beta2 and 1 - beta2^step must have one beta2.

    Args:
        options: learning rate, both betas, weight decay and epsilon of each row, shape [n, 5], fp32.
        steps: the number of this step in each row, from 1, shape [n].
        divisors: by which to divide each gradient, shape [n].
    """
    rate, beta1, beta2, decay, eps = options.double().unbind(1)
    columns = [
        divisors.double(), rate * decay, beta1, 1 - beta1, beta2, 1 - beta2,
        rate / (1 - beta1**steps), (1 - beta2**steps).sqrt(), eps,
    ]  # fmt: skip
    return torch.stack(columns, dim=1).float()


def _step_each_row(store: AdapterStore, rows: slice, table: Sequence[Sequence[float]], divisors: torch.Tensor) -> None:
    for row, (rate, beta1, beta2, decay, eps), divisor in zip(
        range(rows.start, rows.stop), table, divisors.unbind(), strict=True
    ):
        values, grads, averages, squares = ([kind[row]] for kind in store.tensors)
        torch._fused_adamw_(
            values,
            grads,
            averages,
            squares,
            [],
            [store.steps[row]],
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
        )
    store.grads[rows].zero_()


def _contiguous(due: Sequence[SlotBatch]) -> Iterator[tuple[slice, slice]]:
    """The rows of these slots, contiguous ones as one slice, each with the slice of `due` that it covers."""
    first = 0
    for index, one in enumerate(due):
        if index + 1 == len(due) or due[index + 1].slot.row != one.slot.row + 1:
            yield slice(due[first].slot.row, one.slot.row + 1), slice(first, index + 1)
            first = index + 1


def _on_device(values: Sequence[float] | Sequence[Sequence[float]], store: AdapterStore) -> torch.Tensor:
    tensor = torch.tensor(values, dtype=torch.float32)
    device = store.grads.device
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
