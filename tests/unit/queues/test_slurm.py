"""What SLURM's commands say, what we hand to them, and how rarely they are asked."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
import yaml

from sweep.config.queues import OFFLINE_ENV
from sweep.config.settings import read_queue
from sweep.controller.ports import WorkerSpec
from sweep.errors import ConfigError, GiveUp, RetryLater
from sweep.model.states import JobState
from sweep.queues.slurm import commands
from sweep.queues.slurm import dispatcher as dispatch
from sweep.queues.slurm.dispatcher import SlurmDispatcher
from sweep.queues.slurm.section import Submitit
from sweep.queues.slurm.submit import Submission, executor_parameters, job_name
from sweep.wiring import creation
from sweep.wiring.backends import job_viewer, make_dispatcher, make_prefork
from sweep.wiring.compose import compose_config, freeze
from trainer.entry.slurm_job import serve
from trainer.room import Room, read_json, write_atomic


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        ("sbatch: error: invalid partition specified: nope\n", GiveUp, "sbatch: invalid partition specified: nope"),
        ("sbatch: error: Batch job submission failed: Invalid qos\n", GiveUp, "Invalid qos"),
        ("sbatch: error: Socket timed out on send/recv operation", RetryLater, "Socket timed out"),
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", RetryLater, "Unable"),
        ("sbatch: error: Batch job submission failed: Message receive failure", RetryLater, "Message receive"),
        (
            "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Job violates accounting/QOS policy",
            RetryLater,
            "Assoc",
        ),
        ("", GiveUp, "no output"),
        (
            "Traceback\n  File x\nFailedJobError: died\nsbatch: error: no such account",
            GiveUp,
            "sbatch: no such account",
        ),
    ],
)
def test_a_refusal_is_final_or_for_now(words: str, kind: type[Exception], said: str) -> None:
    error = commands.refusal("sbatch", words)
    assert type(error) is kind
    assert said in str(error)
    assert "Traceback" not in str(error)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("Priority", "other jobs are ahead of it (Priority)"),
        ("(Resources)", "no node is free yet (Resources)"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-3]", "a node that it needs is down or reserved (ReqNodeNotAvail)"),
        ("AssocGrpCpuLimit", "assoc grp cpu limit (AssocGrpCpuLimit)"),
        ("None", "the scheduler has not looked at it yet"),
        ("", "the scheduler has not looked at it yet"),
    ],
)
def test_why_a_job_waits_in_plain_words(code: str, said: str) -> None:
    assert commands.why_it_waits(code) == said


@pytest.mark.parametrize(
    ("state", "node", "code", "said"),
    [
        ("CANCELLED by 1000", "", "", "CANCELLED by 1000"),
        ("CANCELLED+", "n1", "0:0", "CANCELLED on n1"),
        ("FAILED", "n1", "7:0", "FAILED with exit code 7 on n1"),
        ("NODE_FAIL", "None assigned", "", "NODE_FAIL"),
        ("OUT_OF_MEMORY", "n2", "0:125", "OUT_OF_MEMORY on n2"),
    ],
)
def test_how_a_job_ended(state: str, node: str, code: str, said: str) -> None:
    assert commands.ended(state, node, code) == said


def test_the_queue_is_read_by_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = "a-w0001|12_3|RUNNING|n1|None|1|\na-w0001|12_4|PENDING||Priority|0|\nb|13|COMPLETED|n2|None|0|\n\nnoise\n"
    monkeypatch.setattr(commands, "command", lambda words: listing)
    first, second, third = commands.queue(["a-w0001", "b"])
    assert (first.id, first.index, first.node, first.restarts, first.runs) == ("12_3", 3, "n1", 1, True)
    assert (second.index, second.waits, second.reason) == (4, True, "Priority")
    assert (third.index, third.runs, third.waits) == (0, False, False)


def test_a_job_hands_nothing_of_its_own_down_to_what_it_submits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "mine")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("WANDB_SERVICE", "2-1-tcp")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    outside = commands.job_env()
    assert outside["SBATCH_PARTITION"] == "mine", "a person's default stays"
    assert "WANDB_SERVICE" not in outside
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    inside = commands.job_env()
    assert not {"SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SBATCH_PARTITION"} & set(inside)
    assert inside["SLURM_CONF"] == "/etc/slurm.conf"


@pytest.mark.parametrize(
    "words",
    [
        "slurm_load_jobs error: Protocol authentication error",
        "error: If munged is up, restart with --num-threads=10\nslurm_load_jobs error: Invalid authentication",
        "slurm_load_jobs error: Unexpected message received",
        "fatal: Could not establish a configuration source",
        "",
    ],
)
def test_no_word_of_squeue_or_scancel_is_final(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """munge or DNS that are away for a moment must not end a controller."""
    refuse(tmp_path, words)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    for ask, name in ((commands.queue, "squeue"), (commands.cancel, "scancel")):
        with pytest.raises(RetryLater, match=f"^{name}: .*{words[-30:] or 'no output'}$"):
            ask(["1"])


def test_a_job_that_is_gone_needs_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(tmp_path, "scancel: error: Kill job error on job id 1: Invalid job id specified")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    commands.cancel(["1"])


def refuse(directory: Path, words: str) -> None:
    """Put commands there that say this and fail."""
    for name in ("squeue", "scancel"):
        (directory / name).write_text(f"#!/bin/sh\ncat >&2 <<'EOF'\n{words}\nEOF\nexit 1\n")
        (directory / name).chmod(0o755)


@pytest.mark.parametrize(("name", "ask"), [("squeue", commands.queue), ("scancel", commands.cancel)])
def test_a_command_that_is_not_here_is_a_sentence(
    name: str, ask: Callable[[Sequence[str]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(GiveUp, match=f"the command {name} is not here; run this where SLURM is"):
        ask(["a"])


# --- what is submitted --------------------------------------------------------------------------------------------


def submission(room: Room, **words: Any) -> Submission:
    return Submission(room, "s", Submitit(**words), {"trials": 0, "env": {}})


def test_the_words_reach_sbatch(tmp_path: Path) -> None:
    words = Submitit(
        timeout_min=90,
        mem_gb=1.5,
        gpus_per_node=1,
        slurm_partition="gpu",
        slurm_setup=["module load cuda"],
        slurm_array_parallelism=3,
        slurm_signal_delay_s=30,
        slurm_additional_parameters={"reservation": "mine"},
    )
    text = Submission(Room(tmp_path), "s", words, {}).script("s-w0001", [f"w{n}" for n in range(5)])
    for line in ("--time=90", "--mem=1536MB", "--gpus-per-node=1", "--partition=gpu", "--array=0-4%3", "--nodes=1"):
        assert f"#SBATCH {line}" in text
    assert "#SBATCH --signal=USR2@30" in text
    assert "#SBATCH --reservation=mine" in text
    assert "#SBATCH --ntasks-per-node=1" in text
    assert text.index("module load cuda") < text.index("srun")
    assert executor_parameters(Submitit(slurm_mem="3G"), "x")["mem"] == "3G"


def test_two_sweeps_of_one_name_have_other_job_names(tmp_path: Path) -> None:
    names = {submission(Room(tmp_path / part)).name("w0001") for part in ("a", "b")}
    assert len(names) == 2
    assert all(name.startswith("s-") and name.endswith("-w0001") for name in names)


def test_what_is_pickled_is_a_name_and_plain_values(tmp_path: Path) -> None:
    """A node needs the trainer, and nothing of `sweep`; nothing heavy is loaded to read it."""
    data = cloudpickle.dumps((serve, ("room", "w0001", {"trials": 0, "gpu": False, "env": {}})))
    names = {str(argument) for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)}
    assert {"trainer.entry.slurm_job", "serve"} <= names
    assert not any(name.startswith("sweep") for name in names)
    (tmp_path / "call.pkl").write_bytes(data)
    code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb')); print(*({'torch', 'sweep'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "call.pkl"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
    assert pickle.loads(data)[0] is serve


# --- the dispatcher, with a scheduler of ours ---------------------------------------------------------------------


class Scheduler:
    """Answers in place of squeue and sbatch; counts how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: list[commands.QueuedJob] = []
        self.asked = 0
        monkeypatch.setattr(commands, "queue", self.queue)
        monkeypatch.setattr(commands, "max_array", lambda: 1000)
        monkeypatch.setattr(Submission, "submit", self.submit)
        monkeypatch.setattr(Submission, "complete", lambda *_: None)
        self.submitted: list[tuple[str, list[str], list[str]]] = []

    def queue(self, names: Sequence[str]) -> list[commands.QueuedJob]:
        self.asked += 1
        return [job for job in self.jobs if job.name in names]

    def submit(self, name: str, workers: Sequence[str], without: Sequence[str] = ()) -> list[str]:
        self.submitted.append((name, list(workers), list(without)))
        return [f"{len(self.submitted)}_{index}" for index in range(len(workers))]


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    return Scheduler(monkeypatch)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    (tmp_path / "room").mkdir()
    return Room(tmp_path / "room")


