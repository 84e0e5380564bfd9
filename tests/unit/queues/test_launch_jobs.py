"""What a Launch job is given by the controller that pushes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweep.queues.launch.dispatcher import make_dispatcher
from sweep.wiring.compose import compose_config, freeze
from trainer import logs
from trainer.contract import JOB_KEY
from trainer.room import Room

WORDS = ("experiment=demo", "queue=launch_local_process", "wandb.entity=e")


@pytest.mark.parametrize(
    ("controller", "configured", "level"),
    [(None, (), None), ("DEBUG", (), "DEBUG"), ("DEBUG", ("queue.env={SWEEP_LOG_LEVEL: ERROR}",), "ERROR")],
)
def test_a_job_logs_at_the_level_of_its_controller(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    controller: str | None,
    configured: tuple[str, ...],
    level: str | None,
) -> None:
    if controller is not None:
        monkeypatch.setenv(logs.LEVEL_ENV, controller)
    settings = freeze(compose_config([*WORDS, *configured]), "s").settings
    job = make_dispatcher(Room(tmp_path), settings, gpu=False).payload("w0001", ())[JOB_KEY]
    assert job["options"]["env"].get(logs.LEVEL_ENV) == level
