"""What the trainer counts before a sweep, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import embedded_config
from trainer.entry.probe import answer


def asked(**changes: Any) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(answer(embedded_config(**changes), [], speed=False))
    return read


def test_rows_and_label_tokens_are_counted() -> None:
    counted = asked()
    assert counted["rows"] == counted["trial_rows"] > 0
    assert counted["trial_tokens"] > counted["rows"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"batch_size": 4000}, "trains zero steps"),
        ({"dataset__data_files": "/nowhere.jsonl"}, "/nowhere.jsonl"),
        ({"tokenizer__max_seq_len": 4}, "has a label token, so that there is nothing to learn"),
        ({"optimizer___component_": "torch.optim.AdamWW"}, "did you mean AdamW?"),
    ],
)
def test_a_configuration_that_cannot_train_is_refused(changes: dict[str, Any], complaint: str) -> None:
    refused = asked(**changes)
    assert complaint in refused["error"]
    assert "untrusted" not in refused


def test_code_that_is_not_trusted_is_told_from_other_faults(tmp_path: Path) -> None:
    refused = asked(dataset___component_="torchtune.modules.early_exit_loss.np.load")
    assert refused["untrusted"]
    assert "numpy defines" in refused["error"]
