"""The optimizer steps of a pack: the clipping and AdamW of those slots whose accumulation is complete.

Invariant: as torch's own: `clip_grads_with_norm_`, then fused AdamW, each slot with its own limit and options.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from trainer.packed.slot import Fed
from trainer.packed.store import Store


@torch.no_grad()
def gradient_norms(store: Store, due: Sequence[Fed]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each of these slots its gradient's norm and what the gradient is to be divided by, both of shape [n], fp32."""
    counts = _on_device([one.slot.recipe.tokens_of_step for one in due], store)
    limits = _on_device([math.inf if (clip := one.slot.recipe.clip) is None else clip for one in due], store)
    parts = [torch.linalg.vector_norm(store.grads[rows], dim=1, dtype=torch.float32) for rows, _ in _runs(due)]
    norms = torch.cat(parts) / counts
    kept = torch.where(limits < math.inf, torch.clamp(limits / (norms + 1e-6), max=1.0), 1.0)
    return norms, counts / kept


@torch.no_grad()
def take_steps(store: Store, due: Sequence[Fed], divisors: torch.Tensor) -> None:
    """Take a step in each of these slots, with the rate that its schedule has now, and clear its gradient."""
    options = [one.slot.recipe.optimizer.param_groups[0] for one in due]
    table = [[float(o["lr"]), *o["betas"], o["weight_decay"], o["eps"]] for o in options]
    for rows, part in _runs(due):
        store.steps[rows] += 1
        if store.values.is_cuda:
            _step_together(store, rows, _on_device(table[part], store), divisors[part])
        else:
            _step_apart(store, rows, table[part], divisors[part])


def stand_still(store: Store) -> None:
    """Have the kernel compiled that takes steps on a GPU, by one that leaves a first row of zeros as it is."""
    from trainer.packed.kernels import basic

    table = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]], device=store.values.device)
    values, grads, averages, squares = (kind[:1] for kind in store.tensors)
    basic.adamw(values, grads, averages, squares, table)


def _step_together(store: Store, rows: slice, options: torch.Tensor, divisors: torch.Tensor) -> None:
    from trainer.packed.kernels import basic

    values, grads, averages, squares = (kind[rows] for kind in store.tensors)
    basic.adamw(values, grads, averages, squares, step_table(options, store.steps[rows], divisors))


def step_table(options: torch.Tensor, steps: torch.Tensor, divisors: torch.Tensor) -> torch.Tensor:
    """What `packed_kernels.adamw` takes, [n, 9].

    Made in fp64 from options in fp32, as torch's kernel has them: 1 - beta2 and 1 - beta2^step must be of one beta2.

    Args:
        options: rate, both betas, decay and epsilon of each row, [n, 5], fp32.
        steps: how many each row has taken with this one, [n]; divisors: of the gradients, [n].
    """
    rate, beta1, beta2, decay, eps = options.double().unbind(1)
    columns = [
        divisors.double(), rate * decay, beta1, 1 - beta1, beta2, 1 - beta2,
        rate / (1 - beta1**steps), (1 - beta2**steps).sqrt(), eps,
    ]  # fmt: skip
    return torch.stack(columns, dim=1).float()


def _step_apart(store: Store, rows: slice, table: Sequence[Sequence[float]], divisors: torch.Tensor) -> None:
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


def _runs(due: Sequence[Fed]) -> Iterator[tuple[slice, slice]]:
    """Their rows of the store, neighbours together, and which of them these are."""
    first = 0
    for index, one in enumerate(due):
        if index + 1 == len(due) or due[index + 1].slot.row != one.slot.row + 1:
            yield slice(due[first].slot.row, one.slot.row + 1), slice(first, index + 1)
            first = index + 1


def _on_device(values: Sequence[float] | Sequence[Sequence[float]], store: Store) -> torch.Tensor:
    found = torch.tensor(values, dtype=torch.float32)
    device = store.grads.device
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found
