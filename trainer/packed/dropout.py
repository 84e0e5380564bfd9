"""Dropout masks of a pack.

Invariant: a trial's masks are those that it would draw alone: from its own generators, module after module, for its
padded micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F

from trainer.packed.layout import Layout
from trainer.packed.model import Masks
from trainer.packed.products import Projection
from trainer.packed.slot import Slot


def dropout_masks(
    groups: Sequence[Projection], slots: Sequence[Slot], layout: Layout, like: torch.Tensor
) -> dict[int, Masks]:
    """The masks of each group's adapters, shape [T, D] each, divided by the share that they keep.

    Args:
        groups: the adapted projections of the decoder.
        slots: those of the layout, in its order. Slots without dropout have ones.
        like: a tensor of the masks' dtype, on their device.

    Returns:
        the masks by the index of the group; empty if no slot has dropout.
    """
    if not any(slot.dropout for slot in slots):
        return {}
    masks = [
        [torch.ones(layout.size, group.weight.shape[1], dtype=like.dtype, device=like.device) for _ in group.names]
        for group in groups
    ]
    for slot, row, (begin, end) in zip(slots, layout.rows, pairwise(layout.bounds), strict=True):
        if not slot.dropout:
            continue
        with slot.random.own():
            for group, of_group in zip(groups, masks, strict=True):
                for mask in of_group:
                    ones = like.new_ones(*row.shape, group.weight.shape[1])
                    drawn = F.dropout(ones, slot.dropout).flatten(0, 1)
                    mask[begin:end] = drawn[layout.sources[begin:end]]
    return dict(enumerate(masks))
