"""The test cluster does what SLURM does: GPUs, arrays, accounting, preemption; and its nodes die as nodes do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.waiting import until
from tests.slurm.cluster import Cluster, ClusterError

ROOT = Path(__file__).resolve().parents[2]


def submit(cluster: Cluster, script: str, out: Path, *options: str) -> str:
    """The new job's id; what it writes goes on in `out` when it is requeued."""
    return cluster.run("sbatch", "--parsable", "--open-mode=append", f"--output={out}", *options, f"--wrap={script}")


def state(cluster: Cluster, job: str) -> str:
    return cluster.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")


def sleeps(cluster: Cluster, name: str) -> int:
    return sum(process.command == "sleep" for process in cluster.processes(name))


def said(out: Path) -> list[str]:
    lines = out.read_text().splitlines() if out.exists() else []
    return [line for line in lines if not line.startswith(("slurmstepd", "srun"))]


def test_a_job_with_a_gpu_sees_that_one_only(cluster: Cluster, tmp_path: Path) -> None:
    script = "echo ${CUDA_VISIBLE_DEVICES:-none}; sleep 2"
    gpus = [submit(cluster, script, tmp_path / "gpu", "--gres=gpu:1", "-w", "n0") for _ in range(2)]
    submit(cluster, script, tmp_path / "cpu")
    until(lambda: len(said(tmp_path / "gpu")) == len(gpus) and bool(said(tmp_path / "cpu")))
    assert sorted(said(tmp_path / "gpu")) == ["0", "1"]
    assert said(tmp_path / "cpu") == ["none"]


def test_an_array_spreads_over_the_nodes(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, "echo $SLURMD_NODENAME; sleep 1", tmp_path / "out", "--array=0-3", "--exclusive")
    until(lambda: len(said(tmp_path / "out")) == 4)
    assert sorted(said(tmp_path / "out")) == cluster.names
    until(lambda: set(state(cluster, job).split()) == {"COMPLETED"})


def test_accounting_knows_how_a_job_ended(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, "exit 3", tmp_path / "out", "--account=lab", "--qos=urgent", "--comment=mine")
    columns = "--format=State,ExitCode,Account,QOS,Comment"
    until(lambda: cluster.run("sacct", "-XnP", "-j", job, columns) == "FAILED|3:0|lab|urgent|mine")


def test_without_accounting_only_the_queue_knows(bare_cluster: Cluster, tmp_path: Path) -> None:
    job = submit(bare_cluster, "exit 3", tmp_path / "out")
    until(lambda: state(bare_cluster, job) == "FAILED")
    with pytest.raises(ClusterError, match="accounting storage is disabled"):
        bare_cluster.run("sacct", "-XnP", "-j", job)


def test_a_job_of_low_is_signalled_and_requeued_when_high_needs_its_place(cluster: Cluster, tmp_path: Path) -> None:
    script = "trap 'echo told' USR2; echo life-$SLURM_RESTART_COUNT; for i in $(seq 300); do sleep 0.1; done"
    low = submit(cluster, script, tmp_path / "low", "-p", "low", "-w", "n3", "--exclusive", "--signal=B:USR2@60", "-t2")
    until(lambda: said(tmp_path / "low") == ["life-"])
    high = submit(cluster, "echo high; sleep 1", tmp_path / "high", "-p", "high", "-w", "n3", "--exclusive")
    until(lambda: said(tmp_path / "low")[-1:] == ["life-1"])
    assert said(tmp_path / "low")[:2] == ["life-", "told"]
    assert said(tmp_path / "high") == ["high"]
    assert state(cluster, high) == "COMPLETED"
    assert state(cluster, low) == "RUNNING"


def test_a_killed_node_takes_its_processes_with_it_and_a_lost_one_runs_on(cluster: Cluster, tmp_path: Path) -> None:
    """One test for both, because SLURM takes a quarter of a minute to notice either."""
    script = "echo life-$SLURM_RESTART_COUNT; setsid sleep 301 & env -i sleep 302 & {} sleep 303"
    failed = submit(cluster, script.format("srun"), tmp_path / "failed", "-w", "n1", "--no-requeue")
    requeued = submit(cluster, script.format(""), tmp_path / "requeued", "-w", "n1", "--requeue")
    doubled = submit(cluster, script.format(""), tmp_path / "doubled", "-w", "n2", "--requeue")
    until(lambda: (sleeps(cluster, "n1"), sleeps(cluster, "n2")) == (6, 3))
    killed, lost = cluster.processes("n1"), cluster.processes("n2")

    cluster.kill_node("n1")
    cluster.lose_node("n2")
    assert cluster.processes("n1") == set()
    assert not any(process.alive() for process in killed)
    until(lambda: state(cluster, failed) == "NODE_FAIL")
    until(lambda: state(cluster, requeued) == state(cluster, doubled) == "PENDING")
    assert all(process.alive() for process in lost)

    cluster.restore_node("n1")
    cluster.restore_node("n2")
    until(lambda: not any(process.alive() for process in lost))  # a node that is back is told to end them
    until(lambda: said(tmp_path / "requeued")[-1:] == said(tmp_path / "doubled")[-1:] == ["life-1"])


def test_a_node_that_is_back_early_has_lost_its_jobs_all_the_same(bare_cluster: Cluster, tmp_path: Path) -> None:
    job = submit(bare_cluster, "echo $SLURM_RESTART_COUNT; sleep 300", tmp_path / "out", "-w", "n0", "--no-requeue")
    until(lambda: state(bare_cluster, job) == "RUNNING")
    bare_cluster.kill_node("n0")
    bare_cluster.restore_node("n0")
    until(lambda: state(bare_cluster, job) == "NODE_FAIL")


def test_down_leaves_no_process_though_another_started_it(tmp_path: Path) -> None:
    """A third cluster, beside the two: from the command line, as a person would."""
    here = Cluster(Path(f"/tmp/sweep-slurm-{os.getpid()}"), nodes=1)
    tool = [sys.executable, "-m", "tests.slurm.cluster"]
    options = ["--nodes=1", "--gpus=0", "--no-accounting"]
    try:
        up = subprocess.check_output([*tool, "up", str(here.directory), *options], text=True, cwd=ROOT)
        assert up == f"export SLURM_CONF={here.env()['SLURM_CONF']}\n"
        job = submit(here, "sleep 300", tmp_path / "out")
        until(lambda: state(here, job) == "RUNNING")
        wanted = {"munged", "slurmctld", "slurmd", "slurmstepd", "sleep"}
        until(lambda: {process.command for process in here.processes() | here.daemons()} >= wanted)
        mine = here.processes() | here.daemons()
        subprocess.run([*tool, "down", str(here.directory)], check=True, cwd=ROOT)
        assert not any(process.alive() for process in mine)
        assert not here.directory.exists()
    finally:
        here.down()
