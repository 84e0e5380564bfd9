"""The optimizer steps of a pack: the clipping and AdamW of those slots whose accumulation is complete.

Invariant: as torch's own: `clip_grads_with_norm_`, then fused AdamW, each slot with its own limit and options.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from trainer.packed_slot import Fed
from trainer.packed_store import Store


@torch.no_grad()
def gradient_norms(store: Store, due: Sequence[Fed]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each of these slots its gradient's norm and what the gradient is to be divided by, both of shape [n], fp32."""
    counts = _on_device([one.slot.recipe.tokens_of_step for one in due], store)
    limits = _on_device([math.inf if (clip := one.slot.recipe.clip) is None else clip for one in due], store)
    parts = [torch.linalg.vector_norm(store.grads[rows], dim=1, dtype=torch.float32) for rows in _runs(due)]
    norms = torch.cat(parts) / counts
    kept = torch.where(limits < math.inf, torch.clamp(limits / (norms + 1e-6), max=1.0), 1.0)
    return norms, counts / kept


@torch.no_grad()
def take_steps(store: Store, due: Sequence[Fed], divisors: torch.Tensor) -> None:
    """Take a step in each of these slots, with the rate that its schedule has now, and clear its gradient."""
    runs = list(_runs(due))
    for rows in runs:
        store.steps[rows] += 1
    for one, divisor in zip(due, divisors.unbind(), strict=True):
        row, options = one.slot.row, one.slot.recipe.optimizer.param_groups[0]
        beta1, beta2 = options["betas"]
        torch._fused_adamw_(
            [store.values[row]],
            [store.grads[row]],
            [store.averages[row]],
            [store.squares[row]],
            [],
            [store.steps[row]],
            lr=float(options["lr"]),
            beta1=beta1,
            beta2=beta2,
            weight_decay=options["weight_decay"],
            eps=options["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
        )
    for rows in runs:
        store.grads[rows].zero_()


def _runs(due: Sequence[Fed]) -> Iterator[slice]:
    """Their rows of the store, neighbours together."""
    first = last = due[0].slot.row
    for one in due[1:]:
        if one.slot.row != last + 1:
            yield slice(first, last + 1)
            first = one.slot.row
        last = one.slot.row
    yield slice(first, last + 1)


def _on_device(values: Sequence[float], store: Store) -> torch.Tensor:
    found = torch.tensor(values, dtype=torch.float32)
    device = store.grads.device
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found
