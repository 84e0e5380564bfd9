"""What a controller asks of W&B while many trials run, and how soon a report becomes a stop, over each channel.

python -m tests.bench.launch --trials 50 --seconds 60 --out launch.json

The server is the stand-in on this machine; the controller, its client and its requests are the real ones. The trials
are made up: one thread writes what 50 jobs would have told, straight into the room or into the stand-in's state, so
that every counted request is the controller's. Each reports every five seconds and is pruned after the counted time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweep.controller.loop import Controller
from sweep.controller.ports import Ports
from sweep.model.identifiers import AttemptId
from sweep.model.states import Mode
from sweep.queues.launch.section import LaunchQueue
from sweep.tracking.stopped_runs import stopped_runs
from sweep.wiring import backends, creation, session
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.rooms import load_settings
from sweep.wiring.simulate import Silent
from sweep.wiring.specifications import trial_spec
from tests.standin.model import Item, ItemState, Run
from tests.standin.plugin import here
from tests.standin.server import StandIn
from trainer.contract import (
    JOB_KEY,
    OUTCOME_KEY,
    REPORTS_KEY,
    Outcome,
    OutcomeKind,
    Report,
    StopCause,
    TrialSpec,
    decode,
    encode,
)
from trainer.room import Room, append_line, write_atomic

REPORT_SECONDS = 5.0


@dataclass
class Job:
    """A made-up job: its specification, its run, and what it has reported when."""

    spec: TrialSpec
    run: Run
    began: float = field(default_factory=time.monotonic)
    reports: list[str] = field(default_factory=list)
    reported: float = 0.0
    judged: float = 0.0
    latency: float | None = None


@dataclass
class Jobs:
    """All of them, in one thread."""

    standin: StandIn
    room: Room
    alone: bool
    prune_at: int
    jobs: dict[str, Job] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)

    def serve(self) -> None:
        while not self.done.wait(0.05):
            for item in self.standin.items:
                if item.state is ItemState.PENDING:
                    self._start(item)
            for job in self.jobs.values():
                if job.latency is None:
                    self._go_on(job)

    def _start(self, item: Item) -> None:
        raw = item.spec["overrides"]["run_config"][JOB_KEY]
        spec = decode(TrialSpec, json.dumps(raw["specs"][0]))
        store = self.standin._store
        run = Run("team", "p", item.spec["run_id"], store.limits, display_name=spec.worker)
        run.wire_config = {"sweep": {"value": {"trial": spec.trial, "attempt": spec.attempt, "worker": spec.worker}}}
        with store.lock:
            store.project("team", "p")
            item.state, item.run_id = ItemState.CLAIMED, run.id
            store.runs[run.path] = run
        self.jobs[run.id] = Job(spec, run)
        if not self.alone:
            write_atomic(self.room.worker(spec.worker).beat, "1", durable=False)

    def _go_on(self, job: Job) -> None:
        now, files = time.monotonic(), self.room.attempt(job.spec.trial, job.spec.attempt)
        job.run.heartbeat = time.time()
        if not self.alone:
            write_atomic(self.room.worker(job.spec.worker).beat, str(int(now)), durable=False)
        if now - job.began >= REPORT_SECONDS * (len(job.reports) + 1):
            self._report(job, now)
        asked = bool(job.run.stop_requests) if self.alone else files.stop.exists()
        if asked:
            job.latency = now - job.judged
            self._end(job)

    def _report(self, job: Job, now: float) -> None:
        number = len(job.reports) + 1
        told = encode(Report(number, number, number * 10, 0, 2.0, 1.0, 1e-3, 100.0, 5.0 * number))
        job.reports.append(told)
        job.judged = now if number == self.prune_at else job.judged
        if self.alone:
            said = {"attempt": job.spec.attempt, "worker": job.spec.worker, "reports": job.reports}
            job.run.summary = {**job.run.summary, REPORTS_KEY: json.dumps(said)}
        else:
            with self.room.attempt(job.spec.trial, job.spec.attempt).reports.open("a") as file:
                append_line(file, told)

    def _end(self, job: Job) -> None:
        outcome = Outcome(OutcomeKind.STOPPED, "made up", cause=StopCause.PRUNED, tokens=len(job.reports) * 10)
        if self.alone:
            said = {"attempt": job.spec.attempt, "worker": job.spec.worker, "outcome": encode(outcome)}
            job.run.summary = {**job.run.summary, OUTCOME_KEY: json.dumps(said)}
        else:
            write_atomic(self.room.attempt(job.spec.trial, job.spec.attempt).outcome, encode(outcome))
            write_atomic(self.room.worker(job.spec.worker).exit, '{"reason": "it is done"}')
        job.run.end(0)


def measure(channel: str, trials: int, seconds: float) -> dict[str, Any]:
    """One sweep of so many trials at once: requests a minute while all run, and seconds from a report to its stop."""
    with tempfile.TemporaryDirectory() as directory, StandIn(Path(directory)) as standin, here(standin) as wandb:
        os.environ["SWEEP_ROOMS"] = f"{directory}/rooms"
        wandb.Api().create_run_queue("lab", "local-container", entity="team", prioritization_mode="V0")
        prune_at = int(seconds / REPORT_SECONDS) + 8
        room = make_room(channel, trials, prune_at)
        jobs = Jobs(standin, room, channel == "wandb", prune_at)
        thread = threading.Thread(target=jobs.serve, daemon=True)
        thread.start()
        controller = threading.Thread(target=lambda: control(room).run())
        began = time.monotonic()
        controller.start()
        while len(jobs.jobs) < trials:
            time.sleep(0.05)
        all_run, since = time.monotonic(), time.time()
        time.sleep(seconds)
        asked = Counter(one.operation for one in standin.requests if one.time >= since)
        minutes = seconds / 60
        controller.join()
        jobs.done.set()
        thread.join()
        latencies = sorted(job.latency for job in jobs.jobs.values() if job.latency is not None)
        assert len(jobs.jobs) == trials
        assert standin.refused == []
        queue = load_settings(room).queue
        assert isinstance(queue, LaunchQueue)
        return {
            "channel": channel,
            "trials": trials,
            "query_seconds": queue.query_seconds,
            "requests_per_minute": round(sum(asked.values()) / minutes, 1),
            "by_operation": {name: round(count / minutes, 1) for name, count in sorted(asked.items())},
            "push_all_seconds": round(all_run - began, 1),
            "report_to_stop_median": round(statistics.median(latencies), 1),
            "report_to_stop_most": round(latencies[-1], 1),
        }


def make_room(channel: str, trials: int, prune_at: int) -> Room:
    words = ["objective=loss", "objective.milestone_tokens=10", f"search.trials={trials}", "queue=launch_local_process"]
    words += [f"queue.workers={trials}", f"queue.channel={channel}", "queue.name=lab", "wandb.entity=team"]
    words += ["queue.resource=local-container", "queue.docker_image=sweep/trainer:1", "wandb.project=p"]
    words += ["pruner=threshold", "pruner.upper=0.001", f"pruner.n_warmup_steps={prune_at}", "sampler=random"]
    words += ["space.optimizer.lr=tag(log,interval(1e-5,1e-1))", "space.model.lora_rank=null"]
    words += ["space.gradient_accumulation_steps=null", "derive.model.lora_alpha=null"]
    return creation.create_room(freeze(compose_config(words), f"bench-{channel}"), 10**6)


def control(room: Room) -> Controller:
    settings = load_settings(room)
    study = session.open_study(room, settings)
    opened = backends.backend_of(settings).open(room, settings)
    dispatcher = opened.dispatcher
    return Controller(
        ports=Ports(study, opened.channel, dispatcher, session.BootClock()),
        limits=settings.limits(backends.worker_count(settings)),
        spec=lambda t, a, w: trial_spec(settings, study.params(t), AttemptId(t, a, w), stopped=stopped_runs(room)),
        listener=Silent(),
        mode=lambda: Mode.RUN,
        created=session.created_at(settings),
        poll_seconds=settings.queue.poll_seconds,
    )


def table(results: list[dict[str, Any]]) -> str:
    keys = (
        "channel",
        "trials",
        "requests_per_minute",
        "report_to_stop_median",
        "report_to_stop_most",
        "push_all_seconds",
    )
    rows = [[str(one[key]) for key in keys] for one in results]
    lines = [" | ".join(keys), " | ".join("---" for _ in keys), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--channel", choices=["room", "wandb"], action="append")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = [measure(channel, args.trials, args.seconds) for channel in args.channel or ["room", "wandb"]]
    print(table(results))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
