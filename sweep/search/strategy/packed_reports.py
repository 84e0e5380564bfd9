"""The reports of a trial that has ended, in a third of the memory.

Invariants: pure. What no strategy reads, the problems of metrics and the base's scores, is left out; for the rest the
sequence equals the one that it was made of, element by element; each access makes a new `Report`,
except for the last one, which strategies read most.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

from trainer.contract import Report

FIELDS = 12  # numbers for each report, beside its metrics
FINAL, NO_VAL_LOSS = 1, 2  # bits of the last of them


class PackedReports(Sequence[Report]):
    """An immutable sequence of reports.

    Args:
        reports: in order.
    """

    __slots__ = ("_last", "_metrics", "_numbers")

    def __init__(self, reports: Iterable[Report]) -> None:
        self._numbers = array("d")
        reports = tuple(reports)
        self._last: Report | None = reports[-1] if reports else None
        self._metrics = tuple(sorted({name for report in reports for name in report.scores}))
        for report in reports:
            self._numbers.extend(_pack(report))
            self._numbers.extend(report.scores.get(name, math.nan) for name in self._metrics)

    def __len__(self) -> int:
        return len(self._numbers) // self._width

    @property
    def _width(self) -> int:
        """Numbers for each report: those of every report, and the metrics that any of them has."""
        return FIELDS + len(self._metrics)

    @overload
    def __getitem__(self, index: int) -> Report: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Report, ...]: ...

    def __getitem__(self, index: int | slice) -> Report | tuple[Report, ...]:
        if isinstance(index, slice):
            return tuple(self[at] for at in range(*index.indices(len(self))))
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(index)
        if at == len(self) - 1 and self._last is not None:
            return self._last
        return _unpack(self._numbers[at * self._width : (at + 1) * self._width], self._metrics)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Sequence) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._numbers.tobytes())

    def __repr__(self) -> str:
        return f"PackedReports({list(self)!r})"


def _pack(report: Report) -> tuple[float, ...]:
    flags = FINAL * report.final + NO_VAL_LOSS * (report.val_loss is None)
    return (
        report.milestone,
        report.step,
        report.tokens,
        report.epoch,
        report.loss,
        report.grad_norm,
        report.lr,
        report.tokens_per_second,
        report.seconds,
        report.memory_gib,
        0.0 if report.val_loss is None else report.val_loss,
        flags,
    )


def _unpack(numbers: Sequence[float], metrics: Sequence[str]) -> Report:
    flags = int(numbers[11])
    scores = {name: value for name, value in zip(metrics, numbers[FIELDS:], strict=True) if not math.isnan(value)}
    return Report(
        milestone=int(numbers[0]),
        step=int(numbers[1]),
        tokens=int(numbers[2]),
        epoch=int(numbers[3]),
        loss=numbers[4],
        grad_norm=numbers[5],
        lr=numbers[6],
        tokens_per_second=numbers[7],
        seconds=numbers[8],
        memory_gib=numbers[9],
        val_loss=None if flags & NO_VAL_LOSS else numbers[10],
        final=bool(flags & FINAL),
        scores=scores,
    )
