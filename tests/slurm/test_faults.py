"""What clusters do to jobs: no trial is lost, told twice or trained twice at a time, and none changes its number."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path

import pytest

from sweep.controller.ports import WorkerSpec
from sweep.errors import GiveUp, RetryLater
from sweep.model.states import Finished, JobState, Mode
from sweep.queues.slurm import commands
from sweep.queues.slurm import dispatcher as slurm_dispatch
from sweep.queues.slurm.section import SlurmQueue
from sweep.report.reader import open_reader
from sweep.wiring.rooms import change_settings, load_settings, worker_log
from tests.helpers.executions import check_executions, executions_dir
from tests.helpers.kill_points import die_at_write, fast_slurm, run_here, run_killed
from tests.helpers.slurm_sweeps import ends, fast_room, held, job_of, node_of, running, submitted, training, use
from tests.helpers.sweep_checks import check_sweep, check_told_once
from tests.helpers.waiting import until
from tests.slurm.cluster import Cluster
from trainer.room import Room

TRIALS = 8


@pytest.fixture(autouse=True)
def on_the_cluster(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", "")
    use(cluster)
    monkeypatch.setattr(slurm_dispatch, "INTENT_SECONDS", 2.0)


def attempts(room: Room) -> list[int]:
    return [row.attempts for row in open_reader(room).state().rows]


def check_complete(room: Room, trials: int = TRIALS) -> None:
    rows = open_reader(room).state().rows
    assert [(row.number, row.state) for row in rows] == [(number, "complete") for number in range(trials)]
    check_told_once(room, range(trials))
    assert [sorted(report.milestone for report in row.reports) for row in rows] == [[1, 2, 3, 4]] * trials


@pytest.mark.parametrize("per_worker", ["null", pytest.param("1", marks=pytest.mark.deep)])
def test_the_controller_is_killed_after_every_effect(rooms: Path, cluster: Cluster, per_worker: str) -> None:
    room = fast_room(rooms, "queue.workers=3", f"queue.trials_per_worker={per_worker}", "search.trials=4")
    lives = 1
    while not run_killed(room, lambda: 1):
        lives += 1
        assert lives < 200
    assert lives > 8
    check_sweep(room, 4)
    assert len(submitted(cluster, room)) == len(room.workers()), "nothing was submitted twice"


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.deep), 2, 3])
def test_the_controller_is_killed_around_its_submissions(rooms: Path, cluster: Cluster, every: int) -> None:
    """Before and after each file and each started command, sbatch among them."""
    room = fast_room(rooms, "queue.workers=2", "search.trials=2")
    lives = 1

    def prepare() -> None:
        die_at_write(every + lives % 19)()  # more than what waiting for a lost submission writes

    while not run_killed(room, prepare):
        lives += 1
        assert lives < 200
    check_sweep(room, 2)
    workers_with_jobs = [name for name in room.workers() if job_of(room, name)]
    assert len(submitted(cluster, room)) == len(workers_with_jobs), "nothing was submitted twice"


def test_a_requeued_job_is_another_worker_and_its_trial_goes_on(rooms: Path, cluster: Cluster) -> None:
    room = fast_room(rooms, "queue.workers=2", step=0.2)
    with running(room), held(room):
        until(lambda: training(room))
        worker, trial = next(iter(training(room).items()))
        cluster.run("scontrol", "requeue", job_of(room, worker))
        until(room.worker(f"{worker}r1").beat.exists)
    check_complete(room)
    check_executions(executions_dir(room.root))
    assert attempts(room)[trial] == 2
    assert ends(room)[worker] == "SLURM requeued its job"
    assert room.worker(f"{worker}r1").assignments(), "it took trials again"


def test_a_node_dies_and_another_loses_its_network(rooms: Path, cluster: Cluster) -> None:
    """The lost one trains on, but nothing that it writes counts, and it ends."""
    words = ("queue.workers=2", "queue.slurm_exclusive=true", "search.trials=2")
    room = fast_room(rooms, *words, "queue.slurm_additional_parameters={no-requeue: true}")
    with running(room), held(room):
        until(lambda: len(training(room)) == 2)
        (dies, _), (silent, second) = training(room).items()
        lost = node_of(cluster, job_of(room, silent))
        for process in cluster.processes(lost):
            if process.command == "srun":  # on one machine it would still hear that its node failed
                os.kill(process.pid, signal.SIGSTOP)
        dead = node_of(cluster, job_of(room, dies))
        cluster.kill_node(dead)
        cluster.lose_node(lost)
        for node in (dead, lost):  # at once, as an administrator would; `test_cluster` waits until SLURM notices
            cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        until(room.attempt(second, 1).fence.exists)
    check_complete(room, 2)
    assert attempts(room) == [2, 2]
    assert ends(room)[dies].startswith("NODE_FAIL")
    fenced = room.attempt(second, 1)
    counted = fenced.counted()
    assert counted is not None
    assert fenced.reports.read_bytes()[:counted].count(b"\n") < 4


def test_a_job_is_cancelled_from_outside(rooms: Path, cluster: Cluster) -> None:
    room = fast_room(rooms, "queue.workers=2", "search.trials=4")
    with running(room), held(room):
        until(lambda: len(training(room)) == 2)
        worker, trial = next(iter(training(room).items()))
        cluster.run("scancel", job_of(room, worker))
        until(lambda: len(room.attempts(trial)) == 2)
    check_complete(room, 4)
    check_executions(executions_dir(room.root))
    assert ends(room)[worker].startswith("CANCELLED")


def test_preempted_jobs_stop_with_a_checkpoint_within_their_grace(rooms: Path, cluster: Cluster) -> None:
    words = ("queue.workers=2", "search.trials=2", "queue.slurm_partition=low", "queue.slurm_nodelist=n0")
    room = fast_room(rooms, *words)
    with running(room), held(room):
        until(lambda: len(training(room)) == 2)
        cluster.run("sbatch", "-p", "high", "-w", "n0", "--exclusive", "-o", "/dev/null", "--wrap=sleep 1")
        until(lambda: all(room.attempt(trial, 1).outcome.exists() for trial in (0, 1)))
    check_complete(room, 2)
    check_executions(executions_dir(room.root))
    assert min(attempts(room)) >= 2
    assert all(room.attempt(trial, 1).outcome.exists() for trial in (0, 1)), "nothing was lost"


def test_workers_stop_before_their_time_limit_and_are_replaced(rooms: Path) -> None:
    words = ("queue.workers=1", "queue.timeout_min=1", "queue.slurm_signal_delay_s=53", "search.trials=3")
    room = fast_room(rooms, *words, step=1.2)
    assert run_here(room).how is Finished.DONE
    check_complete(room, 3)
    check_executions(executions_dir(room.root))
    assert len(room.workers()) > 1
    assert any("time limit" in end or "told to end" in end or "COMPLETED" in end for end in ends(room).values())
    assert max(attempts(room)) > 1, "a trial went on from its checkpoint"


def test_a_node_on_which_nothing_starts_is_kept_away_from(rooms: Path) -> None:
    words = ("queue.workers=4", "queue.slurm_exclusive=true", "search.trials=8")
    bad = "queue.slurm_setup=['[ $SLURMD_NODENAME != n1 ] || exit 7']"
    room = fast_room(rooms, *words, bad, step=0.5)
    assert run_here(room).how is Finished.DONE
    check_complete(room)
    assert attempts(room) == [1] * TRIALS
    failed = [name for name, end in ends(room).items() if end.startswith("FAILED")]
    assert len(failed) == 1, "it drew one job, and no other"
    assert ends(room)[failed[0]].endswith("on n1")
    scripts = [path.read_text() for path in (room.root / "submitit").glob("*.sh")]
    assert any("--exclude=n1" in text for text in scripts)


def test_what_cannot_start_anywhere_ends_the_sweep_with_a_word_and_resume_goes_on(rooms: Path) -> None:
    room = fast_room(rooms, "queue.workers=2", "search.trials=2", "queue.slurm_setup=['exit 7']")
    finish = run_here(room)
    assert finish.how is Finished.FAILED
    assert "workers in a row ended before they were ready" in finish.reason
    assert "FAILED" in finish.reason
    assert open_reader(room).state().rows == ()
    change_settings(room, ["queue.slurm_setup=[]"])
    assert run_here(room).how is Finished.DONE
    check_complete(room, 2)


def test_a_refused_submission_is_told_in_slurm_s_words_and_leaves_nothing(rooms: Path, cluster: Cluster) -> None:
    room = fast_room(rooms, "queue.slurm_partition=nope", "search.trials=2")
    with pytest.raises(GiveUp, match="invalid partition specified: nope"):
        run_here(room)
    assert room.workers() == []
    assert not list((room.root / "submitit").glob("*.pkl"))
    change_settings(room, ["queue.slurm_partition=main"])
    assert run_here(room).how is Finished.DONE
    assert len(submitted(cluster, room)) == len(room.workers())


def test_arrays_are_cut_at_the_cluster_s_limit(rooms: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands.max_array() == cluster.max_array
    monkeypatch.setattr(commands, "max_array", lambda: 2)
    room = fast_room(rooms, "queue.workers=5", "search.trials=5", step=0.2)
    assert run_here(room).how is Finished.DONE
    parents = {job_of(room, name).partition("_")[0] for name in room.workers()}
    assert len(parents) == 3


def test_a_scheduler_that_does_not_answer_is_waited_for(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = fast_room(rooms, "queue.workers=2", "search.trials=4", step=0.3)
    real, calls = commands.command, [0]

    def busy(words: list[str], *rest: object, **more: object) -> str:
        calls[0] += 1
        if words[0] == "squeue" and calls[0] % 2:
            raise RetryLater("squeue: Unable to contact slurm controller (connect failure)")
        return real(words, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(commands, "command", busy)
    assert run_here(room).how is Finished.DONE
    check_complete(room, 4)


def test_stop_cancels_what_waits_and_resume_goes_on(rooms: Path, cluster: Cluster) -> None:
    words = ("queue.workers=2", "queue.slurm_exclusive=true", "queue.slurm_nodelist=n2", "search.trials=3")
    room = fast_room(rooms, *words, step=0.5)
    run_killed(room, lambda: 8)  # one trains, the other waits for the node
    assert run_here(room, Mode.STOP).how is Finished.STOPPED
    until(lambda: cluster.run("squeue", "-h") == "")
    assert run_here(room).how is Finished.DONE
    check_complete(room, 3)


def test_a_job_that_the_scheduler_has_forgotten_is_looked_up_in_accounting(
    rooms: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = fast_room(rooms)
    queue = load_settings(room).queue
    assert isinstance(queue, SlurmQueue)
    dispatcher = fast_slurm(room, dataclasses.replace(queue, query_seconds=0.01))
    dispatcher.start([WorkerSpec("w0001", 0)])
    until(room.worker("w0001").beat.exists)
    cluster.run("scancel", "--signal=KILL", job_of(room, "w0001"))
    until(lambda: commands.accounted([job_of(room, "w0001")]).get(job_of(room, "w0001"), "RUNNING")[:7] != "RUNNING")
    monkeypatch.setattr(commands, "queue", lambda names: [])
    until(lambda: dispatcher.poll()["w0001"].state is JobState.GONE)
    assert dispatcher.poll()["w0001"].reason.split()[0] in ("CANCELLED", "FAILED")


@pytest.mark.parametrize("python", ["no-such-python", f"{sys.executable} -S"])
def test_nodes_without_the_environment_end_the_sweep_with_a_word(rooms: Path, python: str) -> None:
    room = fast_room(rooms, "queue.workers=3", "search.trials=3", f"queue.python='{python}'")
    finish = run_here(room)
    assert finish.how is Finished.FAILED
    assert "workers in a row ended before they were ready (FAILED" in finish.reason
    logs = "".join(worker_log(room, name).read_text() for name in room.workers() if worker_log(room, name).exists())
    assert "no-such-python" in logs or "No module named 'submitit'" in logs
