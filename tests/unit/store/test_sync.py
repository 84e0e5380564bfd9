"""A worker's copy and the controller's, pass by pass, over a store in memory that fails when it is told to."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sweep.errors import ConfigError, RetryLater
from sweep.store import request_budget
from sweep.store.channel import StoreChannel
from sweep.store.controller_sync import ControllerSync
from sweep.store.download import download_room
from sweep.store.request_budget import MeteredStore, RequestBudget, common_prefixes
from tests.helpers.stores import Faulty, faulty
from trainer.contract import Outcome, OutcomeKind, Report, StopCause, TrialSpec, decode, encode
from trainer.presence import RoomLostError, RoomPresence, write_token
from trainer.room import Room, append_line, read_text, write_atomic
from trainer.store.objects import StoreError
from trainer.store.worker_sync import IncompleteUploadError, Pace, WorkerSync, synced_room

SPEC = TrialSpec("s", 3, 1, "w0001", {}, milestone_tokens=10)
REPORT = Report(1, 2, 10, 0, 2.5, 1.0, 1e-3, 100.0, 0.5)
NOW = Pace(look=0.0, poll=0.0, beat=0.0, report=0.0, bulk=0.0, last=0.5)


class World:
    """A controller and workers, each with a room of its own, and the store between them."""

    def __init__(self, tmp_path: Path, name: str) -> None:
        self.tmp_path, self.name = tmp_path, name
        self.url = f"memory://{name}"
        self.store = self.connect()
        room = Room(tmp_path / "controller")
        write_atomic(room.sweep, json.dumps({"name": "s", "created": 1.0}))
        write_atomic(room.root / "study.journal", "asked\n")
        self.channel = self.controller(room)

    def connect(self) -> Faulty:
        return faulty(self.url)

    def controller(self, room: Room, continued: bool = False) -> StoreChannel:
        sync = ControllerSync(self.store, room)
        sync.start(continued)
        return StoreChannel(sync)

    def worker(self, name: str = "w0001") -> WorkerSync:
        return WorkerSync(self.connect(), Room(self.tmp_path / name), name, NOW)

    def attempt(self, number: int = 1):  # type: ignore[no-untyped-def]
        return next(s for s in self.channel.observe([3], ["w0001", "w0002"])[0][3] if s.number == number)


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    return World(tmp_path, f"{tmp_path.parent.name}-{tmp_path.name}")


def report(worker: WorkerSync, milestone: int, attempt: int = 1) -> None:
    with worker.room.attempt(3, attempt).reports.open("a") as file:
        append_line(file, encode(replace(REPORT, milestone=milestone)))


def end(worker: WorkerSync, attempt: int = 1, kind: OutcomeKind = OutcomeKind.COMPLETED) -> None:
    write_atomic(worker.room.attempt(3, attempt).outcome, encode(Outcome(kind)))


def passes(worker: WorkerSync) -> None:
    worker.sync_small()
    worker.put_bulk()


# --- there and back -------------------------------------------------------------------------------------------------


def test_an_assignment_a_stop_and_a_drain_reach_the_worker(world: World) -> None:
    worker = world.worker()
    worker.sync_small()
    assert worker.dir.assignments() == []
    world.channel.assign(SPEC)
    worker.sync_small()
    assert worker.dir.assignments() == [(3, 1)]
    assert decode(TrialSpec, read_text(worker.room.attempt(3, 1).spec) or "") == SPEC
    world.channel.stop(3, 1, StopCause.PRUNED, "worse")
    world.channel.drain("w0001")
    worker.sync_small()
    assert read_text(worker.room.attempt(3, 1).stop) == "pruned\nworse"
    assert worker.dir.drain.exists()


def test_reports_and_an_outcome_reach_the_controller(world: World) -> None:
    worker = world.worker()
    world.channel.assign(SPEC)
    worker.sync_small()
    report(worker, 1)
    worker.sync_small()
    assert [r.milestone for r in world.attempt().reports] == [1]
    report(worker, 2)
    end(worker)
    worker.put_bulk()
    attempt = world.attempt()
    assert [r.milestone for r in attempt.reports] == [2]
    assert attempt.outcome is not None


def test_a_worker_sees_nothing_of_others_trials(world: World) -> None:
    world.channel.assign(SPEC)
    world.channel.assign(replace(SPEC, trial=4, worker="w0002"))
    worker = world.worker("w0002")
    worker.sync_small()
    assert worker.room.trials() == [4]


def test_what_a_worker_asks_for_does_not_grow_with_its_trials(world: World) -> None:
    worker = world.worker()
    for trial in range(20):
        world.channel.assign(replace(SPEC, trial=trial))
    worker.sync_small()
    worker.store.asked.clear()  # type: ignore[attr-defined]
    for _ in range(10):
        worker.sync_small()
    assert worker.store.asked == {"list": 10}  # type: ignore[attr-defined]


# --- order ----------------------------------------------------------------------------------------------------------


def test_an_outcome_is_put_last_and_a_checkpoint_after_its_reports(world: World) -> None:
    worker = world.worker()
    world.channel.assign(SPEC)
    worker.sync_small()
    files = worker.room.attempt(3, 1)
    report(worker, 1)
    write_atomic(files.checkpoint, "state")
    worker.put_bulk()
    write_atomic(files.adapter / "adapter_model.safetensors", "weights")
    files.steps.write_text("{}\n")
    report(worker, 2)
    write_atomic(files.checkpoint, "more state")
    end(worker)
    worker.put_bulk()
    puts = [key.removeprefix("trials/00003/1/") for what, key in worker.store.log if what == "put"]  # type: ignore[attr-defined]
    assert puts == [
        "reports.jsonl",
        "checkpoint.pt",
        "reports.jsonl",
        "checkpoint.pt",
        "steps.jsonl",
        "adapter/adapter_model.safetensors",
        "outcome.json",
    ]


def test_the_controller_puts_what_is_referred_to_first(world: World) -> None:
    world.store.log.clear()
    write_atomic(world.channel.sync.room.worker("w0002").job, "{}")
    with (world.channel.sync.room.root / "study.journal").open("a") as journal:
        journal.write("asked again\n")
    world.channel.assign(SPEC)
    write_atomic(world.channel.sync.room.attempt(3, 1).reports, "")  # its worker has begun it, and is to end
    world.channel.assign(replace(SPEC, attempt=2, worker="w0002"))
    puts = [key for what, key in world.store.log if what in ("put", "copy")]
    assert puts == [
        "study.journal",
        "workers/w0002/job.json",
        "trials/00003/1/spec.json",
        "workers/w0001/inbox/00003-1",
        "trials/00003/1/fenced.pt",
        "trials/00003/1/fence",
        "trials/00003/2/spec.json",
        "workers/w0001/drain",
        "workers/w0001/inbox/00003-1",
        "workers/w0002/inbox/00003-2",
    ]


def test_a_checkpoint_that_nothing_goes_on_from_leaves_the_store(world: World) -> None:
    worker = world.worker()
    world.channel.assign(SPEC)
    worker.sync_small()
    write_atomic(worker.room.attempt(3, 1).checkpoint, "state")
    worker.put_bulk()
    assert "trials/00003/1/checkpoint.pt" in world.store.list()
    worker.room.attempt(3, 1).checkpoint.unlink()
    end(worker, kind=OutcomeKind.STOPPED)
    worker.put_bulk()
    assert "trials/00003/1/checkpoint.pt" not in world.store.list()


# --- the next attempt -----------------------------------------------------------------------------------------------


def test_the_next_attempt_goes_on_from_the_fenced_checkpoint_and_late_puts_do_not_count(world: World) -> None:
    lost, following = world.worker(), world.worker("w0002")
    world.channel.assign(SPEC)
    lost.sync_small()
    report(lost, 1)
    write_atomic(lost.room.attempt(3, 1).checkpoint, "state at 1")
    passes(lost)
    report(lost, 2)  # its network is gone: none of this is put before the fence is raised
    write_atomic(lost.room.attempt(3, 1).checkpoint, "state at 2")
    world.channel.assign(replace(SPEC, attempt=2, worker="w0002"))
    end(lost)
    passes(lost)  # it is back, and puts all it has
    assert lost.room.attempt(3, 1).fence.exists(), "it has seen that it was fenced"
    assert lost.dir.drain.exists()
    following.sync_small()
    room = following.room
    assert room.attempt(3, 1).resume_point().read_text() == "state at 1"
    attempts = world.channel.observe([3], ["w0001", "w0002"])[0][3]
    assert [r.milestone for r in attempts[0].reports] == [1]
    assert (attempts[1].number, attempts[1].outcome) == (2, None)
    elsewhere = Room(world.tmp_path / "elsewhere")
    download_room(world.store, elsewhere)
    again = world.controller(elsewhere).observe([3], [])[0][3]
    assert [r.milestone for r in again[0].reports] == [1], "so does a controller on another machine see it"


def test_every_milestone_of_a_fenced_checkpoint_has_a_report_that_counts(world: World) -> None:
    """The worker goes on to put reports and checkpoints between each two requests of the controller that fences it."""
    worker = world.worker()
    world.channel.assign(SPEC)
    worker.sync_small()
    milestone = 0
    ask = Faulty._ask

    def meddling(self, what, key, act, count=1):  # type: ignore[no-untyped-def]
        nonlocal milestone
        if self is world.store and not worker.room.attempt(3, 1).fence.exists():
            milestone += 1
            report(worker, milestone)
            write_atomic(worker.room.attempt(3, 1).checkpoint, str(milestone))
            worker.put_bulk()
        return ask(self, what, key, act, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Faulty, "_ask", meddling)
        world.channel.assign(replace(SPEC, attempt=2, worker="w0002"))
    following = world.worker("w0002")
    following.sync_small()
    resumed = int(following.room.attempt(3, 1).resume_point().read_text())
    counted = [r.milestone for r in world.attempt(1).reports]
    assert 1 <= resumed <= max(counted)
    assert counted == list(range(1, max(counted) + 1))


def test_a_stopped_attempt_s_checkpoint_goes_to_the_next_worker(world: World) -> None:
    first, second = world.worker(), world.worker("w0002")
    world.channel.assign(SPEC)
    first.sync_small()
    write_atomic(first.room.attempt(3, 1).checkpoint, "state")
    stopped = Outcome(OutcomeKind.STOPPED, cause=StopCause.PREEMPTED)
    write_atomic(first.room.attempt(3, 1).outcome, encode(stopped))
    first.put_bulk()
    assert not first.room.attempt(3, 1).checkpoint.exists(), "the store has it"
    world.channel.observe([3], [])
    world.channel.assign(replace(SPEC, attempt=2, worker="w0002"))
    second.sync_small()
    assert second.room.attempt(3, 1).resume_point().read_text() == "state"
    assert second.room.attempts(3) == [1, 2]


# --- a room in the room ---------------------------------------------------------------------------------------------


def test_a_room_in_the_room_is_carried_below_it_and_asks_nothing_while_nothing_is_open(
    world: World, tmp_path: Path
) -> None:
    beside = Room(tmp_path / "controller" / "evaluations")
    write_atomic(beside.sweep, json.dumps({"name": "s-evaluations", "created": 1.0}))
    with world.channel.within(beside, "evaluations") as channel:
        world.store.asked.clear()
        channel.observe([], [])
        assert world.store.asked == {}
        write_atomic(beside.trial(3) / "asked", "")
        channel.assign(SPEC)
        worker = WorkerSync(faulty(f"{world.url}/evaluations"), Room(tmp_path / "judge"), "w0001", NOW)
        worker.sync_small()
        write_atomic(worker.room.attempt(3, 1).outcome, encode(Outcome(OutcomeKind.COMPLETED, scores={"loss": 1.5})))
        worker.put_bulk()
        (attempt,) = channel.observe([3], ["w0001"])[0][3]
        assert attempt.outcome is not None
        assert attempt.outcome.scores == {"loss": 1.5}
        write_atomic(beside.trial(3) / "told.json", "{}")
        channel.observe([], ["w0001"])
        assert "evaluations/trials/00003/told.json" in world.store.list(), "what was told last is put too"
    elsewhere = Room(tmp_path / "elsewhere")
    download_room(world.store, elsewhere)
    beside = Room(elsewhere.root / "evaluations")
    assert read_text(beside.trial(3) / "told.json") == "{}"
    with world.controller(elsewhere).within(beside, "evaluations") as channel:
        assert channel.observe([3], [])[0][3][0].outcome == attempt.outcome


# --- a store that fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lose_answer", [False, True])
@pytest.mark.parametrize("fails", range(1, 12))
def test_the_controller_s_acts_are_safe_to_repeat_wherever_they_failed(
    world: World, fails: int, lose_answer: bool
) -> None:
    world.channel.assign(SPEC)
    worker = world.worker()
    worker.sync_small()
    report(worker, 1)
    write_atomic(worker.room.attempt(3, 1).checkpoint, "state")
    passes(worker)
    world.store.fail_at, world.store.lose_answer = fails, lose_answer
    following = replace(SPEC, attempt=2, worker="w0002")
    for _ in range(3):
        try:
            world.channel.assign(following)
            world.channel.stop(3, 2, StopCause.PRUNED, "worse")
            world.channel.drain("w0002")
            break
        except RetryLater:
            continue
    else:
        pytest.fail("it never went through")
    second = world.worker("w0002")
    second.sync_small()
    assert second.room.attempt(3, 1).resume_point().read_text() == "state"
    assert second.room.attempt(3, 1).counted() == len(encode(replace(REPORT, milestone=1))) + 1
    assert read_text(second.room.attempt(3, 2).stop) == "pruned\nworse"
    assert second.dir.drain.exists()


@pytest.mark.parametrize("lose_answer", [False, True])
@pytest.mark.parametrize("fails", range(1, 14))
def test_a_worker_s_passes_go_on_wherever_they_failed(world: World, fails: int, lose_answer: bool) -> None:
    world.channel.assign(SPEC)
    worker = world.worker()
    store = worker.store
    assert isinstance(store, Faulty)
    store.fail_at, store.lose_answer = fails, lose_answer
    write_atomic(worker.dir.beat, "1")
    written = 0
    for _ in range(6):
        try:
            passes(worker)
        except StoreError:
            passes(worker)
        if worker.dir.assignments() and written < 3:
            written += 1
            report(worker, written)
            write_atomic(worker.room.attempt(3, 1).checkpoint, str(written))
            if written == 3:
                end(worker)
    attempt = world.attempt()
    assert [r.milestone for r in attempt.reports] == [1, 2, 3]
    assert attempt.outcome is not None
    assert store.fail_at == 0, "that many requests were made"
    assert world.store.get(["trials/00003/1/checkpoint.pt"]) == {"trials/00003/1/checkpoint.pt": b"3"}


def test_a_worker_that_was_cut_off_catches_up(world: World) -> None:
    world.channel.assign(SPEC)
    worker = world.worker()
    worker.sync_small()
    worker.store.fail = float("inf")  # type: ignore[attr-defined]
    for milestone in (1, 2, 3):
        report(worker, milestone)
        with pytest.raises(StoreError):
            worker.sync_small()
    end(worker)
    with pytest.raises(StoreError):
        worker.put_bulk()
    assert world.attempt().reports == ()
    worker.store.fail = 0  # type: ignore[attr-defined]
    passes(worker)
    attempt = world.attempt()
    assert [r.milestone for r in attempt.reports] == [1, 2, 3]
    assert attempt.outcome is not None


def test_a_worker_goes_on_while_the_store_keeps_its_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.channel.assign(SPEC)
    worker, held = world.worker(), threading.Event()
    worker.start()
    while not worker.dir.assignments():
        threading.Event().wait(0.01)
    ask = Faulty._ask

    def late(self, what, key, act, count=1):  # type: ignore[no-untyped-def]
        if self is worker.store:
            held.wait(30)
        return ask(self, what, key, act, count)

    monkeypatch.setattr(Faulty, "_ask", late)
    for milestone in (1, 2, 3):
        report(worker, milestone)
        write_atomic(worker.room.attempt(3, 1).checkpoint, str(milestone))
    end(worker)
    assert world.attempt().reports == (), "no answer has come yet"
    held.set()
    worker.stop()
    attempt = world.attempt()
    assert [one.milestone for one in attempt.reports] == [1, 2, 3]
    assert attempt.outcome is not None


def test_after_an_outage_of_the_store_the_silence_of_workers_begins_anew(world: World) -> None:
    clock = [0.0]
    channel = replace(world.channel, now=lambda: clock[0])
    worker = world.worker()
    write_atomic(worker.dir.beat, "1")
    worker.sync_small()
    beat = channel.observe([], ["w0001"])[1]["w0001"].beat
    assert beat is not None
    world.store.fail = 2
    for moment in (10.0, 100.0):
        clock[0] = moment
        with pytest.raises(RetryLater, match="failed by the test"):
            channel.observe([], ["w0001"])
    clock[0] = 200.0
    after = channel.observe([], ["w0001"])[1]["w0001"].beat
    assert after != beat, "no beat could be seen for so long, which is not the worker's fault"
    assert channel.observe([], ["w0001"])[1]["w0001"].beat == after
    world.store.fail = 1
    with pytest.raises(RetryLater):
        channel.observe([], ["w0001"])
    assert channel.observe([], ["w0001"])[1]["w0001"].beat == after, "one failed request is no outage"


# --- the worker's end -----------------------------------------------------------------------------------------------


def test_nothing_is_left_behind_when_a_worker_ends(world: World) -> None:
    world.channel.assign(SPEC)
    with synced_room(world.url, world.tmp_path / "w", "w0001", replace(NOW, look=60.0, poll=60.0, bulk=60.0)) as room:
        worker = WorkerSync(world.connect(), room, "w0001", NOW)
        worker.pull()
        report(worker, 1)
        write_atomic(room.attempt(3, 1).adapter / "adapter_config.json", "{}")
        room.worker("w0001").log.write_text("hello\n")
        end(worker)
    attempt = world.attempt()
    assert (len(attempt.reports), attempt.outcome is not None) == (1, True)
    assert {"workers/w0001/log", "trials/00003/1/adapter/adapter_config.json"} <= set(world.store.list())


def test_what_comes_after_the_outcome_is_put_too(world: World) -> None:
    """W&B may take what an attempt tracked only after the attempt has ended."""
    world.channel.assign(SPEC)
    worker = world.worker()
    worker.sync_small()
    end(worker)
    worker.put_bulk()
    write_atomic(worker.room.attempt(3, 1).path / "tracked", "run")
    worker.stop()
    assert world.store.get(["trials/00003/1/tracked"]) == {"trials/00003/1/tracked": b"run"}


def test_a_second_process_under_a_name_disturbs_nothing(world: World) -> None:
    """An agent starts a job again while its first process goes on, or after it has ended."""
    world.channel.assign(SPEC)
    with synced_room(world.url, world.tmp_path / "1", "w0001", NOW) as first:
        assert not (first.worker("w0001").path / "claim").exists()
        with synced_room(world.url, world.tmp_path / "2", "w0001", NOW) as second:
            assert (second.worker("w0001").path / "claim").exists()
            assert second.trials() == []
        assert world.attempt().outcome is None, "what the first trains was not given back"
    with synced_room(world.url, world.tmp_path / "3", "w0001", NOW) as third:
        assert (third.worker("w0001").path / "claim").exists()


@pytest.mark.parametrize("lose_answer", [False, True])
def test_a_claim_survives_a_store_that_fails(world: World, lose_answer: bool) -> None:
    worker = world.worker()
    store = worker.store
    assert isinstance(store, Faulty)
    store.fail_at, store.lose_answer = 1, lose_answer
    assert worker.claim()
    assert not world.worker().claim()


def test_an_assignment_that_came_too_late_is_given_back_and_a_broken_off_one_is_lost(world: World) -> None:
    world.channel.assign(SPEC)
    worker = world.worker()
    worker.start()
    while not worker.dir.assignments():
        threading.Event().wait(0.01)
    report(worker, 1)  # begun, and never ended
    world.channel.assign(replace(SPEC, trial=4))
    worker.stop()
    attempts = world.channel.observe([3, 4], ["w0001"])[0]
    assert attempts[3][0].outcome is None
    late = attempts[4][0].outcome
    assert late is not None
    assert (late.kind, late.cause) == (OutcomeKind.STOPPED, StopCause.PREEMPTED)


def test_a_worker_that_cannot_put_its_last_words_says_so(world: World) -> None:
    worker = world.worker()
    worker.store.fail = float("inf")  # type: ignore[attr-defined]
    worker.start()
    with pytest.raises(IncompleteUploadError, match=r"what w0001 wrote last is not in the store: .*failed by the test"):
        worker.stop()


# --- the controller's machine ---------------------------------------------------------------------------------------


def test_another_machine_goes_on_where_the_store_is(world: World, tmp_path: Path) -> None:
    """What the first had written only to its own disk counts on its own machine, and not once another has acted."""
    world.channel.assign(SPEC)
    first = world.channel.sync.room
    write_atomic(first.attempt(3, 2).spec, "never put")
    first.worker("w0009").assign(3, 2)
    second = Room(tmp_path / "second")
    download_room(world.store, second)
    assert second.attempts(3) == [1]
    channel = world.controller(second)
    write_atomic(second.root / "study.journal", "asked\nasked by the second\n")
    channel.drain("w0001")
    world.controller(first, continued=False)
    assert first.attempts(3) == [1]
    assert first.worker("w0009").assignments() == []
    assert (first.root / "study.journal").read_text() == "asked\nasked by the second\n"


def test_the_same_machine_goes_on_with_what_it_had_not_put(world: World) -> None:
    room = world.channel.sync.room
    write_atomic(room.attempt(3, 1).spec, encode(SPEC))
    room.worker("w0001").assign(3, 1)
    world.controller(room, continued=True)
    worker = world.worker()
    worker.sync_small()
    assert worker.dir.assignments() == [(3, 1)]


def test_a_study_that_only_takes_reports_in_is_put_now_and_then_and_before_every_specification(world: World) -> None:
    sync, clock = world.channel.sync, [100.0]
    sync._push.now = lambda: clock[0]
    journal = sync.room.root / "study.journal"

    def stored() -> bytes:
        return world.store.get(["study.journal"])["study.journal"]

    sync.push([])
    journal.write_text("asked\nreported\n")
    world.channel.observe([], [])
    assert stored() == b"asked\n"
    clock[0] = 161.0
    world.channel.observe([], [])
    assert stored() == b"asked\nreported\n"
    journal.write_text("asked\nreported\nasked\n")
    world.channel.assign(SPEC)
    assert stored() == b"asked\nreported\nasked\n"


def test_a_restart_puts_nothing_again_that_is_there(world: World) -> None:
    for trial in range(10):
        world.channel.assign(replace(SPEC, trial=trial))
    world.store.asked.clear()
    world.controller(world.channel.sync.room, continued=True)
    assert world.store.asked["put"] == 1, "the journal, whose growth is not known"


def test_another_sweep_in_the_store_is_refused(world: World, tmp_path: Path) -> None:
    other = Room(tmp_path / "other")
    write_atomic(other.sweep, json.dumps({"name": "t", "created": 2.0}))
    with pytest.raises(ConfigError, match="holds a sweep s already"):
        world.controller(other)


def test_a_pull_reads_what_has_changed_only(world: World, tmp_path: Path) -> None:
    world.channel.assign(SPEC)
    worker, laptop = world.worker(), Room(tmp_path / "laptop")
    worker.sync_small()
    report(worker, 1)
    write_atomic(worker.room.attempt(3, 1).checkpoint, "state")
    passes(worker)
    assert download_room(world.store, laptop, light=True) == 5  # sweep, journal, specification, inbox entry, reports
    assert not laptop.attempt(3, 1).checkpoint.exists()
    assert download_room(world.store, laptop, light=True) == 0
    report(worker, 2)
    end(worker)
    passes(worker)
    assert download_room(world.store, laptop, light=True) == 2
    assert len(laptop.attempt(3, 1).reports.read_text().splitlines()) == 2
    assert download_room(world.store, laptop) == 1
    assert laptop.attempt(3, 1).checkpoint.read_text() == "state"


def test_a_wish_from_elsewhere_reaches_the_controller_once(world: World) -> None:
    world.store.put("control", b"cancel")
    world.channel.observe([], [])
    assert read_text(world.channel.sync.room.root / "control") == "cancel"
    room = world.channel.sync.room
    (room.root / "control").unlink()  # it has obeyed, and ended
    world.channel.observe([], [])
    assert not (room.root / "control").exists()
    world.controller(room, continued=True).observe([], [])
    assert not (world.channel.sync.room.root / "control").exists()


class Paced:
    """A channel on a clock of the test's own, whose store counts requests as S3 does."""

    def __init__(self, world: World, per_minute: float = 60) -> None:
        self.time, self.jobs_ended = 0.0, 0
        self.world = world
        self.budget = RequestBudget(per_minute, lambda: self.time)
        sync = ControllerSync(MeteredStore(world.store, self.budget), world.channel.sync.room)
        sync.start(True)
        self.channel = StoreChannel(sync, budget=self.budget, job_ends=lambda: self.jobs_ended, now=lambda: self.time)

    def listings(self, seconds: float, trials: list[int]) -> int:
        """How often the store was listed in this time, by a controller that observes four times a second."""
        self.world.store.asked.clear()
        for _ in range(round(seconds * 4)):
            self.time += 0.25
            self.channel.observe(trials, [])
        return self.world.store.asked["list"]


