"""One controller at a time, judged by the reader's clock alone."""

from __future__ import annotations

import threading
import time as real_time
from collections.abc import Callable
from pathlib import Path

import pytest

from sweep.errors import GiveUp, RetryLater
from sweep.store.lease import Lease, await_release, holder_of
from tests.helpers.stores import Faulty, faulty
from trainer.room import read_text
from trainer.store.objects import StoreError


class Time:
    """A clock that stands still but for sleeps, in which something may happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self.meanwhile: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def store(tmp_path: Path) -> Faulty:
    return faulty(f"memory://lease-{tmp_path.parent.name}-{tmp_path.name}")


def lease(store: Faulty, time: Time, record: Path, holder: str = "a") -> Lease:
    return Lease(store, holder, record, renew=1e6, grace=60.0, now=lambda: time.now, sleep=time.sleep)


def test_the_first_takes_it_and_the_next_after_its_release(store: Faulty, time: Time, tmp_path: Path) -> None:
    first = lease(store, time, tmp_path / "1")
    assert not first.acquire()
    first.check()
    assert holder_of(store) == "a"
    first.release()
    assert holder_of(store) == ""
    second = lease(store, time, tmp_path / "2", "b")
    assert not second.acquire(), "another has held it since"
    assert (holder_of(store), time.now) == ("b", 0.0)
    second.release()


def test_a_living_holder_is_left_alone(store: Faulty, time: Time, tmp_path: Path) -> None:
    first = lease(store, time, tmp_path / "1", "process 7 on node-1")
    first.acquire()
    time.meanwhile = first.renew_once
    with pytest.raises(RetryLater, match=r"runs this sweep already \(process 7 on node-1\)"):
        lease(store, time, tmp_path / "2").acquire()
    first.check()


def test_who_waits_for_a_living_holder_s_end_waits_as_long_as_it_lives(
    store: Faulty, time: Time, tmp_path: Path
) -> None:
    first = lease(store, time, tmp_path / "1")
    first.acquire()

    def lives() -> None:
        (first.renew_once if time.now < 600.0 else first.release)()

    time.meanwhile = lives
    assert await_release(store, 60.0, lambda: time.now, time.sleep)
    assert time.now >= 600.0
    assert await_release(store, 60.0, lambda: time.now, time.sleep), "nobody is there"


def test_who_waits_for_a_dead_holder_s_end_is_told_after_its_grace(store: Faulty, time: Time, tmp_path: Path) -> None:
    first = lease(store, time, tmp_path / "1")
    first.acquire()
    time.sleep(30.0)
    first.renew_once()
    assert not await_release(store, 60.0, lambda: time.now, time.sleep)
    assert 90.0 <= time.now < 95.0


def test_a_dead_holder_s_lease_is_free_after_its_grace(store: Faulty, time: Time, tmp_path: Path) -> None:
    first, second = lease(store, time, tmp_path / "1"), lease(store, time, tmp_path / "2", "b")
    first.acquire()
    second.acquire()
    assert time.now == 60.0
    with pytest.raises(RetryLater, match="has not answered for so long"):
        first.check()
    first.renew_once()
    with pytest.raises(GiveUp, match="b runs this sweep now; this controller leaves the sweep to it"):
        first.check()
    second.check()
    first.release()
    assert holder_of(store) == "b", "a release takes nothing from another"


def test_the_same_machine_goes_on_at_once(store: Faulty, time: Time, tmp_path: Path) -> None:
    """The room's lock on this machine says that the process which held the lease has ended."""
    lease(store, time, tmp_path / "1").acquire()
    assert holder_of(store, read_text(tmp_path / "1")) == "", "it is known to have ended"
    assert lease(store, time, tmp_path / "1").acquire()
    assert time.now == 0.0


def test_who_cannot_renew_stops_acting_before_another_may_take_over(store: Faulty, time: Time, tmp_path: Path) -> None:
    first = lease(store, time, tmp_path / "1")
    first.acquire()
    store.fail = 1
    time.now = 39.0
    with pytest.raises(StoreError):
        first.renew_once()
    first.check()
    time.now = 41.0
    with pytest.raises(RetryLater):
        first.check()
    first.renew_once()
    first.check()


@pytest.mark.skipif(not hasattr(real_time, "CLOCK_BOOTTIME"), reason="this system has no clock of suspensions")
def test_a_holder_that_was_suspended_acts_no_more(
    store: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Lease(store, "a", tmp_path / "1", renew=1e6)
    first.acquire()
    first.check()
    ask = real_time.clock_gettime
    hour = {real_time.CLOCK_BOOTTIME: 3600.0}  # in which the monotonic clock stood still
    monkeypatch.setattr(real_time, "clock_gettime", lambda clock: ask(clock) + hour.get(clock, 0.0))
    with pytest.raises(RetryLater, match="another controller may have taken over"):
        first.check()
    first.release()


def test_a_renewal_of_which_the_answer_was_lost_is_recognised(store: Faulty, time: Time, tmp_path: Path) -> None:
    first = lease(store, time, tmp_path / "1")
    first.acquire()
    store.fail, store.lose_answer = 1, True
    with pytest.raises(StoreError):
        first.renew_once()
    for _ in range(2):
        first.renew_once()
        first.check()


def test_a_lease_taken_of_which_the_answer_was_lost_is_recognised(store: Faulty, time: Time, tmp_path: Path) -> None:
    lease(store, time, tmp_path / "1").acquire()
    again = lease(store, time, tmp_path / "1")
    store.fail_at, store.lose_answer = 2, True
    with pytest.raises(StoreError):
        again.acquire()
    assert again.acquire(), "it is known that nobody else was there in between"
    assert time.now == 0.0


def test_of_many_who_take_it_at_once_one_holds_it(store: Faulty, time: Time, tmp_path: Path) -> None:
    held: list[Lease] = []

    def take(number: int) -> None:
        mine = lease(store, time, tmp_path / str(number), str(number))
        try:
            mine.acquire()
        except RetryLater:
            return
        held.append(mine)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    living = []
    for one in held:
        one.renew_once()
        try:
            one.check()
            living.append(one)
        except GiveUp:
            pass
    assert len(living) == 1
    assert holder_of(store) == living[0].holder


def test_the_holder_renews_it_by_itself(store: Faulty, tmp_path: Path) -> None:
    first = Lease(store, "a", tmp_path / "1", renew=0.005)
    first.acquire()
    renewed = threading.Event()
    ask = store._ask

    def watching(what, key, act, count=1):  # type: ignore[no-untyped-def]
        if what == "put":
            renewed.set()
        return ask(what, key, act, count)

    store._ask = watching  # type: ignore[method-assign]
    assert renewed.wait(30)
    first.release()
