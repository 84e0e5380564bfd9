"""How much memory there is for a pack, and what a trial would take of it.

Invariant: arithmetic on figures; only `device_memory` asks a device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

GIB = 2**30
# Of the free memory, what a pass may be planned to use.
MARGIN = 0.9


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device that this process can still take, and that it could have in all."""

    free: int
    total: int


# None where memory is no limit that is watched: on the CPU.
Memories = Callable[[torch.device], Memory | None]


def device_memory(device: torch.device) -> Memory | None:
    """What other processes and the limit of this one leave of a CUDA device."""
    if device.type != "cuda":
        return None
    unused, total = torch.cuda.mem_get_info(device)
    reserved, allocated = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    limit = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device)  # torch 2.6 does not say
    free = min(unused, int(limit * total) - reserved) + reserved - allocated
    return Memory(free, free + allocated)


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a trial takes by itself.

    Args:
        base: the frozen parameters; row: its adapter, gradient and moments.
        work: what a pass over one of its micro-batches keeps, logits included.
        rows, longest: of such a micro-batch, in rows and in tokens.
    """

    base: int
    row: int
    work: int
    rows: int
    longest: int

    def exceeds(self, memory: Memory) -> str | None:
        """Why a trial can never train in so much memory, as a sentence; None where it may."""
        total = self.base + self.row + self.work
        if total <= memory.total:
            return None
        return (
            f"it needs about {total / GIB:.3g} GiB by itself ({self.base / GIB:.3g} for the base, {self.row / GIB:.3g} "
            f"for its adapter, {self.work / GIB:.3g} for a pass over {self.rows} rows of up to {self.longest} tokens), "
            f"and this worker has {memory.total / GIB:.3g} GiB"
        )
