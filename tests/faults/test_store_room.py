"""A sweep whose workers share only an object store with the controller, and what may happen to it.

The queue is `StoreDispatcher`: a directory that only the tests' processes know, as a cluster's scheduler would.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sweep.controller.loop import Controller
from sweep.controller.ports import Ports
from sweep.evaluation.controller import CombinedController, EvaluationMode, EvaluationStudy
from sweep.evaluation.jobs import evaluation_settings, evaluation_spec, evaluations_room
from sweep.model.identifiers import AttemptId
from sweep.model.states import Finished, Mode
from sweep.report.reader import open_reader
from sweep.search.study import OptunaStudy
from sweep.store.channel import StoreChannel, hold_store
from sweep.store.lease import Lease
from sweep.store.remote import LEASE_RECORD, download
from sweep.wiring import backends, session
from sweep.wiring.rooms import controller_lock, load_settings, save_settings
from sweep.wiring.simulate import Silent
from sweep.wiring.specifications import trial_spec
from tests.helpers.executions import check_executions, executions_dir
from tests.helpers.fakes import StoreDispatcher
from tests.helpers.kill_points import STEP_SECONDS, KillingListener, ended_by_itself, make_room
from tests.helpers.stores import Faulty, faulty, s3_server
from tests.helpers.sweep_checks import check_sweep, wait_for_workers
from trainer.identity import process_id
from trainer.room import Room, held, hold, read_text

TRIALS = 8
GRACE = 0.5


class StoreSweep:
    """A sweep over a store: the controller's room, what the queue knows, and the store's URL."""

    def __init__(self, rooms: Path, url: str, *overrides: str, grace: float = GRACE) -> None:
        self.room = make_room(rooms, *overrides)
        self.queue = Room(rooms.parent / "queue")
        self.queue.root.mkdir()
        self.url, self.grace = url, grace

    @contextmanager
    def channel(self, store: Faulty) -> Iterator[StoreChannel]:
        """As `sweep.store.channel.open_store_channel` makes it, quicker, and over a store that can be told to fail."""
        lease = Lease(store, "test", self.room.root / LEASE_RECORD, renew=self.grace / 5, grace=self.grace)
        with hold_store(self.room, store, lease) as channel:
            channel.min_interval = 0.01
            yield channel

    def controller(self, channel: StoreChannel, listener: Silent, mode: Mode = Mode.RUN) -> Controller:
        settings = load_settings(self.room)
        study = session.open_study(self.room, settings)
        env = {"STEP_SECONDS": STEP_SECONDS, **settings.queue.env}
        trials = settings.queue.trials_per_worker or 0
        dispatcher = StoreDispatcher(self.queue, (), 1, trials, env=env, url=self.url, token=settings.token)
        return Controller(
            ports=Ports(study, channel, dispatcher, session.BootClock()),
            limits=settings.limits(backends.worker_count(settings)),
            spec=lambda t, a, w: trial_spec(settings, study.params(t), AttemptId(t, a, w)),
            listener=listener,
            mode=lambda: mode,
            created=session.created_at(settings),
            poll_seconds=0.02,
        )

    @contextmanager
    def controllers(self, channel: StoreChannel, listener: Silent) -> Iterator[Controller | CombinedController]:
        yield self.controller(channel, listener)

    def run(self, die_after: int | None = None, store: Faulty | None = None) -> Finished:
        with (
            hold(controller_lock(self.room), "test") as mine,
            self.channel(store or faulty(self.url)) as channel,
            self.controllers(channel, KillingListener(die_after)) as controllers,
        ):
            assert mine
            return controllers.run().how

    def run_killed(self, die_after: int) -> bool:
        """Run a controller in a child that kills itself after so many effects; True where it came to its end."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if self.run(die_after) is Finished.DONE else 2
            finally:
                os._exit(code)
        return ended_by_itself(pid)

    def move(self) -> None:
        """Give up this machine's disk, and go on from what the store has."""
        shutil.rmtree(self.room.root)
        download(self.url, self.room.root)

    def check(self, trials: int = TRIALS) -> None:
        """What must hold in the end, as anybody sees it who has only the store."""
        wait_for_workers(self.queue)
        self.move()
        shutil.copytree(executions_dir(self.queue.root), executions_dir(self.room.root))
        check_sweep(self.room, trials)


