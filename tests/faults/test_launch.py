"""Launch sweeps whose controller, agent, jobs and server fail: nothing is pushed twice, no trial is lost or doubled.

Over both channels, with W&B in a directory (`tests.helpers.launch_fakes`). Waits of a minute are shortened.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sweep.errors import GiveUp
from sweep.model.effects import Finish
from sweep.model.states import Finished, Mode
from sweep.queues.launch import dispatcher as launch_dispatch
from sweep.report.reader import open_reader
from sweep.tracking.stopped_runs import mark_stopped, stopped_runs
from sweep.wiring.rooms import controller_lock
from sweep.wiring.simulate import Silent
from tests.helpers import kill_points
from tests.helpers.executions import executions_dir, read_marks
from tests.helpers.kill_points import die_at_write, launch_api, make_room, run_here, run_killed
from tests.helpers.launch_fakes import Agent, FakeLaunchApi
from tests.helpers.sweep_checks import check_sweep
from trainer.contract import StopCause
from trainer.room import Room, hold, read_json, read_text

LAUNCH = (
    "queue=launch_local_process",
    "queue.name=lab",
    "queue.poll_seconds=0.01",
    "queue.query_seconds=0.03",
    "wandb.entity=team",
    "wandb.project=p",
)
WAYS = {
    "room": ("queue.channel=room",),
    "alone": ("queue.channel=wandb",),
    "alone, several trials a job": ("queue.channel=wandb", "queue.trials_per_worker=null"),
}
# A job whose agent died between taking it and starting it is pushed anew.
PATIENCE = "queue.pending_seconds=6"
ONE = ("search.trials=1", "queue.workers=1", "pruner=none")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_dispatch, "INTENT_SECONDS", 0.4)
    monkeypatch.setattr(launch_dispatch, "CANCEL_SECONDS", 0.4)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return WAYS[request.param]


def launch_room(rooms: Path, *words: str, step: str = "0.01") -> Room:
    room = make_room(rooms, *LAUNCH, f"queue.env={{STEP_SECONDS: '{step}'}}", *words)
    executions_dir(room.root).mkdir()
    return room


def pushed(room: Room) -> list[str]:
    """Workers in the order of their pushes."""
    return [item.partition("-")[2] for item in launch_api(room).items()]


def check(room: Room, trials: int = 8, overlapping: Collection[int] = ()) -> None:
    assert pushed(room)
    assert len(set(pushed(room))) == len(pushed(room)), "no job was pushed twice"
    check_sweep(room, trials, overlapping)


class TroubleListener(Silent):
    """Keeps the messages of errors after which the controller retries."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def round_failed(self, message: str) -> None:
        self.errors.append(message)


def run_heard(room: Room, mode: Mode = Mode.RUN) -> tuple[Finish, list[str]]:
    heard = TroubleListener()
    with hold(controller_lock(room), "test") as mine:
        assert mine
        return kill_points.controller(room, heard, mode).run(), heard.errors


@contextmanager
def once(condition: Callable[[], bool], act: Callable[[], None]) -> Iterator[None]:
    """While the block runs, do this as soon as that holds."""
    left, missed = threading.Event(), []

    def watch() -> None:
        while not condition():
            if left.wait(0.002):
                missed.append(1)
                return
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    left.set()
    thread.join()
    assert not missed, "what was waited for did not happen"


def reports(room: Room, trial: int = 0, attempt: int = 1) -> int:
    return len((read_text(room.attempt(trial, attempt).reports) or "").splitlines())


def row(room: Room, trial: int = 0) -> tuple[str, int]:
    found = open_reader(room).state().rows[trial]
    return found.state, found.attempts


def run_of(room: Room, trial: int = 0, attempt: int = 1) -> str:
    return str(read_json(room.attempt(trial, attempt).spec)["tracking"]["run"])


# --- the controller is killed ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_after_every_single_effect(rooms: Path, way: tuple[str, ...]) -> None:
    room = launch_room(rooms, *way)
    lives = 1
    with Agent(launch_api(room)):
        while not run_killed(room, lambda: 1):
            lives += 1
            assert lives < 400
    assert lives > 3 * 8, "every trial alone needs an ask, an assignment and a tell"
    check(room)


