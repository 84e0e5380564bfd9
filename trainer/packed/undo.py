"""What a pass over several slots changes before it succeeds, and how it is undone if it fails."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainer.packed.slot import SlotBatch


class PassUndo:
    """The gradients of the slots of a pass, and the states of their generators, as they are before the pass.

    Only slots within an accumulation have gradients to keep; if no slot is, all gradients are zero.

    Args:
        grads: of the rows of the slots, a view of the store, fp32.

    Raises:
        torch.OutOfMemoryError: the copy of the gradients does not fit; nothing has been changed.
    """

    def __init__(self, group: Sequence[SlotBatch], grads: torch.Tensor) -> None:
        self._generators = [(batch.slot.random, batch.slot.random.now) for batch in group]
        accumulated = any(batch.slot.recipe.position % batch.slot.recipe.accumulation for batch in group)
        self._grads, self._kept = grads, grads.clone() if accumulated else None

    def undo(self) -> None:
        """Restore gradients and generators, and free the copy of the gradients; call it once."""
        if self._kept is None:
            self._grads.zero_()
        else:
            self._grads.copy_(self._kept)
        self._kept = None
        for random, state in self._generators:
            random.rewind(state)