def test_pulls_come_every_two_seconds_if_little_happens(world: World) -> None:
    paced = Paced(world)
    paced.channel.observe([3], [])
    assert paced.listings(60, [3]) == 30


def test_the_end_of_a_job_makes_the_next_observation_pull(world: World) -> None:
    world.channel.assign(SPEC)
    worker, paced = world.worker(), Paced(world)
    worker.sync_small()
    paced.channel.observe([3], [])
    report(worker, 1)
    end(worker)
    worker.put_bulk()
    assert paced.channel.observe([3], [])[0][3][0].outcome is None, "pulled a moment ago"
    paced.jobs_ended += 1
    assert paced.channel.observe([3], [])[0][3][0].outcome is not None, "before its trial counts as lost"
    assert paced.listings(1.75, [3]) == 0


@pytest.mark.slow
def test_many_reports_are_read_in_turn_within_the_budget_and_none_is_lost(world: World) -> None:
    running = list(range(20))
    workers = {trial: world.worker(f"w{trial:04d}") for trial in running}
    for trial, worker in workers.items():
        world.channel.assign(replace(SPEC, trial=trial, worker=worker.worker))
        worker.sync_small()
    paced = Paced(world, per_minute=20)
    paced.channel.observe(running, [])
    seen: dict[int, list[int]] = {trial: [] for trial in running}
    spent, written = paced.budget.spent, dict.fromkeys(running, 0)
    for tick in range(2 * 600):
        paced.time += 0.5
        if tick % 60 == 0 and tick < 2 * 420:
            for trial, worker in workers.items():
                written[trial] += 1
                with worker.room.attempt(trial, 1).reports.open("a") as file:
                    append_line(file, encode(replace(REPORT, milestone=written[trial])))
                worker.sync_small()
        for trial, attempts in paced.channel.observe(running, [])[0].items():
            seen[trial] += [one.milestone for one in attempts[0].reports]
    assert seen == {trial: list(range(1, 15)) for trial in running}, "40 reports a minute, and 20 requests"
    assert paced.budget.spent - spent <= 20 * 10 + paced.budget.capacity


