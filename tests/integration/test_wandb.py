"""Sweeps that W&B sees: the unmodified client and agent against the stand-in, real trials on the embedded base.

One server and one `wandb launch-agent` serve all scenes, which go on at the same time: an agent polls every ten s.
Of the two trials of a Launch sweep one would train for minutes and is pruned while it does, by a stop that reaches it;
the other's adapter is judged. One sweep is controlled by a job, over a bucket, and stopped from a "laptop" that has
neither its room nor its processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cli import command
from tests.helpers.launch_sweeps import SMALL, make_job
from tests.helpers.stores import s3_server
from tests.helpers.waiting import until
from tests.helpers.warm import WarmPopen, warm_processes, write_python
from tests.standin.model import Run
from tests.standin.plugin import environment, here
from tests.standin.server import StandIn
from trainer.room import Room, read_json, read_text

pytestmark = pytest.mark.slow

LRS = "warm_start.enqueue=[{optimizer.lr: 1e-3}, {optimizer.lr: 2e-3}]"
SHORT = ("recipe.overrides.epochs=1", "pruner=none", "search.trials=2", "queue.workers=2", LRS)
LAUNCHED = (
    "space.epochs=choice(1,400)",
    "queue=launch_local_process",
    "queue.name=lab",
    "queue.job=team/lab/sweep:latest",
    "queue.workers=2",
    "queue.query_seconds=1",
    "queue.poll_seconds=0.2",
    "search.trials=2",
    "evaluate=heldout",
    "warm_start.enqueue=[{epochs: 1, optimizer.lr: 1e-3}, {epochs: 400, optimizer.lr: 1e-3}]",
)
# Whatever gets as far as its sixth milestone is pruned: the long trial, and never the short one, which has three.
PRUNED = ("pruner=threshold", "pruner.upper=0.001", "pruner.n_warmup_steps=6")
# One warm worker, which trains on until it is stopped.
AWAY = ("queue.workers=1", "queue.trials_per_worker=null", "pruner=none", "controller=launch")
SCENES: dict[str, tuple[str, ...]] = {
    "room": (*LAUNCHED, *PRUNED),
    "alone": (*LAUNCHED, *PRUNED, "queue.channel=wandb"),
    "local": ("wandb=online", *SHORT),
    "packed": ("wandb=online", *SHORT, "queue.workers=1", "queue.slots=2"),
    "offline": ("wandb=offline", *SHORT),
}


FROM_A_LAPTOP = (("status", "--json"), ("stop",), ("best", "--json"))


@dataclass
class Scene:
    standin: StandIn
    rooms: Path
    said: dict[str, str]
    secrets: list[str]
    laptop: Path

    def room(self, name: str) -> Room:
        return Room((self.laptop if name == "away" else self.rooms) / name)

    def status(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.ask("status", name, "--json"))["rows"]
        return rows

    def ask(self, verb: str, name: str, *words: str) -> str:
        env = {**environment(self.standin), "SWEEP_ROOMS": str(self.room(name).root.parent)}
        with warm_processes():
            done = subprocess.run(command(verb, name, *words), env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{verb} {name}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def run(self, name: str, trial: int) -> Run:
        """The run of a trial's last attempt, as its specification names it."""
        spec = read_json(self.room(name).attempt(trial, self.room(name).attempts(trial)[-1]).spec)
        return self.standin.runs[f"team/lab/{spec['tracking']['run']}"]

    def told(self, name: str, trial: int, key: str) -> bool:
        """Whether a trial's run says this; no room needs to be here."""
        runs = [run for run in self.group(name) if (run.job_type, run.id[-5:]) == ("trial", f"{trial:05d}")]
        return any(key in run.summary for run in runs)

    def group(self, name: str) -> list[Run]:
        return sorted((run for run in self.standin.runs.values() if run.group == name), key=lambda run: run.id)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, warm: None) -> Iterator[Scene]:
    place = tmp_path_factory.mktemp("wandb")
    write_python(place)
    with s3_server() as s3, StandIn(place / "server") as standin:
        env = {**environment(standin), "SWEEP_ROOMS": str(place / "rooms")}
        env |= {"PATH": f"{place}:{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(Path.cwd())}
        with here(standin) as wandb:
            wandb.Api().create_run_queue("lab", "local-process", entity="team", prioritization_mode="V0")
        make_job(place / "job", env)
        agent_log = (place / "agent.log").open("w")
        words = ["launch-agent", "-q", "lab", "-e", "team", "-j", "10"]
        agent = subprocess.Popen(
            [sys.executable, "-m", "wandb", *words], env=env, stdout=agent_log, stderr=subprocess.STDOUT, cwd=place
        )
        logs = {name: place / f"{name}.log" for name in [*SCENES, "preempted", "away"]}
        # a service of whoever starts the sweep must not become the trials'
        leaking = {**env, "WANDB_SERVICE": "3-unix-/nowhere"}
        sweeps = {name: run_sweep(name, said, logs[name], leaking) for name, said in SCENES.items()}
        there = (*LAUNCHED, *AWAY, f"queue.room={s3}/sweeps")
        sweeps["away"] = run_sweep("away", there, logs["away"], {**leaking, "SWEEP_ROOMS": str(place / "laptop")})
        sweeps["preempted"] = preempt_one(Room(place / "rooms" / "preempted"), logs["preempted"], leaking)
        try:
            ended = {name: process.wait(1800) for name, process in sweeps.items()}
            said = {name: log.read_text() for name, log in logs.items()}
            assert set(ended.values()) == {0}, "\n".join(
                [str(ended), *said.values(), (place / "agent.log").read_text()]
            )
            found = Scene(standin, place / "rooms", said, [standin.key], place / "laptop")
            standin.wait(lambda _: found.told("away", 0, "eval/loss") and found.told("away", 1, "milestone"), 600)
            found.said |= {verb: found.ask(verb, "away", *more) for verb, *more in FROM_A_LAPTOP}
            yield found
        finally:
            for process in [agent, *sweeps.values()]:
                process.kill()
                process.wait()


def run_sweep(name: str, words: tuple[str, ...], log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return WarmPopen(
            command("run", f"name={name}", *SMALL, *words), stdout=output, stderr=subprocess.STDOUT, env=env
        )


def preempt_one(room: Room, log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """A sweep of one trial whose first worker is told to end once it has reported."""
    words = ("wandb=online", *SHORT, "recipe.overrides.epochs=4", "search.trials=1", "queue.workers=1")
    process = run_sweep("preempted", words, log, env)
    until(lambda: len((read_text(room.attempt(0, 1).reports) or "").splitlines()) >= 2, process)
    os.kill(int((read_text(room.worker("w0001").lock) or "").split()[0]), signal.SIGTERM)
    return process


def steps(run: Run) -> list[int]:
    """Optimizer steps in the order in which they were logged."""
    return [row["global_step"] for row in run.history if "loss" in row and "grad_norm" in row]


def milestones(run: Run) -> list[int]:
    return [row["milestone"] for row in run.history if "milestone" in row]


@pytest.mark.parametrize("name", ["room", "alone"])
def test_a_stop_reaches_a_running_job_and_every_end_is_right_on_both_sides(scene: Scene, name: str) -> None:
    short, long = scene.status(name)
    assert [short["state"], long["state"]] == ["complete", "pruned"], scene.said[name]
    assert short["reports"][-1]["final"]
    assert 6 <= len(long["reports"]) < 1000
    runs = [scene.run(name, trial) for trial in (0, 1)]
    assert [run.summary["trial/state"] for run in runs] == ["complete", "pruned"]
    assert [(run.state, run.starts) for run in runs] == [("finished", 2), ("finished", 1)], "one was judged"
    assert runs[1].summary["trial/reason"], "why it was pruned"
    assert [bool(run.stop_requests) for run in runs] == [False, name == "alone"]
    types = sorted(str(run.job_type) for run in scene.group(name))
    assert types == ["evaluation", "trial", "trial"], "no trial has a run too many"


@pytest.mark.parametrize("name", ["room", "alone"])
def test_each_trial_was_pushed_once_and_every_item_was_taken(scene: Scene, name: str) -> None:
    runs = {run.id for run in scene.group(name)}
    items = [item for item in scene.standin.items if item.spec["run_id"] in runs]
    assert sorted(item.spec["run_id"] for item in items) == sorted(runs)
    assert {item.state for item in items} == {"CLAIMED"}


@pytest.mark.parametrize("name", ["room", "alone", "away"])
def test_the_best_adapter_is_judged_by_a_job_of_the_queue(scene: Scene, name: str) -> None:
    row = scene.status(name)[0]
    assert row["evaluation"] == "complete", row["evaluation_reason"]
    assert row["scores"]["loss"] == row["value"], "the trial's own last val_loss"
    run = scene.run(name, 0)
    assert run.summary["eval/loss"] == pytest.approx(row["value"])
    assert (run.exit_code, run.summary["trial/state"], run.summary["val_loss"]) == (0, "complete", row["value"])


def test_a_controller_that_is_a_job_is_looked_at_and_stopped_from_a_laptop(scene: Scene) -> None:
    assert "away is controlled by a job of the queue lab" in scene.said["away"]
    short, long = json.loads(scene.said["status"])["rows"]
    assert (short["state"], short["evaluation"]) == ("complete", "complete")
    assert (long["state"], bool(long["reports"])) == ("running", True)
    assert "stopped: away" in scene.said["stop"]
    best = json.loads(scene.said["best"])
    assert (best["trial"], best["scores"]) == (0, short["scores"])
    assert (Path(best["adapter"]) / "adapter_model.safetensors").is_file(), "brought from the bucket"
    assert scene.status("away")[1]["state"] == "waiting", "it goes on with `sweep resume`"
    assert scene.room("away").attempt(1, 1).checkpoint.is_file()
    assert {run.state for run in scene.group("away")} == {"finished"}


@pytest.mark.parametrize("name", ["room", "alone"])
def test_the_study_has_the_numbers_that_wandb_has(scene: Scene, name: str) -> None:
    row = scene.status(name)[0]
    told = [(one["milestone"], one["val_loss"]) for one in scene.run(name, 0).history if "milestone" in one]
    assert [(report["milestone"], report["val_loss"]) for report in row["reports"]] == told
    assert (scene.room(name).attempt(0, 1).adapter / "adapter_config.json").is_file(), "for `best` and `export`"
    steps_here = (read_text(scene.room(name).attempt(0, 1).steps) or "").splitlines()
    assert [json.loads(line)["step"] for line in steps_here] == steps(scene.run(name, 0))


@pytest.mark.parametrize("name", ["local", "packed"])
def test_each_trial_of_a_local_sweep_is_a_run_of_its_own(scene: Scene, name: str) -> None:
    runs = scene.group(name)
    assert [run.config["sweep"]["trial"] for run in runs] == [0, 1]
    for run in runs:
        assert (run.state, run.exit_code, run.starts) == ("finished", 0, 1)
        assert steps(run) == sorted(set(steps(run)))
        assert milestones(run) == [1, 2, 3]
        assert run.config["optimizer"]["lr"] == (1e-3, 2e-3)[run.config["sweep"]["trial"]]
        assert b"lora_rank" in run.files["torchtune_config.yaml"]
        assert {
            "loss",
            "lr",
            "tokens",
            "tokens_per_second",
            "grad_norm",
            "global_step",
            "val_loss",
            "current_epoch",
        } <= set(run.summary)
    workers = {run.config["sweep"]["worker"] for run in runs}
    assert len(workers) == (1 if name == "packed" else 2)


def test_adapters_are_artifacts_whose_lineage_names_base_and_data(scene: Scene) -> None:
    found = [one for path, one in scene.standin.artifacts.items() if path.startswith("team/lab/local-adapter:")]
    assert {one.logged_by for one in found} == {run.path for run in scene.group("local")}
    assert {alias for one in found for alias in scene.standin.aliases(one)} >= {"trial-0", "trial-1"}
    assert all({"adapter_config.json"} <= set(one.files) for one in found)
    assert all(one.metadata["sweep"] == "local" and one.metadata["val_loss"] for one in found)
    used = [one for one in scene.standin.artifacts.values() if scene.group("local")[0].path in one.used_by]
    assert {one.type for one in used} == {"base-model", "dataset"}


def test_offline_runs_lie_in_the_room_and_nothing_was_sent(scene: Scene) -> None:
    assert scene.group("offline") == []
    for trial in (0, 1):
        files = scene.room("offline").attempt(trial, 1)
        assert list(files.path.glob("wandb/offline-run-*/run-*.wandb"))
        assert not (files.path / "tracked").exists()
        assert (scene.room("local").attempt(trial, 1).path / "tracked").exists()


def test_a_preempted_trial_goes_on_in_its_run_without_a_row_twice(scene: Scene) -> None:
    room = scene.room("preempted")
    assert room.attempts(0) == [1, 2], scene.said["preempted"]
    outcome = read_json(room.attempt(0, 1).outcome)
    assert (outcome["kind"], outcome["cause"]) == ("stopped", "preempted")
    (run,) = scene.group("preempted")
    assert (run.state, run.starts) == ("finished", 2)
    assert steps(run) == list(range(1, steps(run)[-1] + 1))
    assert milestones(run) == [one["milestone"] for one in scene.status("preempted")[0]["reports"]]
    assert milestones(run) == list(range(1, len(milestones(run)) + 1))
    assert run.config["sweep"]["attempt"] == 2


def test_no_key_is_written_anywhere(scene: Scene) -> None:
    for path in [path for top in (scene.rooms, scene.laptop) for path in top.rglob("*") if path.is_file()]:
        assert not any(secret.encode() in path.read_bytes() for secret in scene.secrets), path
    assert not any(secret in text for secret in scene.secrets for text in scene.said.values())


def test_nothing_was_refused(scene: Scene) -> None:
    assert scene.standin.refused == []
