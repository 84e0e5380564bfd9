"""Copies numbers from the device that trains to the host, without keeping the device waiting.

Invariant: only `Readback.read` waits.
"""

from __future__ import annotations

import torch


class Readback:
    """Numbers on their way to the host; the device continues with the work that it was given after them.

    Args:
        values: shape [n], on the device.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values
        self._copied: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def read(self) -> list[float]:
        """Wait for the numbers, and return them."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers
