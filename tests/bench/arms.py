"""The arms of `python -m tests.bench.dispatch` and `gpu_dispatch.py`: one function each, from a job to its measures.

Invariants: every arm trains the configurations that `prepare` drew, which are those that `sweep run` draws from the
same overrides; the warm arm checks that they are. Each has the same environment, threads and slots, and saves each
trial's adapter. Nothing is imported from Ray here: its arm is a process of Ray's own environment.
"""

from __future__ import annotations

import json
import os
import queue
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sweep.config.torchtune import resolve
from sweep.report.export import RECIPE
from sweep.report.plan import sample_trials
from sweep.report.reader import read_steps
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.probe import probe_data
from tests.bench.clocks import ArmFailed, FirstWrites, run_to_end
from tests.bench.results import Measured, Trained
from tests.helpers.tune_log import read_tune_log
from trainer.room import Room, read_json

CHECKOUT = Path(__file__).resolve().parents[2]
NAME = "bench"


def environment(scratch: Path, **more: str) -> dict[str, str]:
    """This process's environment, with one thread and without a network, for what is measured."""
    kept = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    paths = [str(CHECKOUT), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "TIKTOKEN_CACHE_DIR": "",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        "TOKENIZERS_PARALLELISM": "false",
        **more,
    }


@dataclass(frozen=True, slots=True)
class Job:
    """What all arms do.

    Args:
        overrides: what `sweep run` is given beyond the budget, sampler, pruner and queue.
        gpus: each slot is given a GPU.
        halving: losers are stopped by successive halving, in the arms that can.
        ray_python: the interpreter of an environment that holds Ray.
    """

    overrides: tuple[str, ...]
    trials: int
    workers: int
    milestones: int
    scratch: Path
    gpus: bool = False
    halving: bool = False
    ray_python: str = ""

    def words(self) -> list[str]:
        """All overrides of `sweep run`."""
        pruner = ["pruner=successive_halving", "pruner.min_resource=1"] if self.halving else ["pruner=none"]
        return [
            f"name={NAME}",
            "sampler=random",
            *pruner,
            "objective=loss",
            f"objective.milestones={self.milestones}",
            f"search.trials={self.trials}",
            f"queue.workers={self.workers}",
            "queue.threads=1",
            "trial.checkpoint_every=0",
            "space.gradient_accumulation_steps=null",
            *self.overrides,
        ]

    def env(self, **more: str) -> dict[str, str]:
        """The environment of every process of every arm."""
        return environment(self.scratch, **more)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job's trials as resolved torchtune configurations, and the label tokens between two reports."""

    job: Job
    configs: tuple[dict[str, Any], ...]
    milestone_tokens: int


def prepare(job: Job) -> Prepared:
    """Draw the trials, and have the data and the programs' files read once, so that no arm pays for being first."""
    os.environ.update(job.env())
    settings = freeze(compose_config(job.words()), NAME).settings
    changes = sample_trials(settings, job.trials)
    configs = [resolve(settings.torchtune, change, {}) for change in changes]
    tokens = probe_data(settings).trial_tokens
    return Prepared(job, tuple(configs), max(1, tokens // job.milestones))


def warm(prepared: Prepared, scratch: Path) -> Measured:
    """`sweep run` as a person would: a controller with its warm workers."""
    job = prepared.job
    room = Room(scratch / NAME)
    trials = room.root / "trials"
    trials.mkdir(parents=True)
    command = [sys.executable, "-m", "sweep.cli", "run", *job.words()]
    with FirstWrites(trials, lambda path: path.name == "steps.jsonl") as first:
        ended = run_to_end(command, job.env(SWEEP_ROOMS=str(scratch)), scratch / "controller.log")
    trained = tuple(_of_room(room, number, first.times) for number in room.trials())
    asked = [read_json(room.attempt(trial.number, 1).spec)["config"] for trial in trained]
    if asked != [json.loads(json.dumps(config)) for config in prepared.configs]:
        raise ArmFailed("`sweep run` trained other configurations than were drawn for the other arms")
    return Measured("warm", ended.began, ended.seconds, trained, ended.cpu)


def process(prepared: Prepared, scratch: Path) -> Measured:
    """`tune run lora_finetune_single_device` for each trial, `workers` at a time."""
    job = prepared.job
    logs = scratch / "logs"
    logs.mkdir(parents=True)
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(job.workers):
        slots.put(slot)

    def one(number: int) -> tuple[int, int, float, float]:
        slot = slots.get()
        try:
            return number, slot, *_tune_run(prepared, number, slot, scratch)
        finally:
            slots.put(slot)

    with FirstWrites(logs, lambda path: path.suffix == ".txt") as first, ThreadPoolExecutor(job.workers) as pool:
        runs = list(pool.map(one, range(job.trials)))
    begins = {path.parent.name: at for path, at in first.times.items()}
    trained = []
    for number, slot, _, freed in runs:
        steps = read_tune_log(logs / str(number))
        last = steps[max(steps)]["loss"]
        trained.append(Trained(number, str(slot), begins[str(number)], freed, len(steps), last))
    began, over = min(run[2] for run in runs), max(run[3] for run in runs)
    return Measured("process", began, over - began, tuple(trained))


def ray(prepared: Prepared, scratch: Path) -> Measured:
    """Ray Tune over the same trainer; see `ray_arm.py`."""
    job = prepared.job
    if not job.ray_python:
        raise ArmFailed("the ray arm needs --ray-python (or RAY_PYTHON); tests/bench/README.md says how to make one")
    out = scratch / "out"
    out.mkdir(parents=True)
    task = {
        "configs": prepared.configs,
        "milestone_tokens": prepared.milestone_tokens,
        "workers": job.workers,
        "gpus": job.gpus,
        "halving": job.halving,
        "out": str(out),
    }
    (scratch / "task.json").write_text(json.dumps(task))
    command = [job.ray_python, str(Path(__file__).with_name("ray_arm.py")), str(scratch / "task.json")]
    env = job.env(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0")
    ended = run_to_end(command, env, scratch / "driver.log")
    trained = tuple(Trained(**read_json(path)) for path in sorted(out.glob("*.json"), key=lambda p: int(p.stem)))
    return Measured("ray", ended.began, ended.seconds, trained, ended.cpu)


ARMS: dict[str, Callable[[Prepared, Path], Measured]] = {"warm": warm, "process": process, "ray": ray}


def _of_room(room: Room, number: int, first: dict[Path, float]) -> Trained:
    files = room.attempt(number, 1)
    steps = read_steps(room, number)
    worker = str(read_json(files.spec)["worker"])
    return Trained(number, worker, first[files.steps], files.outcome.stat().st_mtime, len(steps), steps[-1].loss)


def _tune_run(prepared: Prepared, number: int, slot: int, scratch: Path) -> tuple[float, float]:
    """When one `tune run` began and when it was over."""
    path = scratch / f"trial-{number}.yaml"
    path.write_text(yaml.safe_dump(prepared.configs[number]))
    command = [sys.executable, "-m", "torchtune._cli.tune", "run", RECIPE, "--config", str(path)]
    command += [
        f"output_dir={scratch / 'out' / str(number)}",
        f"checkpointer.output_dir={scratch / 'out' / str(number)}",
        f"metric_logger.log_dir={scratch / 'logs' / str(number)}",
    ]
    visible = {"CUDA_VISIBLE_DEVICES": str(slot)} if prepared.job.gpus else {}
    ended = run_to_end(command, prepared.job.env(**visible), scratch / "output" / f"{number}.log")
    return ended.began, ended.began + ended.seconds
