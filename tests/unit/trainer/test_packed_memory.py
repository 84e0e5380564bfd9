"""What a trial would take of a worker's memory, on made-up figures."""

from __future__ import annotations

import torch

from trainer.packed.memory import GIB, Memory, Need, device_memory


def test_what_can_never_fit_is_said_with_the_figures() -> None:
    need = Need(2 * GIB, GIB // 2, 8 * GIB, rows=64, longest=512)
    assert need.exceeds(Memory(free=0, total=11 * GIB)) is None, "it may, once others have gone"
    assert need.exceeds(Memory(free=10 * GIB, total=10 * GIB)) == (
        "it needs about 10.5 GiB by itself (2 for the base, 0.5 for its adapter, 8 for a pass over 64 rows of up to "
        "512 tokens), and this worker has 10 GiB"
    )


def test_memory_is_no_limit_on_the_cpu() -> None:
    assert device_memory(torch.device("cpu")) is None