def test_while_the_store_does_not_answer_nothing_is_observed(world: World) -> None:
    paced = Paced(world)
    paced.channel.observe([3], [])
    world.store.fail = float("inf")
    paced.time = 2.0
    with pytest.raises(RetryLater, match="failed by the test"):
        paced.channel.observe([3], [])
    world.store.asked.clear()
    paced.time = 3.0
    with pytest.raises(RetryLater, match="failed by the test"):
        paced.channel.observe([3], [])
    assert world.store.asked["list"] == 0, "and it is not asked all the time"
    world.store.fail = 0
    paced.time = 4.0
    paced.channel.observe([3], [])


def test_a_room_of_many_trials_is_listed_by_those_that_are_open(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_budget, "PAGE_KEYS", 10)
    for trial in range(20):
        world.channel.assign(replace(SPEC, trial=trial))
    worker = world.worker()
    worker.sync_small()
    spent = RequestBudget(60)
    sync = ControllerSync(MeteredStore(world.store, spent), world.channel.sync.room)

    def cost(trials: list[int]) -> int:
        before = spent.spent
        sync.pull(trials)
        return spent.spent - before

    assert cost([3]) == 5, "the whole room, whose size nobody knew: 42 keys"
    world.store.log.clear()
    assert cost([3]) == 1 + 1, "the trial, and what a person may want"
    assert [key for what, key in world.store.log if what == "list"] == ["trials/00003"]
    report(worker, 1)
    world.store.put("control", b"stop")
    worker.sync_small()
    world.channel.sync._pull._room_size = sync._pull._room_size
    assert len(world.attempt().reports) == 1
    assert read_text(sync.room.root / "control") == "stop"
    assert cost(list(range(20))) == 5 + 2, "fewer requests than one for each; what is new is read"
    assert cost(list(range(20))) == 5


