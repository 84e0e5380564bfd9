"""The unmodified wandb client tells the stand-in of its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.standin.server import StandIn

pytestmark = pytest.mark.slow


def test_a_run_from_init_to_finish(standin: StandIn, wandb_here: Any, tmp_path: Path) -> None:
    (tmp_path / "torchtune.yaml").write_text("seed: 1\n")
    run = wandb_here.init(
        project="p",
        id="one",
        name="trial-1",
        group="sweep",
        job_type="train",
        tags=["lora"],
        config={"lr": 0.1, "model": {"rank": 8}},
    )
    run.save(tmp_path / "torchtune.yaml", base_path=tmp_path, policy="now")
    for step in range(3):
        run.log({"loss": 3.0 - step})
    run.config.update({"late": True})
    run.summary["verdict"] = "kept"
    run.finish(exit_code=0)
    told = standin.runs["team/p/one"]
    assert (told.state, told.exit_code, told.starts) == ("finished", 0, 1)
    assert (told.display_name, told.group, told.job_type, told.tags) == ("trial-1", "sweep", "train", ["lora"])
    assert told.config == {"lr": 0.1, "model": {"rank": 8}, "late": True}
    assert [(row["_step"], row["loss"]) for row in told.history] == [(0, 3), (1, 2), (2, 1)]
    assert told.summary["loss"] == 1
    assert told.summary["verdict"] == "kept"
    assert told.files["torchtune.yaml"] == b"seed: 1\n"
    assert b"late" in told.files["config.yaml"]
