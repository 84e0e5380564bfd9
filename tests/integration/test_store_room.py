"""Real training by workers that share nothing with the controller but a bucket."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from sweep.controller.ports import ObservedAttempt
from sweep.store.channel import StoreChannel, open_store_channel
from sweep.store.remote import download
from tests.conftest import embedded_config
from tests.helpers.attempts import steps
from tests.helpers.stores import s3_server, worker_command
from tests.helpers.waiting import until
from tests.helpers.warm import WarmPopen
from trainer.contract import OutcomeKind, StopCause, TrialSpec, encode
from trainer.room import Room, write_atomic

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


def observed(channel: StoreChannel, attempt: int, seen: Callable[[ObservedAttempt], object]) -> ObservedAttempt:
    """An attempt of trial 0, as soon as it looks like this."""
    attempts: list[ObservedAttempt] = []

    def shown() -> object:
        attempts[:] = channel.observe([0], ["w0001", "w0002"])[0][0]
        return len(attempts) >= attempt and seen(attempts[attempt - 1])

    until(shown)
    return attempts[attempt - 1]


@contextmanager
def two_workers(url: str, tmp_path: Path) -> Iterator[Sequence[subprocess.Popen[str]]]:
    commands = [worker_command(url, tmp_path / name, name) for name in ("w0001", "w0002")]
    workers = [WarmPopen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()


def test_a_trial_goes_on_from_the_checkpoint_that_another_worker_left_in_the_bucket(s3: str, tmp_path: Path) -> None:
    url, room = f"{s3}/rooms/real", Room(tmp_path / "controller")
    config = embedded_config(dataset__split="train[:160]", dataset_val__split="train[:4]", epochs=3)
    spec = TrialSpec("s", 0, 1, "w0001", config, milestone_tokens=720)
    write_atomic(room.sweep, '{"name": "real", "created": 1.0}')
    with open_store_channel(room, url, "a test", lambda: 0) as channel, two_workers(url, tmp_path) as workers:
        channel.assign(spec)
        observed(channel, 1, lambda sight: sight.reports)
        channel.stop(0, 1, StopCause.INTERRUPTED, "for now")
        first = observed(channel, 1, lambda sight: sight.outcome).outcome
        assert first is not None
        assert (first.kind, first.cause) == (OutcomeKind.STOPPED, StopCause.INTERRUPTED), first
        channel.assign(TrialSpec("s", 0, 2, "w0002", config, milestone_tokens=720))
        second = observed(channel, 2, lambda sight: sight.outcome).outcome
        assert second is not None
        assert (second.kind, second.resumed_from) == (OutcomeKind.COMPLETED, 1), second
        for name in ("w0001", "w0002"):
            channel.drain(name)
        for worker in workers:
            output, _ = worker.communicate(timeout=900)
            assert worker.returncode == 0, output
            assert "it was drained" in output
    everything = download(url, tmp_path / "laptop")
    assert (everything.attempt(0, 2).adapter / "adapter_model.safetensors").exists()
    alone = Room(tmp_path / "alone")
    write_atomic(alone.attempt(0, 1).spec, encode(spec))
    done = train_alone(alone)
    assert done is OutcomeKind.COMPLETED
    assert steps(everything) + steps(everything, 2) == steps(alone), "bit for bit"


def train_alone(room: Room) -> OutcomeKind:
    from trainer.attempt import Attempt
    from trainer.base import Cache
    from trainer.contract import decode
    from trainer.reporter import RoomReporter

    files = room.attempt(0, 1)
    spec = decode(TrialSpec, files.spec.read_text())
    reporter = RoomReporter(files)
    try:
        return Attempt(room, spec, Cache(), reporter, lambda: None).run().kind
    finally:
        reporter.close(None)