@pytest.mark.slow
@pytest.mark.parametrize("every", [*(pytest.param(n, marks=pytest.mark.deep) for n in (1, 2, 3, 4)), 6])
def test_killed_around_every_write(rooms: Path, way: tuple[str, ...], every: int) -> None:
    room = launch_room(rooms, *way, "search.max_attempts=50")
    lives = 1

    def prepare() -> None:
        # on a slow machine a push takes longer than the short wait, and would be given up in each life anew
        launch_dispatch.INTENT_SECONDS *= 1 + lives // 50
        die_at_write(every if lives % 5 else every + 3)()

    with Agent(launch_api(room)):
        while not run_killed(room, prepare):
            lives += 1
            assert lives < 1500
    check(room)


def test_a_paused_trial_goes_on_in_another_job(rooms: Path, way: tuple[str, ...]) -> None:
    # Slow trials: the pause of the second one, which is promoted later, shall reach it before its end, two steps off.
    room = launch_room(rooms, *way, "sampler=random", "pruner=asha", step="0.5")
    with Agent(launch_api(room)):
        assert run_here(room).how is Finished.DONE
    check(room)
    promoted = [row for row in open_reader(room).state().rows if row.attempts > 1]
    assert any(row.state == "complete" for row in promoted)
    for row in promoted:
        assert sorted(report.milestone for report in row.reports) == list(range(1, len(row.reports) + 1))


def test_an_undisturbed_sweep_pushes_each_job_once(rooms: Path, way: tuple[str, ...]) -> None:
    room = launch_room(rooms, *way)
    with Agent(launch_api(room)):
        assert run_here(room).how is Finished.DONE
    check(room)
    jobs = len(pushed(room))
    assert jobs == 8 if "queue.trials_per_worker=null" not in way else jobs <= 3
    assert {state for state, _ in (row(room, n) for n in range(8))} == {"complete", "pruned"}


def test_a_controller_that_left_finds_what_went_on_without_it(rooms: Path, way: tuple[str, ...]) -> None:
    """Detached with jobs in the queue that no agent has taken: they do what they were given."""
    room = launch_room(rooms, *way)
    run_killed(room, lambda: 6)
    assert run_here(room, Mode.DETACH).how is Finished.DETACHED
    sent = pushed(room)
    assert sent
    with Agent(launch_api(room)):
        assert run_here(room).how is Finished.DONE
    check(room)
    assert pushed(room)[: len(sent)] == sent
    assert row(room)[1] == 1, "what was sent was not sent again"


def test_a_stopped_sweep_goes_on_with_its_numbers(rooms: Path, way: tuple[str, ...]) -> None:
    room = launch_room(rooms, *way)
    with Agent(launch_api(room)):
        run_killed(room, lambda: 8)
        assert run_here(room, Mode.STOP).how is Finished.STOPPED
        assert run_here(room).how is Finished.DONE
    check(room)


def test_a_cancelled_sweep_leaves_nothing_in_the_queue(rooms: Path, way: tuple[str, ...]) -> None:
    room = launch_room(rooms, *way)
    run_killed(room, lambda: 6)
    assert pushed(room)
    assert run_here(room, Mode.CANCEL).how is Finished.CANCELLED
    api = launch_api(room)
    assert [item for item in api.items() if api.item_state(item)] == []
    with Agent(api):
        time.sleep(0.3)
    assert read_marks(executions_dir(room.root)) == [], "no trial was begun"


