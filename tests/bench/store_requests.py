"""Requests that a room over an object store makes: `python -m tests.bench.store_requests [--trials 50] [--minutes 10]`.

A controller and its workers, one trial each, run against a store in memory on a clock that is not real: each pass
that a real one would make at its default pace is made, and every request is counted as S3 counts it (a listing is one
request for each thousand keys). Training itself is not simulated: every trial reports, checkpoints and beats as often
as the arguments say. Prints a table in Markdown; the prices are S3's list prices in us-east-1 of 2025, per thousand
requests.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from unittest.mock import patch

from sweep.store.channel import REQUESTS_PER_MINUTE, StoreChannel
from sweep.store.controller_sync import ControllerSync
from sweep.store.lease import RENEW_SECONDS
from sweep.store.request_budget import MeteredStore, RequestBudget, pages
from trainer.contract import Report, TrialSpec, encode
from trainer.room import Room, append_line, write_atomic
from trainer.store.objects import ObjectStore, open_store
from trainer.store.worker_sync import Pace, WorkerSync

DOLLARS = {"list": 0.005, "put": 0.005, "copy": 0.005, "get": 0.0004, "delete": 0.0}


@dataclass
class Counting:
    """A store that counts requests."""

    store: ObjectStore
    requests: Counter[str]

    def list(self, prefix: str = "", begins: str = "") -> dict[str, str]:
        listing = self.store.list(prefix, begins)
        self.requests["list"] += pages(len(listing))
        return listing

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        wanted = list(keys)
        self.requests["get"] += len(wanted)
        return self.store.get(wanted)

    def put(self, key: str, data: bytes | Path) -> None:
        self.requests["put"] += 1
        self.store.put(key, data)

    def fetch(self, key: str, path: Path) -> bool:
        self.requests["get"] += 1
        return self.store.fetch(key, path)

    def copy(self, source: str, target: str) -> bool:
        self.requests["copy"] += 1
        return self.store.copy(source, target)

    def delete(self, key: str) -> None:
        self.requests["delete"] += 1
        self.store.delete(key)

    def put_if(self, key: str, data: bytes, expected: bytes | None) -> bool:
        self.requests["put"] += 1
        return self.store.put_if(key, data, expected)


@dataclass
class Time:
    now: float = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def run(trials: int, earlier: int, minutes: float, report: float) -> tuple[Counter[str], Counter[str], list[float]]:
    """Requests of the controller and of all workers in this time, and how old each report was when it was observed.

    Args:
        earlier: trials that ended before, and whose files lie in the store.
        report: seconds between two reports and checkpoints of a trial.
    """
    # a worker's questions do not depend on what others have done, and take long to answer from a large memory
    pace = Pace(poll=float("inf")) if earlier else Pace()
    time, store = Time(), open_store(f"memory://bench-{trials}-{earlier}-{report}")
    ours: Counter[str] = Counter()
    theirs: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, on_clock(time):
        room = Room(Path(folder, "controller"))
        write_atomic(room.sweep, json.dumps({"name": "bench", "created": 1.0}))
        write_atomic(room.root / "study.journal", "{}\n")
        budget = RequestBudget(REQUESTS_PER_MINUTE, lambda: time.now)
        metered = MeteredStore(Counting(store, ours), budget)
        channel = StoreChannel(
            ControllerSync(metered, room, now=lambda: time.now),
            budget=budget,
            job_ends=lambda: 0,
            now=lambda: time.now,
        )
        channel.sync.start(False)
        for trial in range(earlier):
            leave_behind(store, trial)
        running = list(range(earlier, earlier + trials))
        workers = [
            WorkerSync(Counting(store, theirs), Room(Path(folder, str(trial))), f"w{trial:04d}", pace)
            for trial in running
        ]
        for trial, worker in zip(running, workers, strict=True):
            channel.assign(TrialSpec("bench", trial, 1, worker.worker, {}, 10))
        names = [worker.worker for worker in workers]
        for worker in workers:
            worker.sync_small()
        channel.observe(running, names)
        ours.clear()
        theirs.clear()
        began = time.now
        due = {trial: began + report * (index + 1) / trials for index, trial in enumerate(running)}
        beats, renewed = began, began
        ages = []
        while time.now - began < minutes * 60:
            time.now += 0.5
            for trial, worker in zip(running, workers, strict=True):
                if time.now >= due[trial]:
                    due[trial] += report
                    train(worker, room, trial, time.now)
                worker.sync_small()
                worker.put_bulk()
            if time.now - beats >= Pace().beat:
                beats = time.now
                for worker in workers:
                    write_atomic(worker.dir.beat, str(time.now), durable=False)
                    worker.put_beat()
            for sights in channel.observe(running, names)[0].values():
                ages += [time.now - one.seconds for one in sights[0].reports]
            if time.now - renewed >= RENEW_SECONDS:
                renewed = time.now
                metered.put("controller.lease", b"")
    return ours, theirs, ages


def train(worker: WorkerSync, room: Room, trial: int, now: float) -> None:
    """A milestone: a report, a checkpoint, steps; and what the controller writes down of it."""
    files = worker.room.attempt(trial, 1)
    with files.reports.open("a") as file:
        append_line(
            file, encode(replace(Report(1, 2, 10, 0, 2.5, 1.0, 1e-3, 100.0, 0.5), milestone=int(now), seconds=now))
        )
    with files.steps.open("a") as file:
        append_line(file, "{}")
    write_atomic(files.checkpoint, str(now), durable=False)
    with (room.root / "study.journal").open("a") as journal:
        journal.write(f"{trial} {now}\n")


def leave_behind(store: ObjectStore, trial: int) -> None:
    for name in ("spec.json", "reports.jsonl", "steps.jsonl", "checkpoint.pt", "outcome.json"):
        store.put(f"trials/{trial:05d}/1/{name}", b"{}\n")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        store.put(f"trials/{trial:05d}/1/adapter/{name}", b"{}")
    for name in ("beat", "job.json", f"inbox/{trial:05d}-1"):
        store.put(f"workers/w{trial:04d}/{name}", b"{}")


@contextmanager
def on_clock(time: Time) -> Iterator[None]:
    with patch("trainer.store.worker_sync.time.monotonic", lambda: time.now):
        yield


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    args = parser.parse_args()
    heads = "who | trials before | a report every | listings | reads | writes | requests a minute | $ an hour"
    print(f"| {heads} | report → seen, median | most |")
    print(f"| --- {'| ---: ' * 9}|")
    for earlier in (0, 500):
        for report in (60.0, 300.0):
            ours, theirs, ages = run(args.trials, earlier, args.minutes, report)
            each = Counter({key: count / args.trials for key, count in theirs.items()})
            for who, asked in (("controller", ours), ("each worker", each))[: 1 if earlier else 2]:
                rate = {key: count / args.minutes for key, count in asked.items()}
                writes = rate.get("put", 0) + rate.get("copy", 0) + rate.get("delete", 0)
                dollars = sum(DOLLARS[key] * count for key, count in rate.items()) * 60 / 1000
                row = [who, str(earlier), f"{report:g} s", *(f"{rate.get(k, 0):.1f}" for k in ("list", "get"))]
                row += [f"{writes:.1f}", f"{sum(rate.values()):.1f}", f"{dollars:.3f}"]
                row += [f"{median(ages):.0f} s", f"{max(ages):.0f} s"] if who == "controller" else ["", ""]
                print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
