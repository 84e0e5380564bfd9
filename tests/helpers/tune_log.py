"""Reads what torchtune's DiskLogger wrote."""

from __future__ import annotations

import re
from pathlib import Path

_FIELD = re.compile(r"(\w+):\s*([-+.\w]+)")


def read_tune_log(directory: Path) -> dict[int, dict[str, float]]:
    """Metrics by step, from the newest file of a DiskLogger in a directory."""
    files = sorted(directory.glob("*.txt"))
    metrics: dict[int, dict[str, float]] = {}
    for line in files[-1].read_text().splitlines() if files else []:
        match = re.match(r"Step (\d+) \| (.*)", line)
        if match:
            metrics[int(match[1])] = {key: float(value) for key, value in _FIELD.findall(match[2])}
    return metrics
