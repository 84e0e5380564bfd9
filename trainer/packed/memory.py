"""How many bytes a device has for a pack, and how many a trial needs.

Invariant: all of it is arithmetic; only `device_memory` asks a device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

GIB = 2**30  # bytes
# A pass is planned to use this share of the free memory at most.
MARGIN = 0.9


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device: those that this process can still allocate, and those that it could have in all."""

    free: int
    total: int


# Returns a device's memory; None if memory is not watched there, as on the CPU.
MemoryProbe = Callable[[torch.device], Memory | None]


def device_memory(device: torch.device) -> Memory | None:
    """The memory that other processes and this process's own limit leave on a CUDA device; None for the CPU."""
    if device.type != "cuda":
        return None
    unused, total = torch.cuda.mem_get_info(device)
    reserved, allocated = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    # torch 2.6 has no such function
    limit = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device)
    free = min(unused, int(limit * total) - reserved) + reserved - allocated
    return Memory(free, free + allocated)


@dataclass(frozen=True, slots=True)
class Need:
    """The bytes that a trial needs by itself.

    Args:
        base: the frozen parameters.
        adapter: its adapter, with gradient and both moments.
        activations: what a pass over one of its micro-batches keeps, logits included.
        rows, longest: rows of such a micro-batch, and tokens of its longest row.
    """

    base: int
    adapter: int
    activations: int
    rows: int
    longest: int

    def exceeds(self, memory: Memory) -> str | None:
        """Why a trial can never train in this memory, as a sentence; None if it may."""
        total = self.base + self.adapter + self.activations
        if total <= memory.total:
            return None
        return (
            f"it needs about {total / GIB:.3g} GiB by itself ({self.base / GIB:.3g} for the base, "
            f"{self.adapter / GIB:.3g} for its adapter, {self.activations / GIB:.3g} for a pass over {self.rows} rows "
            f"of up to {self.longest} tokens), and this worker has {memory.total / GIB:.3g} GiB"
        )
