"""The job artifact of a Launch queue: how it is named, found and made.

Invariant: every action may be repeated; unchanged code makes no new version.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

from sweep.errors import ConfigError, RetryLater, SweepError
from sweep.processes import python_command
from sweep.queues.launch.connection import KEYLIKE, Connection, asking
from sweep.queues.launch.section import LaunchQueue
from sweep.resources import trainer_dir
from trainer.process_end import how_it_ended, last_line

ENTRY_POINT = "python -m trainer.entry.launch_job"
JOB_SECONDS = 300.0


def job_path(connection: Connection, job: str) -> str:
    """The path of a job in W&B, `entity/project/name:alias`, also if the configuration does not name the entity."""
    name = job.rpartition("/")[2]
    return job if job.count("/") == 2 else f"{connection.home}/{name}"


def find_job(connection: Connection, path: str) -> str | None:
    """The version at a job's path, as `name:vN`; None if there is none."""
    with asking(connection.url):
        if not connection.api.artifact_exists(path, type="job"):
            return None
        artifact = connection.api.artifact(path, type="job")
        return f"{artifact.name.partition(':')[0]}:{artifact.version}"


def make_job(connection: Connection, queue: LaunchQueue, path: str) -> str:
    """Create the job artifact from the trainer's code or the configured image. Unchanged code makes no new version.

    Args:
        path: the path of the job, from `job_path`.

    Returns:
        Its version, `name:vN`.

    Raises:
        ConfigError: the resource needs an image, and none is configured.
        SweepError: wandb created none; the text has its own words.
    """
    if queue.resource != "local-process" and not queue.docker_image:
        raise ConfigError(
            f"queue.resource={queue.resource} runs images; build one from launch_queues/Dockerfile, push it, and set "
            "queue.docker_image to its name"
        )
    home, _, name = path.partition(":")[0].rpartition("/")
    with tempfile.TemporaryDirectory(prefix="sweep-job-") as folder:
        if queue.docker_image:
            words = ["image", queue.docker_image]
        else:
            stage_code(Path(folder))
            words = ["code", folder, "-E", ENTRY_POINT]
        said = _wandb(["job", "create", *words, "-n", name], home)
    version = find_job(connection, path)
    if version is None:
        raise SweepError(f"W&B created no job: {said}")
    return version


def stage_code(folder: Path) -> None:
    """Write what a code job consists of into a folder: the trainer, and the packages that it needs."""
    shutil.copytree(trainer_dir(), folder / "trainer", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements()), encoding="utf-8")


def requirements() -> list[str]:
    """The dependencies of this distribution, without its extras; empty if it is not installed."""
    try:
        lines = metadata.requires("sweeps-on-launch") or []
    except metadata.PackageNotFoundError:
        return []
    return [line for line in lines if "extra ==" not in line]


def _wandb(words: list[str], home: str) -> str:
    """Run wandb's command line in a process of its own, since it starts a run with a service; returns its last line."""
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    environment |= {"WANDB_SILENT": "false", "WANDB_CONSOLE": "off"}
    entity, _, project = home.partition("/")
    line = python_command("-m", "wandb", *words, "-e", entity, "-p", project)
    try:
        done = subprocess.run(
            line,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=JOB_SECONDS,
            check=False,
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        raise RetryLater(f"`wandb {words[0]} {words[1]}` took longer than {JOB_SECONDS:g} s; retry") from None
    return KEYLIKE.sub("…", last_line(done.stderr + done.stdout) or how_it_ended(done.returncode))