class EvaluatedStoreSweep(StoreSweep):
    """The same with its evaluations, as `session.with_evaluations` puts them together."""

    def __init__(self, rooms: Path, url: str, *overrides: str) -> None:
        words = ("evaluate=heldout", "evaluate.dataset._component_=torchtune.datasets.alpaca_dataset")
        super().__init__(rooms, url, *words, *overrides)
        self.evaluation_queue = Room(self.queue.root / "evaluations")
        self.evaluation_queue.root.mkdir()

    @contextmanager
    def controllers(self, channel: StoreChannel, listener: Silent) -> Iterator[Controller | CombinedController]:
        main, settings = self.controller(channel, listener), load_settings(self.room)
        assert isinstance(main.ports.study, OptunaStudy)
        inner_room, inner = evaluations_room(self.room), evaluation_settings(settings)
        inner_room.root.mkdir(exist_ok=True)
        if not inner_room.sweep.exists():
            save_settings(inner_room, inner)
        env = {"STEP_SECONDS": STEP_SECONDS}
        url = f"{self.url}/evaluations"
        dispatcher = StoreDispatcher(self.evaluation_queue, (), 1, 0, env=env, url=url, token=settings.token)
        evaluation_mode = EvaluationMode(main.mode)
        with channel.within(inner_room, "evaluations") as inner_channel:
            study = EvaluationStudy(inner_room, main.ports.study.winners)
            evaluations = Controller(
                ports=Ports(study, inner_channel, dispatcher, session.BootClock()),
                limits=inner.limits(1),
                spec=lambda t, a, w: evaluation_spec(settings, self.room, AttemptId(t, a, w)),
                listener=listener,
                mode=evaluation_mode,
                created=session.created_at(settings),
                poll_seconds=0.02,
            )
            yield CombinedController(main, evaluations, evaluation_mode, waits=False)

    def check(self, trials: int = TRIALS) -> None:
        wait_for_workers(self.evaluation_queue)
        super().check(trials)
        winners = session.open_study(self.room, load_settings(self.room)).winners()
        assert evaluations_room(self.room).trials() == sorted(winners)
        for row in open_reader(self.room).state().rows:
            if row.number in winners:
                assert row.evaluation == "complete"
                assert row.scores == {"loss": pytest.approx(row.value)}
        check_executions(executions_dir(self.evaluation_queue.root))


@pytest.mark.parametrize("moves", [False, True], ids=["on one machine", "each on another machine"])
def test_evaluations_in_a_store_are_made_once_each_however_often_the_controller_dies(
    rooms: Path, tmp_path: Path, moves: bool
) -> None:
    sweep = EvaluatedStoreSweep(rooms, str(tmp_path / "store"))
    lives = 1
    while not sweep.run_killed(5 + lives % 7):
        lives += 1
        assert lives < 200
        if moves:
            sweep.move()
    assert lives > 3
    sweep.check()


def test_a_sweep_over_a_directory_store_ends_as_any_other(rooms: Path, tmp_path: Path) -> None:
    sweep = StoreSweep(rooms, str(tmp_path / "store"))
    assert sweep.run() is Finished.DONE
    sweep.check()


@pytest.mark.parametrize(
    ("moves", "trials_per_worker"), [(False, "null"), (True, "1")], ids=["on one machine", "each on another machine"]
)
def test_killed_after_every_effect(rooms: Path, tmp_path: Path, moves: bool, trials_per_worker: str) -> None:
    sweep = StoreSweep(rooms, str(tmp_path / "store"), f"queue.trials_per_worker={trials_per_worker}")
    lives = 1
    while not sweep.run_killed(4 + lives % 9 if moves else 1):
        # with a disk goes what its controller had not put yet, an ask or a tell; to come further it takes a few more
        lives += 1
        assert lives < 400
        if moves:
            sweep.move()
    assert lives > 3
    sweep.check()


def kill_workers(sweep: StoreSweep, times: int) -> None:
    """Kill a worker that the controller has seen at work, again and again."""
    queue = sweep.queue
    deadline = time.monotonic() + 600
    while times and time.monotonic() < deadline:
        time.sleep(0.3)
        for name in queue.workers():
            files = sweep.room.worker(name)
            if not (files.beat.exists() and files.assignments()):
                continue
            pid = process_id(read_text(queue.worker(name).lock) or "")
            if pid is not None and held(queue.worker(name).lock):
                os.kill(pid, signal.SIGKILL)
                times -= 1
                break


def test_workers_killed_in_the_middle_of_their_puts(rooms: Path, tmp_path: Path) -> None:
    options = ("pruner=none", "search.max_attempts=20", "queue.env={STEP_SECONDS: '0.1'}")
    sweep = StoreSweep(rooms, str(tmp_path / "store"), *options)
    killer = threading.Thread(target=kill_workers, args=(sweep, 4))
    killer.start()
    assert sweep.run() is Finished.DONE
    killer.join()
    sweep.check()
    assert any(row.attempts > 1 for row in open_reader(sweep.room).state().rows)


@pytest.mark.parametrize("lose_answer", [False, True])
def test_a_store_that_fails_now_and_then_costs_time_only(rooms: Path, tmp_path: Path, lose_answer: bool) -> None:
    sweep = StoreSweep(rooms, str(tmp_path / "store"))
    store = faulty(sweep.url)
    store.fail_share, store.lose_answer = 0.2, lose_answer
    assert sweep.run(store=store) is Finished.DONE
    sweep.check()


def test_a_store_that_answers_late_costs_time_only(rooms: Path, tmp_path: Path) -> None:
    """Every answer comes after what a worker does in the meantime: two milestones."""
    sweep = StoreSweep(rooms, str(tmp_path / "store"), "search.trials=4", grace=5.0)
    store = faulty(sweep.url)
    store.slow = 2 * float(STEP_SECONDS)
    assert sweep.run(store=store) is Finished.DONE
    sweep.check(4)


@pytest.mark.slow
def test_over_s3(rooms: Path) -> None:
    with s3_server() as s3:
        sweep = StoreSweep(rooms, f"{s3}/rooms/demo", grace=5.0)  # a server in Python on a busy machine
        assert not sweep.run_killed(9)
        assert sweep.run() is Finished.DONE
        sweep.check()