def job(dispatcher: SlurmDispatcher, index: int, state: str, restarts: int = 0, node: str = "n1") -> commands.QueuedJob:
    name = dispatcher.submission.name("w0001")
    return commands.QueuedJob(name, f"1_{index}", state, node, "Priority", restarts)


def test_the_scheduler_is_asked_once_in_a_while_however_often_we_look(room: Room, scheduler: Scheduler) -> None:
    dispatcher = SlurmDispatcher(room, submission(room), query_seconds=1000)
    assert dispatcher.poll() == {}
    dispatcher.start([WorkerSpec(f"w{n:04d}", n) for n in range(1, 17)])
    for _ in range(50):
        found = dispatcher.poll()
    assert scheduler.asked == 1, "one question for all sixteen"
    assert len(found) == 16
    assert len(scheduler.submitted) == 1, "one array"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The dispatcher's, which stands still: add to `now`."""
    found = SimpleNamespace(now=1000.0, time=time.time)
    found.monotonic = lambda: found.now
    monkeypatch.setattr(dispatch, "time", found)
    return found


def test_a_scheduler_that_takes_long_to_fail_leaves_time_for_all_else(
    room: Room, scheduler: Scheduler, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last answer holds until it is asked again; what workers write is seen all along."""
    dispatcher = SlurmDispatcher(room, submission(room), query_seconds=10)
    dispatcher.start([WorkerSpec("w0001", 0), WorkerSpec("w0002", 1)])
    scheduler.jobs = [job(dispatcher, 0, "RUNNING"), job(dispatcher, 1, "RUNNING")]
    dispatcher.poll()
    monkeypatch.setattr(commands, "queue", out_of_reach(clock))
    clock.now += 10
    for _ in range(3):
        with pytest.raises(RetryLater, match="did not answer"):
            dispatcher.poll()
        assert dispatcher.poll()["w0001"].state is JobState.RUNNING
        clock.now += 9
        dispatcher.poll()
        clock.now += 1
    said = {"reason": "it was drained", "node": "n1", "signalled": False, "failed": False}
    write_atomic(room.worker("w0002").exit, json.dumps(said))
    with pytest.raises(RetryLater):
        dispatcher.poll()
    assert [dispatcher.poll()[name].state for name in ("w0001", "w0002")] == [JobState.RUNNING, JobState.GONE]


def test_a_cancellation_that_fails_is_made_again_later_and_holds_nothing_up(
    room: Room, scheduler: Scheduler, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = SlurmDispatcher(room, submission(room), query_seconds=10)
    dispatcher.start([WorkerSpec("w0001", 0), WorkerSpec("w0002", 1)])
    monkeypatch.setattr(commands, "cancel", out_of_reach(clock))
    with pytest.raises(RetryLater):
        dispatcher.cancel(["w0001"])
    dispatcher.cancel(["w0001"])
    dispatcher.cancel(["w0002"])
    cancelled: list[str] = []
    monkeypatch.setattr(commands, "cancel", cancelled.extend)
    clock.now += 10
    for name in ("w0001", "w0002", "w0001"):
        dispatcher.cancel([name])
    assert cancelled == ["1_0", "1_1"]


def out_of_reach(clock: SimpleNamespace) -> Callable[[Sequence[str]], None]:
    """A command that answers nothing until its time is over."""

    def ask(names: Sequence[str]) -> None:
        clock.now += 60
        raise RetryLater("it did not answer within 60 s")

    return ask


def test_a_submission_in_doubt_is_looked_for_and_given_up_after_a_while(room: Room, scheduler: Scheduler) -> None:
    files = room.worker("w0001")
    dispatcher = SlurmDispatcher(room, submission(room), query_seconds=0)
    write_atomic(files.job, json.dumps({"place": 0, "name": dispatcher.submission.name("w0001"), "index": 0}))
    assert dispatcher.poll()["w0001"].state is JobState.PENDING
    old = files.job.stat().st_mtime - dispatch.INTENT_SECONDS - 1
    os.utime(files.job, (old, old))
    scheduler.jobs = [job(dispatcher, 0, "RUNNING")]
    assert dispatcher.poll()["w0001"].handle == "1_0", "adopted"
    assert read_json(files.job)["id"] == "1_0"
    again = SlurmDispatcher(room, submission(room), query_seconds=0)
    again.start([WorkerSpec("w0001", 0)])
    assert scheduler.submitted == []
    write_atomic(room.worker("w0002").job, json.dumps({"place": 1, "name": "never", "index": 0}))
    os.utime(room.worker("w0002").job, (old, old))
    assert again.poll()["w0002"].state is JobState.GONE
    assert room.worker("w0002").drain.exists(), "should it turn up after all, it has nothing to do"


def test_a_requeued_job_becomes_the_next_worker_of_its_place(room: Room, scheduler: Scheduler) -> None:
    dispatcher = SlurmDispatcher(room, submission(room), query_seconds=0)
    dispatcher.start([WorkerSpec("w0001", 3)])
    scheduler.jobs = [job(dispatcher, 0, "RUNNING")]
    assert dispatcher.poll()["w0001"].state is JobState.RUNNING
    scheduler.jobs = [job(dispatcher, 0, "PENDING", restarts=1, node="")]
    found = dispatcher.poll()
    assert (found["w0001"].state, found["w0001"].reason) == (JobState.GONE, "SLURM requeued its job")
    assert (found["w0001r1"].state, found["w0001r1"].place) == (JobState.PENDING, 3)
    scheduler.jobs = [job(dispatcher, 0, "RUNNING", restarts=2)]
    restarted = SlurmDispatcher(room, submission(room), query_seconds=0).poll()
    assert {name: seen.state.value for name, seen in restarted.items()} == {
        "w0001": "gone",
        "w0001r1": "gone",
        "w0001r2": "running",
    }
    assert len(scheduler.submitted) == 1


@pytest.mark.parametrize(
    ("said", "state", "drained"),
    [
        ({"reason": "it was drained", "node": "n1", "signalled": False, "failed": False}, JobState.GONE, False),
        ({"reason": "told to end", "node": "n1", "signalled": True, "failed": False}, JobState.RUNNING, True),
    ],
)
def test_a_worker_s_last_word(
    room: Room, scheduler: Scheduler, said: dict[str, Any], state: JobState, drained: bool
) -> None:
    """One that a signal told to end may be requeued: that is for the scheduler to say."""
    dispatcher = SlurmDispatcher(room, submission(room), query_seconds=1000)
    dispatcher.start([WorkerSpec("w0001", 0)])
    scheduler.jobs = [job(dispatcher, 0, "RUNNING")]
    dispatcher.poll()
    write_atomic(room.worker("w0001").exit, json.dumps(said))
    found = dispatcher.poll()["w0001"]
    assert (found.state, found.reason, found.node) == (state, said["reason"], "n1")
    assert room.worker("w0001").drain.exists() is drained
    assert scheduler.asked == 1


def test_nodes_on_which_workers_fail_to_start_are_left_out(room: Room, scheduler: Scheduler) -> None:
    dispatcher = SlurmDispatcher(room, submission(room), query_seconds=0)
    dispatcher.start([WorkerSpec("w0001", 0), WorkerSpec("w0002", 1), WorkerSpec("w0003", 2)])
    write_atomic(room.worker("w0003").beat, "1")
    scheduler.jobs = [job(dispatcher, 0, "FAILED"), job(dispatcher, 1, "CANCELLED", node="n2")]
    scheduler.jobs += [job(dispatcher, 2, "FAILED", node="n3")]
    assert {seen.state for seen in dispatcher.poll().values()} == {JobState.GONE}
    dispatcher.start([WorkerSpec("w0004", 0)])
    assert scheduler.submitted[-1][2] == ["n1"], "a cancelled job and one that had been ready blame no node"


def test_a_worker_that_a_signal_ended_before_it_was_ready_blames_no_node(room: Room, scheduler: Scheduler) -> None:
    dispatcher = SlurmDispatcher(room, submission(room), query_seconds=0)
    dispatcher.start([WorkerSpec("w0001", 0)])
    said = {"reason": "told to end by SIGUSR2 before it was ready", "node": "n1", "signalled": True, "failed": False}
    write_atomic(room.worker("w0001").exit, json.dumps(said))
    scheduler.jobs = [job(dispatcher, 0, "FAILED")]
    assert dispatcher.poll()["w0001"].state is JobState.GONE
    dispatcher.start([WorkerSpec("w0002", 0)])
    assert scheduler.submitted[-1][2] == []


def test_a_refusal_without_the_bad_nodes_is_tried_with_them(
    room: Room, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = SlurmDispatcher(room, submission(room), query_seconds=0)
    dispatcher.start([WorkerSpec("w0001", 0)])
    scheduler.jobs = [job(dispatcher, 0, "FAILED")]
    dispatcher.poll()

    def refuse(*_: object) -> list[str]:
        raise GiveUp("sbatch: Requested node configuration is not available")

    monkeypatch.setattr(Submission, "submit", refuse)
    with pytest.raises(RetryLater, match="retrying with n1, where a worker had failed to start"):
        dispatcher.start([WorkerSpec("w0002", 0)])
    assert "w0002" not in room.workers()
    with pytest.raises(GiveUp, match="not available"):
        dispatcher.start([WorkerSpec("w0002", 0)])


def test_who_only_looks_believes_the_controller_and_writes_nothing(room: Room, scheduler: Scheduler) -> None:
    controller = SlurmDispatcher(room, submission(room), query_seconds=50)
    controller.start([WorkerSpec("w0001", 0), WorkerSpec("w0002", 1)])
    scheduler.jobs = [job(controller, 0, "RUNNING"), job(controller, 1, "PENDING", node="")]
    controller.poll()
    before = sorted((path, path.stat().st_mtime_ns) for path in room.root.rglob("*"))
    reader = SlurmDispatcher(room, submission(room), query_seconds=50, reads=True)
    found = reader.poll()
    assert scheduler.asked == 1
    assert (found["w0001"].state, found["w0001"].node) == (JobState.RUNNING, "n1")
    assert found["w0002"].reason == "other jobs are ahead of it (Priority)"
    (room.root / "queue.json").unlink()
    scheduler.jobs = [job(controller, 0, "COMPLETED"), job(controller, 1, "RUNNING")]
    assert SlurmDispatcher(room, submission(room), reads=True).poll()["w0001"].state is JobState.GONE
    assert scheduler.asked == 2, "no controller says anything: the scheduler is asked"
    after = sorted((path, path.stat().st_mtime_ns) for path in room.root.rglob("*"))
    assert [entry for entry in after if entry[0] != room.root] == [
        entry for entry in before if entry[0].name != "queue.json" and entry[0] != room.root
    ]


# --- configuration ------------------------------------------------------------------------------------------------


def settings(*words: str) -> Any:
    return freeze(compose_config(["queue=slurm_cpu", *words]), "s").settings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["queue.workers=null"], "queue.workers=null: say how many SLURM jobs may run at once"),
        (["recipe.overrides.device=cuda"], "asks SLURM for no GPU; set queue.gpus_per_node=1"),
        (["queue.timeout_min=1"], "queue.slurm_signal_delay_s=90 is as long as the job"),
        (["queue.controller={timeout_min: 1}"], "queue.controller.slurm_signal_delay_s=120 is as long as the job"),
        (["queue.slurm_use_srun=false"], "there is no key slurm_use_srun"),
        (["queue.nodes=2"], "there is no key nodes"),
    ],
)
def test_what_slurm_would_trip_over_is_refused_before(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        settings(*words)


@pytest.mark.parametrize(
    "word",
    [
        "queue.gpus_per_node=1",
        "queue.slurm_gpus_per_task=1",
        "queue.slurm_gres='gpu:1'",
        "queue.slurm_additional_parameters={gpus: 1}",
    ],
)
def test_every_way_to_ask_for_a_gpu_counts(word: str) -> None:
    assert settings("recipe.overrides.device=cuda", word).queue.requests_gpus


def test_offline_nodes_are_told_so_and_what_they_need_is_looked_for_here(tmp_path: Path) -> None:
    frozen = settings("queue.offline=true", "queue.env={HF_HOME: /shared/hf}", "queue.cpus_per_task=3")
    dispatcher = make_dispatcher(Room(tmp_path), frozen)
    assert isinstance(dispatcher, SlurmDispatcher)
    env = dispatcher.submission.options["env"]
    assert env.items() >= {**OFFLINE_ENV, "HF_HOME": "/shared/hf", "OMP_NUM_THREADS": "3"}.items()
    assert make_prefork(frozen)._envs[0].items() >= OFFLINE_ENV.items()
    assert json.loads(json.dumps(dispatcher.submission.options)) == dispatcher.submission.options


def test_a_look_from_where_there_is_no_slurm_shows_what_is_known(
    room: Room, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    SlurmDispatcher(room, submission(room)).start([WorkerSpec("w0001", 0)])

    def none(names: Sequence[str]) -> list[commands.QueuedJob]:
        raise GiveUp("the command squeue is not here")

    monkeypatch.setattr(commands, "queue", none)
    found = job_viewer(room, settings())()["w0001"]
    assert (found.state, found.handle, found.reason) == (JobState.PENDING, "1_0", "not looked at yet")


# --- what reaches a batch script ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "where"),
    [
        ('queue.slurm_comment="a\\n#SBATCH --uid=0"', "queue.slurm_comment"),
        ('queue.slurm_partition="main\\r"', "queue.slurm_partition"),
        ('queue.slurm_setup=["module load x","a\\nb"]', "queue.slurm_setup"),
        ('queue.slurm_srun_args=["-n\\x001"]', "queue.slurm_srun_args"),
        ('+queue.slurm_additional_parameters={comment: "a\\nb"}', "queue.slurm_additional_parameters"),
        ('queue.controller={slurm_comment: "a\\nb"}', "queue.controller.slurm_comment"),
        ('queue.python="python\\nrm -r x"', "queue.python"),
    ],
)
def test_a_text_that_would_become_a_line_of_the_script_is_refused(word: str, where: str) -> None:
    key, _, text = word.partition("=")
    value = yaml.safe_load(text)
    section: dict[str, Any] = {"kind": "slurm", "workers": 1}
    name = key.lstrip("+").removeprefix("queue.")
    with pytest.raises(ConfigError, match=rf"^{re.escape(where)}=.* is not allowed; it must have no line break"):
        read_queue({**section, name: value})


def test_lines_of_the_script_may_have_tabs() -> None:
    read_queue({"kind": "slurm", "workers": 1, "slurm_setup": ["if true; then", "\tmodule load x", "fi"]})


@pytest.mark.parametrize("folder", ["a%j", "100%", "a\nb"])
def test_a_path_that_slurm_would_change_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / folder))
    words = ["queue=slurm", "queue.workers=1", "recipe.overrides.device=cpu", "objective.milestone_tokens=10"]
    with pytest.raises(ConfigError, match=r"has a % or a control character.*set SWEEP_ROOMS"):
        creation.create_room(freeze(compose_config(words), "s"), 40)
    assert not (tmp_path / folder).exists()


def test_jobs_of_a_room_that_replaced_another_have_other_names(tmp_path: Path) -> None:
    room = Room(tmp_path / "s")
    names = {job_name(room, "s", "w0001", token) for token in ("", "abc", "xyz")}
    assert len(names) == 3
    submission = Submission(room, "s", Submitit(), {}, token="abc")
    assert submission.name("w0001") == job_name(room, "s", "w0001", "abc")
    assert submission._call("w0001")[1][2] == {"token": "abc"}
    assert job_name(room, "s", "w0001") == Submission(room, "s", Submitit(), {}).name("w0001")