@pytest.mark.parametrize(
    ("names", "beginnings"),
    [
        ([], []),
        (["00003"], ["00003"]),
        (["00001", "00500"], ["00001", "00500"]),
        ([f"{trial:05d}" for trial in range(500, 550)], ["005"]),
        ([f"w{number:04d}" for number in range(95, 145)], ["w00", "w01"]),
    ],
)
def test_what_counts_up_is_listed_by_how_it_begins(names: list[str], beginnings: list[str]) -> None:
    assert common_prefixes(names) == beginnings
    assert all(any(name.startswith(one) for one in beginnings) for name in names)


def test_however_long_a_sweep_has_run_a_pull_takes_a_few_requests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for trial in range(110):
        world.channel.assign(replace(SPEC, trial=trial, worker=f"w{trial:04d}"))
    worker = world.worker("w0103")
    worker.sync_small()
    monkeypatch.setattr(request_budget, "PAGE_KEYS", 30)
    monkeypatch.setattr(request_budget, "KEYS_PER_DIRECTORY", 2)
    running = range(100, 110)
    world.channel.observe(running, [f"w{trial:04d}" for trial in running])
    with worker.room.attempt(103, 1).reports.open("a") as file:
        append_line(file, encode(REPORT))
    write_atomic(worker.dir.beat, "1")
    worker.sync_small()
    world.store.log.clear()
    trials, workers = world.channel.observe(running, [f"w{trial:04d}" for trial in running])
    assert [key for what, key in world.store.log if what == "list"] == ["trials/0010", "workers/w010"]
    assert [report.milestone for report in trials[103][0].reports] == [1]
    assert workers["w0103"].beat is not None


