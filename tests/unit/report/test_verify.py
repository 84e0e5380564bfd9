"""When a trial counts as reproduced by torchtune's own recipe."""

from __future__ import annotations

import math

import pytest

from sweep.report.export import compare, verify_text
from trainer.contract import Step

NAN = math.nan


@pytest.mark.parametrize(
    ("logged", "ok", "unlogged"),
    [
        ({1: {"loss": 2.0, "grad_norm": 1.0}, 2: {"loss": 3.0, "grad_norm": 1.0}}, True, 0),
        ({1: {"loss": 2.0, "grad_norm": 1.0}, 2: {"loss": NAN, "grad_norm": 1.0}}, True, 1),
        ({1: {"loss": 2.0, "grad_norm": 1.0}, 2: {"loss": NAN, "grad_norm": 1.1}}, False, 1),
        ({1: {"loss": 2.1, "grad_norm": 1.0}, 2: {"loss": 3.0, "grad_norm": 1.0}}, False, 0),
        ({1: {"loss": 2.0, "grad_norm": NAN}, 2: {"loss": 3.0, "grad_norm": 1.0}}, False, 0),
        ({1: {"loss": NAN}, 2: {"loss": NAN}}, False, 2),  # nothing was compared
        ({1: {"loss": 2.0, "grad_norm": 1.0}}, False, 0),
        ({}, False, 0),
    ],
)
def test_what_counts_as_reproduced(logged: dict[int, dict[str, float]], ok: bool, unlogged: int) -> None:
    recorded = [Step(1, 10, 2.0, 1.0, 1e-3), Step(2, 20, 3.0, 1.0, 1e-3)]
    compared = compare(recorded, logged, 1e-6)
    assert (compared.ok, compared.unlogged) == (ok, unlogged)
    text = verify_text(compared)
    assert text.startswith("reproduced" if ok else "NOT reproduced")
    assert ("without a loss" in text) == (unlogged > 0)
