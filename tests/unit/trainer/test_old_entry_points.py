"""Names under which jobs of version 0.1 start, which may wait in a queue while the program is upgraded."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

from trainer.entry import slurm_job


def test_a_job_artifact_of_version_0_1_still_runs_the_job() -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_CONFIG")}
    command = [sys.executable, "-m", "trainer.launched"]
    result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 1
    assert "WANDB_CONFIG holds no job of a sweep" in result.stderr


def test_a_pickled_job_of_version_0_1_finds_its_functions() -> None:
    assert pickle.loads(b"ctrainer.cluster\nserve\n.") is slurm_job.serve
    assert pickle.loads(b"ctrainer.cluster\ncheck\n.") is slurm_job.check
