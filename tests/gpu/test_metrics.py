"""Metrics of packed trials on one CUDA GPU: `pytest -m gpu tests/gpu/test_metrics.py -s`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.bench.packed_parity import compiled
from tests.helpers.packs import make
from trainer.base import Cache
from trainer.packed.pack import Pack

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_correct_labels_are_counted_in_the_pass_of_the_loss(dtype: str, tmp_path: Path) -> None:
    recipe = make(Cache(), tmp_path, {"device": "cuda", "dtype": dtype})
    alone = recipe.validate(correct=True)
    pack = Pack()
    pack.put(recipe)
    assert all(result.error is None for result in pack.step())
    plain, before = recipe.validate(), compiled()
    counted = recipe.validate(correct=True)
    assert alone is not None
    assert plain is not None
    assert counted is not None
    assert (counted.loss, counted.tokens) == (plain.loss, plain.tokens), "to the bit"
    assert counted.predicted == alone.predicted > counted.correct > 0
    assert abs(counted.correct - alone.correct) < 0.1 * alone.predicted, "one step changes little"
    assert compiled() - before == set()
