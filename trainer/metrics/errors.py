"""Why a metric cannot be measured."""

from __future__ import annotations


class MetricError(ValueError):
    """A metric cannot be measured, whatever is trained. The text is one sentence for a person."""


class MeasurementError(Exception):
    """A metric could not be measured this time; another try may succeed. The text is one sentence for a person."""