# --- a room that was deleted ----------------------------------------------------------------------------------------


def assigned(world: World, token: str) -> WorkerSync:
    """A worker at work on an attempt of a sweep with this token."""
    write_atomic(world.channel.sync.room.sweep, json.dumps({"name": "s", "created": 1.0, "token": token}))
    world.channel.assign(replace(SPEC, token=token))
    worker = replace_token(world.worker(), token)
    assert worker.claim()
    write_token(worker.room, token)
    passes(worker)
    assert worker.dir.assignments() == [(3, 1)]
    return worker


def replace_token(worker: WorkerSync, token: str) -> WorkerSync:
    worker.token = token
    return worker


def empty(world: World) -> None:
    for key in world.store.list():
        world.store.delete(key)


@pytest.mark.parametrize("token", ["abc", ""])
@pytest.mark.parametrize("claimed", [True, False])
def test_a_worker_puts_nothing_into_a_prefix_that_is_another_sweep_s(world: World, token: str, claimed: bool) -> None:
    worker = assigned(world, token)
    empty(world)
    world.store.put("sweep.json", json.dumps({"name": "s", "created": 2.0, "token": "xyz"}).encode())
    world.store.put("trials/00003/1/spec.json", b"of the other")
    world.store.put("workers/w0001/inbox/00004-1", b"")
    if claimed:
        world.store.put("workers/w0001/claim", b"of the other")
    before = world.store.store.list()
    report(worker, 1)
    end(worker)
    write_atomic(worker.dir.beat, "7")
    for act in (worker.put_bulk, worker.sync_small, worker.put_beat, worker.stop):
        act()
    assert world.store.store.list() == before
    assert worker.dir.assignments() == [(3, 1)]
    assert "another sweep's" in RoomPresence(worker.room, token).problem()


def test_a_worker_does_not_bring_a_deleted_prefix_back(world: World) -> None:
    worker = assigned(world, "abc")
    empty(world)
    report(worker, 1)
    end(worker)
    worker.sync_small()
    worker.put_bulk()
    worker.stop()
    assert world.store.store.list() == {}


def test_a_job_that_was_queued_for_a_deleted_sweep_claims_no_name_of_the_next(world: World) -> None:
    world.store.put("sweep.json", json.dumps({"token": "xyz"}).encode())
    worker = replace_token(world.worker(), "abc")
    before = world.store.store.list()
    with pytest.raises(RoomLostError, match="this process ends and writes nothing"):
        worker.claim()
    assert world.store.store.list() == before


def test_another_creation_of_the_same_name_and_time_is_another_sweep(world: World, tmp_path: Path) -> None:
    write_atomic(world.channel.sync.room.sweep, json.dumps({"name": "s", "created": 1.0, "token": "abc"}))
    world.channel.sync.push([])
    other = Room(tmp_path / "other")
    write_atomic(other.sweep, json.dumps({"name": "s", "created": 1.0, "token": "xyz"}))
    with pytest.raises(ConfigError, match="the store holds another sweep s"):
        download_room(world.store, other)
