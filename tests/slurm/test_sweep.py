"""Whole sweeps with real training on the cluster, through all that happens there; and equal to the local queue."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sweep.report.reader import open_reader, read_outcome, read_steps
from tests.conftest import SHARED
from tests.helpers.cli import SMALL, outline, start, status, sweep
from tests.helpers.slurm_sweeps import SLOW, ends, job_of, node_of, training, use
from tests.helpers.sweep_checks import check_told_once
from tests.helpers.waiting import until
from tests.slurm.cluster import Cluster
from trainer.contract import OutcomeKind
from trainer.room import Room

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]

SLURM = ("queue=slurm_cpu", "queue.query_seconds=1", "queue.poll_seconds=0.1")
# A trial takes several seconds, so that something can happen in its middle.
DATA = (
    ("experiment=gsm8k_base1m", f"recipe.overrides.root={SHARED}", "recipe.overrides.dataset.split=train[:128]")
    if (SHARED / "base1m").is_dir()
    else ("experiment=demo", "space.optimizer.lr=tag(log,interval(3e-4,1e-1))", *SLOW)
)
VALIDATION = "recipe.overrides.dataset_val.split=train[:16]"
LONG = (*DATA, VALIDATION, "sampler=random", "objective.milestones=8", "search.seed=3")
# No verdict before the sixth milestone: what happens between the second and the fifth meets a trial that goes on.
LATE = ("pruner=median", "pruner.n_startup_trials=3", "pruner.n_warmup_steps=5")


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, rooms: Path) -> Any:
    """Points this test at a cluster."""
    monkeypatch.setenv("SLURM_CONF", "")
    return use


def pick(room: Room, taken: set[str], controller: subprocess.Popen[bytes]) -> tuple[str, int]:
    """A worker in the middle of a trial, between its second and fifth report, which nothing has happened to yet."""

    def found() -> dict[str, int]:
        assert controller.poll() is None, "the sweep ended"
        late = training(room, 5)
        return {w: trial for w, trial in training(room, 2).items() if w not in late and w not in taken}

    until(found)
    worker, trial = next(iter(found().items()))
    taken.add(worker)
    return worker, trial


def test_twelve_trials_through_all_that_a_cluster_does(on: Any, cluster: Cluster, rooms: Path, tmp_path: Path) -> None:
    """A killed controller, a requeue, a preemption and a node that dies, each in the middle of trials."""
    on(cluster)
    words = (*LONG, *LATE, *SLURM, "search.trials=12", "queue.workers=4", "queue.slurm_exclusive=true", "name=s")
    partition = "queue.slurm_partition=low"
    room, taken = Room(rooms / "s"), set[str]()
    first = start("run", *words, partition, log=tmp_path / "first")
    pick(room, set(), first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    jobs = len(cluster.run("squeue", "-h", "-r").splitlines())
    second = start("resume", "s", log=tmp_path / "second")
    requeued, _ = pick(room, taken, second)
    cluster.run("scontrol", "requeue", job_of(room, requeued))
    preempted, _ = pick(room, taken, second)
    node = node_of(cluster, job_of(room, preempted))
    cluster.run("sbatch", "-p", "high", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap=sleep 1")
    until(room.worker(preempted).exit.exists)
    dead, _ = pick(room, taken, second)
    node = node_of(cluster, job_of(room, dead))
    cluster.kill_node(node)
    cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    assert second.wait(1200) == 0, (tmp_path / "second").read_text()

    assert jobs == 4, "the jobs outlived their controller"
    rows = open_reader(room).state().rows
    assert [row.number for row in rows] == list(range(12))
    assert {row.state for row in rows} == {"complete", "pruned"}
    check_told_once(room, range(12))
    assert ends(room)[requeued] == "SLURM requeued its job"
    assert ends(room)[dead] in ("SLURM requeued its job", f"NODE_FAIL on {node}")
    again = [row for row in rows if row.attempts > 1]
    assert sum(row.attempts - 1 for row in again) >= 3
    assert any((outcome := read_outcome(room, row.number)) and outcome.resumed_from for row in again)
    check_losses(room, [row.number for row in again], [dict(row.params) for row in again])


def check_losses(room: Room, numbers: list[int], params: list[dict[str, Any]]) -> None:
    """The same trials, trained here without any disturbance, have the same losses at every step that both did."""
    trials = ", ".join("{" + ", ".join(f"{key}: {value}" for key, value in one.items()) + "}" for one in params)
    enqueue = f"warm_start.enqueue=[{trials}]"
    budget = f"search.trials={len(params)}"
    sweep("run", *LONG, "pruner=none", budget, enqueue, "queue.workers=2", "queue.threads=1", "name=calm", timeout=1200)
    for index, number in enumerate(numbers):
        disturbed, calm = read_steps(room, number), read_steps(Room(room.root.parent / "calm"), index)
        assert [step.step for step in disturbed] == list(range(1, len(disturbed) + 1)), "no step is missing"
        for ours, theirs in zip(disturbed, calm, strict=False):
            assert (ours.step, ours.tokens) == (theirs.step, theirs.tokens)
            assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
            assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)


def test_one_worker_gives_the_trials_and_losses_of_the_local_queue(on: Any, cluster: Cluster, rooms: Path) -> None:
    on(cluster)
    words = (*SMALL, "search.trials=6", "pruner=median", "pruner.n_startup_trials=2", "sampler.n_startup_trials=3")
    sweep("run", *words, "queue.workers=1", "name=here")
    sweep("run", *[w for w in words if w != "queue.threads=1"], *SLURM, "queue.workers=1", "name=there")
    for theirs, ours in zip(outline("there"), outline("here"), strict=True):
        assert theirs[:3] == ours[:3]
        shared = min(len(theirs[4]), len(ours[4]))  # a stop may reach a pruned trial a milestone sooner or later
        assert theirs[4][:shared] == ours[4][:shared]
    for trial in range(6):
        here, there = (read_steps(Room(rooms / name), trial) for name in ("here", "there"))
        shared = min(len(here), len(there))  # a stop may reach a pruned trial a step sooner or later
        assert shared > 0
        assert here[:shared] == there[:shared]


def test_without_accounting_a_lost_job_is_noticed_all_the_same(on: Any, bare_cluster: Cluster, rooms: Path) -> None:
    on(bare_cluster)
    room = Room(rooms / "bare")
    words = [word for word in SMALL if word != "queue.threads=1"]
    long = ("recipe.overrides.dataset.split=train[:256]", "pruner=none")
    log = rooms.parent / "log"
    run = start("run", *words, *long, *SLURM, "queue.workers=2", "name=bare", log=log)
    until(lambda: training(room, 1))
    worker = next(iter(training(room, 1)))
    bare_cluster.run("scancel", "--signal=KILL", job_of(room, worker))
    assert run.wait(1200) == 0, log.read_text()
    rows = status("bare")["rows"]
    assert [row["state"] for row in rows] == ["complete"] * 4
    assert max(row["attempts"] for row in rows) > 1
    assert ends(room)[worker].startswith(("FAILED", "CANCELLED")), "as squeue says it"


def test_status_says_where_workers_run_and_why_others_wait(on: Any, cluster: Cluster, rooms: Path) -> None:
    on(cluster)
    room = Room(rooms / "s")
    words = [word for word in SMALL if word != "queue.threads=1"]
    nodes = ("queue.slurm_nodelist=n3", "queue.slurm_exclusive=true", "recipe.overrides.dataset.split=train[:512]")
    run = start("run", *words, *nodes, *SLURM, "queue.workers=2", "name=s", log=rooms.parent / "log")
    until(lambda: training(room, 1))
    worker = next(iter(training(room, 1)))
    said = sweep("status", "s").stdout
    assert f"controller: process {run.pid} on " in said
    assert job_of(room, worker) in said
    assert "n3" in said
    assert "no node is free yet (Resources)" in " ".join(said.split()) or "(Priority)" in said
    assert str(room.root / "submitit" / f"{job_of(room, worker)}_0_log.out") in "".join(said.split())
    assert "starts on n3" in sweep("logs", "s").stdout
    stopped = sweep("stop", "s", timeout=600)
    assert "stopped: s" in stopped.stdout
    run.wait(600)
    until(lambda: cluster.run("squeue", "-h") == "")
    kinds = [read_outcome(room, trial) for trial in room.trials()]
    assert all(outcome is None or outcome.kind is not OutcomeKind.FAILED for outcome in kinds)


def test_the_doctor_sees_what_is_there_and_what_is_wrong(on: Any, cluster: Cluster, rooms: Path) -> None:
    on(cluster)
    good = sweep("doctor", "queue=slurm_cpu", "queue.slurm_account=lab").stdout
    assert "wrong" not in good
    assert "locks hold" in " ".join(good.split())
    bad = json.loads(sweep("doctor", "queue=slurm_cpu", "queue.slurm_partition=nope", "--json", code=1).stdout)
    said = {check["name"]: check["found"] for check in bad if not check["ok"]}
    assert said["slurm partition"] == "queue.slurm_partition=nope: there is no nope; allowed: high, low, main"
    assert "invalid partition" in said["a node"].lower()
    assert cluster.run("squeue", "-h") == ""
    assert not list(rooms.glob(".doctor-*"))


def test_nodes_without_the_gpu_that_a_trial_needs_end_the_sweep_with_a_word(
    on: Any, cluster: Cluster, rooms: Path
) -> None:
    """SLURM has given each job a GPU, and there is none behind it."""
    on(cluster)
    words = [word for word in SMALL if word != "queue.threads=1"]
    gpu = ("recipe.overrides.device=cuda", "queue.gpus_per_node=1", "queue.workers=3", "queue.slurm_exclusive=true")
    ended = sweep("run", *words, *gpu, *SLURM, "name=s", code=1)
    said = " ".join(ended.stdout.split())
    assert "3 workers in a row ended before they were ready (NoGpuError on n" in said
    assert "torch sees no CUDA device" in said
    assert open_reader(Room(rooms / "s")).state().rows == (), "no trial paid for it"


def test_what_offline_nodes_would_lack_is_missed_before_the_first_job(rooms: Path) -> None:
    words = ("queue=slurm_cpu", "queue.offline=true", "recipe.overrides.checkpointer.checkpoint_dir=/no/such/base")
    base = sweep("run", "experiment=demo", *words, code=2).stderr
    assert "checkpointer.checkpoint_dir=/no/such/base does not exist" in base
    hub = "recipe.overrides.dataset.source=tatsu-lab/alpaca"
    data = sweep("run", "experiment=demo", *words[:2], hub, "objective.milestone_tokens=99", code=2).stderr
    assert "cannot train here" in data
    assert "tatsu-lab/alpaca" in data
    assert not list(rooms.glob("*")), "no room was made, and no job submitted"


def test_without_slurm_a_word_and_no_traceback(rooms: Path, tmp_path: Path) -> None:
    words = [word for word in SMALL if word != "queue.threads=1"]
    command = ["sweep.cli", "run", *words, "queue=slurm_cpu"]
    env = {**os.environ, "PATH": "/nowhere"}

    done = subprocess.run([sys.executable, "-m", *command], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the command sbatch is not here" in done.stderr or "scontrol is not here" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_file_of_the_directory_where_it_is_typed_is_imported(
    on: Any, cluster: Cluster, rooms: Path, tmp_path: Path
) -> None:
    """Neither by the controller's job nor by a worker's, both of which start in the directory of the submission."""
    on(cluster)
    for name in ("trainer", "sweep", "types", "random", "torch", "datasets", "submitit", "pickle", "logging", "utils"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')\n")
    words = ("run", *SMALL, *SLURM, "search.trials=1", "queue.workers=1", "name=s", "--detach")
    program = [str(Path(sys.executable).with_name("sweep"))]
    started = subprocess.run([*program, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
    until(lambda: [row["state"] for row in status("s")["rows"]] == ["complete"])
