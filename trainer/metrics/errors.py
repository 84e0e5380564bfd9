"""Why a metric cannot be measured."""

from __future__ import annotations

# How often a metric is tried before it is a problem.
TRIES = 3


class MetricError(ValueError):
    """A metric cannot be measured, whatever is trained. The text is one sentence for a person."""


class MeasurementError(Exception):
    """A metric could not be measured this time; another try may succeed. The text is one sentence for a person."""
