"""A loss that takes its time: a trial of several seconds that costs a fraction of them, so that something can happen
in its middle while other tests run beside it."""

from __future__ import annotations

import time

import torch

SECONDS = 0.08


class SlowLoss(torch.nn.CrossEntropyLoss):
    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        time.sleep(SECONDS)
        return super().forward(input, target)