# --- pushes that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("acted", [False, True], ids=["it did not arrive", "it arrived, and the answer was lost"])
def test_a_push_without_an_answer(
    rooms: Path, way: tuple[str, ...], acted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if acted:  # only what did not arrive is waited for until the end
        monkeypatch.setattr(launch_dispatch, "INTENT_SECONDS", 60.0)
    room = launch_room(rooms, *way, *ONE)
    launch_api(room).fail("push", 1, acted=acted)
    with Agent(launch_api(room)):
        finish, errors = run_heard(room)
    assert finish.how is Finished.DONE
    assert errors[0] == "W&B cannot answer now (503)"
    check(room, 1)
    assert pushed(room) == (["w0001"] if acted else ["w0002"])
    assert row(room) == ("complete", 1 if acted else 2)


def test_a_push_that_arrived_and_is_taken_too_late(rooms: Path, way: tuple[str, ...]) -> None:
    """It was given up, and another was pushed in its place: the late one finds that nobody waits for it."""
    room = launch_room(rooms, *way, *ONE, step="0.05")
    api = launch_api(room)
    api.fail("push", 1, acted=True)
    with Agent(api, {"w0001": "ignore"}), once(lambda: reports(room, 0, 2) > 0, lambda: start_by_hand(api, room)):
        assert run_here(room).how is Finished.DONE
    check(room, 1, overlapping=[] if way[0] == "queue.channel=room" else [0])  # W&B alone gives the late one no lock
    assert row(room) == ("complete", 2)
    assert pushed(room) == ["w0001", "w0002"]
    if way[0] == "queue.channel=room":
        assert 1 not in {mark.attempt for mark in read_marks(executions_dir(room.root))}
    else:
        assert run_of(room, 0, 1) != run_of(room, 0, 2), "what it may still say is said in another run"


def start_by_hand(api: FakeLaunchApi, room: Room) -> None:
    if os.fork() == 0:
        os.setpgid(0, 0)
        agent = Agent(api)
        agent._start(read_json(api.root / "items" / api.items()[0] / "spec")["config"]["sweep_job"], "")
        os._exit(0)


def test_a_push_that_is_refused_ends_the_controller_with_a_word_and_resume_pushes_it(
    rooms: Path, way: tuple[str, ...]
) -> None:
    room = launch_room(rooms, *way, *ONE)
    launch_api(room).fail("push", 1, error="giveup")
    with pytest.raises(GiveUp, match="W&B refuses it"):
        run_here(room)
    with Agent(launch_api(room)):
        assert run_here(room).how is Finished.DONE
    check(room, 1)
    assert row(room) == ("complete", 1)


# --- items -----------------------------------------------------------------------------------------------------------


def test_an_item_that_no_agent_takes_is_given_up_after_pending_seconds(rooms: Path, way: tuple[str, ...]) -> None:
    room = launch_room(rooms, *way, *ONE, "queue.pending_seconds=0.3")
    with Agent(launch_api(room), {"w0001": "ignore", "w0002": "ignore"}):
        assert run_here(room).how is Finished.DONE
    check(room, 1)
    # An agent on a busy machine takes the third item too late as well: each item that was given up has an attempt.
    assert row(room) == ("complete", len(pushed(room))), "nor does it count as lost, whatever search.max_attempts"
    assert len(pushed(room)) >= 3
    assert read_json(room.worker("w0001").job)["end"] == "no agent took it within 0.3 s (queue.pending_seconds)"
    assert launch_api(room).item_state(launch_api(room).items()[0]) is None


def test_without_pending_seconds_a_job_waits_in_its_queue(rooms: Path, way: tuple[str, ...]) -> None:
    room = launch_room(rooms, *way, *ONE)
    agent = Agent(launch_api(room))
    with once(lambda: len(launch_api(room).asked("item_state")) > 12, agent.begin):
        assert run_here(room).how is Finished.DONE
    agent.kill()
    assert (pushed(room), row(room)) == (["w0001"], ("complete", 1))


@pytest.mark.parametrize("behaviour", ["fail", "lost"])
def test_an_item_that_fails_or_is_lost_is_pushed_anew(rooms: Path, way: tuple[str, ...], behaviour: str) -> None:
    room = launch_room(rooms, *way, *ONE)
    api = launch_api(room)
    with Agent(api, {"w0001": "fail" if behaviour == "fail" else "ignore"}):
        if behaviour == "lost":
            with once(lambda: bool(api.items()), lambda: api.lose(api.items()[0])):
                assert run_here(room).how is Finished.DONE
        else:
            assert run_here(room).how is Finished.DONE
    check(room, 1)
    assert row(room) == ("complete", 2)
    said = {"fail": "the agent could not start it; see the agent's log", "lost": "its item is gone from the queue"}
    assert read_json(room.worker("w0001").job)["end"] == said[behaviour]


def test_jobs_that_never_start_end_the_sweep_with_a_word(rooms: Path, way: tuple[str, ...]) -> None:
    room = launch_room(rooms, *way, *ONE)
    with Agent(launch_api(room), {f"w000{n}": "fail" for n in range(1, 9)}):
        finish = run_here(room)
    assert finish.how is Finished.FAILED
    assert "3 workers in a row ended before they were ready (the agent could not start it" in finish.reason


def test_a_job_that_an_agent_starts_twice_is_served_once(rooms: Path, way: tuple[str, ...]) -> None:
    room = launch_room(rooms, *way, *ONE)
    with Agent(launch_api(room), {"w0001": "twice"}):
        assert run_here(room).how is Finished.DONE
    assert row(room) == ("complete", 1)
    if way[0] == "queue.channel=room":  # in W&B alone there is no lock: the second looks, and may look too early
        check(room, 1)


# --- jobs that die ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["dies at 1", "dies at 3"])
def test_a_job_that_dies_is_told_by_its_run_and_its_trial_goes_on(
    rooms: Path, way: tuple[str, ...], behaviour: str
) -> None:
    room = launch_room(rooms, *way, *ONE, "queue.silence_seconds=0.5", step="0.05")
    with Agent(launch_api(room), {"w0001": behaviour}):
        assert run_here(room).how is Finished.DONE
    check(room, 1)
    assert row(room) == ("complete", 2)
    assert read_json(room.worker("w0001").job)["end"] == "its run is crashed"
    assert run_of(room, 0, 1) == run_of(room, 0, 2), "attempts go on in one run"


def test_a_job_that_dies_before_it_said_anything(rooms: Path, way: tuple[str, ...]) -> None:
    """Its item stays claimed until the agent says that it failed."""
    room = launch_room(rooms, *way, *ONE)
    api = launch_api(room)

    def fail_it() -> None:
        (api.root / "items" / api.items()[0] / "state").write_text("failed")

    with (
        Agent(api, {"w0001": "dies at once"}),
        once(lambda: bool(api.items()) and api.item_state(api.items()[0]) == "claimed", fail_it),
    ):
        assert run_here(room).how is Finished.DONE
    check(room, 1)
    assert row(room) == ("complete", 2)


def test_a_job_that_dies_of_its_stop_is_pruned_and_not_trained_again(rooms: Path, way: tuple[str, ...]) -> None:
    words = (
        "search.trials=1",
        "queue.workers=1",
        "pruner=threshold",
        "pruner.upper=0.001",
        "queue.silence_seconds=3",
    )
    room = launch_room(rooms, *way, *words, step="0.1")
    with Agent(launch_api(room), {"w0001": "dies when stopped"}):
        assert run_here(room).how is Finished.FAILED, "no trial is complete"
    assert row(room) == ("pruned", 1)
    assert len(pushed(room)) == 1


def test_an_agent_that_goes_away_with_its_jobs(rooms: Path, way: tuple[str, ...]) -> None:
    room = launch_room(rooms, *way, "queue.silence_seconds=2", "search.max_attempts=9", PATIENCE, step="0.05")
    first, second = Agent(launch_api(room)), Agent(launch_api(room))

    def change() -> None:
        first.kill()
        second.begin()

    with first, once(lambda: any(reports(room, t, n) for t in room.trials() for n in room.attempts(t)), change):
        assert run_here(room).how is Finished.DONE
    second.kill()
    check(room)
    assert max(row(room, n)[1] for n in range(8)) > 1


# --- a person in W&B -------------------------------------------------------------------------------------------------


def test_a_run_that_a_person_stops_is_cancelled(rooms: Path, way: tuple[str, ...]) -> None:
    room = launch_room(rooms, *way, *ONE, step="0.1")
    api = launch_api(room)
    with Agent(api), once(lambda: reports(room) > 0, lambda: api.press_stop(run_of(room))):
        assert run_here(room).how is Finished.FAILED, "no trial is complete"
    found = open_reader(room).state().rows[0]
    assert (found.state, found.reason, found.attempts) == ("cancelled", "it was stopped in W&B", 1)


def test_a_job_that_the_controller_tells_to_end_is_not_taken_for_stopped_by_a_person(rooms: Path) -> None:
    """Its worker was silent for too long, and yet it lives: its trial goes on in the next job."""
    room = launch_room(rooms, *WAYS["alone"], *ONE, step="0.1")
    api = launch_api(room)

    def end() -> None:  # as the dispatcher does
        mark_stopped(room, run_of(room))
        api.stop(run_of(room), StopCause.INTERRUPTED)

    with Agent(api), once(lambda: reports(room) > 0, end):
        assert run_here(room).how is Finished.DONE
    assert row(room) == ("complete", 2)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_run_that_a_person_deletes_is_cancelled(rooms: Path, restarted: bool) -> None:
    """Where W&B is all that is shared. Elsewhere its job goes on, and the room says how it ends."""
    room = launch_room(rooms, *WAYS["alone"], *ONE, step="0.3")
    api = launch_api(room)
    with Agent(api):
        if restarted:
            with once(lambda: reports(room) > 0, lambda: api.delete_run(run_of(room))):
                run_killed(room, lambda: 5)
                while reports(room) == 0:
                    kill_points.controller(room, Silent()).observer.observe()
        with once(lambda: reports(room) > 0, lambda: api.delete_run(run_of(room))):
            assert run_here(room).how is Finished.FAILED, "no trial is complete"
    found = open_reader(room).state().rows[0]
    assert (found.state, found.reason, found.attempts) == ("cancelled", "its run was deleted in W&B", 1)
    assert read_json(room.worker("w0001").job)["end"] == "its run was deleted in W&B"


def test_over_a_room_a_deleted_run_changes_nothing(rooms: Path) -> None:
    room = launch_room(rooms, *ONE, step="0.1")
    api = launch_api(room)
    with Agent(api), once(lambda: reports(room) > 0, lambda: api.delete_run(run_of(room))):
        assert run_here(room).how is Finished.DONE
    assert row(room) == ("complete", 1)


# --- a server that is away -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["runs", "all"])
def test_a_server_that_is_down_while_trials_run_and_end(rooms: Path, way: tuple[str, ...], what: str) -> None:
    """For longer than a beat may be missing."""
    room = launch_room(rooms, *way, "queue.silence_seconds=1.5", step="0.05")
    api = launch_api(room)

    def outage() -> None:
        api.fail(what)
        time.sleep(3.0)
        api.mend(what)

    with Agent(api), once(lambda: reports(room) > 0, outage):
        finish, errors = run_heard(room)
    assert finish.how is Finished.DONE
    assert set(errors) == {"W&B cannot answer now (503)"}
    check(room)
    begun = [number for number in range(8) if any(reports(room, number, n) for n in room.attempts(number)[:-1])]
    assert begun == [], "nothing that ran was taken for lost; a push that did not arrive is made anew"


@pytest.mark.parametrize("what", ["runs", "item_state", "stop", "configure", "push", "delete_item", "fetch_adapter"])
@pytest.mark.parametrize("acted", [False, True], ids=["not done", "done"])
def test_each_request_may_fail_for_a_moment(rooms: Path, way: tuple[str, ...], what: str, acted: bool) -> None:
    room = launch_room(rooms, *way, "search.max_attempts=9")
    launch_api(room).fail(what, 3, acted=acted)
    with Agent(launch_api(room)):
        assert run_here(room).how is Finished.DONE
    check(room)


def test_an_adapter_that_cannot_be_fetched_at_once_is_fetched_later(rooms: Path) -> None:
    room = launch_room(rooms, *WAYS["alone"], *ONE)
    launch_api(room).fail("fetch_adapter", 4)
    with Agent(launch_api(room)):
        assert run_here(room).how is Finished.DONE
    assert row(room) == ("complete", 1)
    assert (room.attempt(0, 1).adapter / "adapter_config.json").exists()


def test_a_run_that_was_asked_to_stop_is_not_gone_on_in(rooms: Path) -> None:
    room = launch_room(rooms, *WAYS["alone"], *ONE, step="0.2")
    with Agent(launch_api(room)):
        stopper = threading.Thread(target=run_here, args=(room, Mode.STOP))
        run_killed(room, lambda: 4)
        while not launch_api(room).names():
            time.sleep(0.01)
        stopper.start()
        stopper.join()
        assert run_here(room).how is Finished.DONE
    assert row(room) == ("complete", 2)
    first, second = run_of(room, 0, 1), run_of(room, 0, 2)
    assert (first in stopped_runs(room), second) == (True, f"{first}-2")
    assert launch_api(room).run(first).tags == (f"stop:{StopCause.INTERRUPTED}",)  # type: ignore[union-attr]
