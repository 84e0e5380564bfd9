"""W&B Launch in a directory: a `LaunchApi`, an agent and its jobs, shared by processes that may be killed any time.

    api = FakeLaunchApi(path)
    with Agent(api, {"w0002": "fail"}):
        …

A job is a process that trains nothing (`tests.helpers.fakes.FastWorker`). It writes into its trials' runs what
`trainer.tracking.tracker` writes, and claims its name as `trainer.entry.launch_job` does. A run whose process has died
is `crashed`.

Invariant: every file has one writer. A run's `state` is the job's, `config` the controller's, and a stop the server's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sweep.errors import GiveUp, RetryLater
from sweep.queues.launch.api import ObservedRun, Push
from tests.helpers.executions import executions_dir
from tests.helpers.fakes import serve_fast
from trainer.contract import JOB_KEY, OUTCOME_KEY, REPORTS_KEY, STOP_TAG, Outcome, StopCause, TrialSpec, decode, encode
from trainer.entry.launch_job import JobSpec, claim, write_assignments
from trainer.presence import write_token
from trainer.room import Room, append_line, read_json, read_text, write_atomic
from trainer.tracking.summary import exit_code, summary_of

ALWAYS = 10**6
EXCHANGE_SECONDS = 0.004


@dataclass(slots=True)
class FakeLaunchApi:
    """A `LaunchApi` (see `sweep.queues.launch.api`)."""

    root: Path

    # --- what the controller asks --------------------------------------------------------------------------------

    def push(self, push: Push) -> str:
        with self._request("push", push.name):
            item = f"{time.monotonic_ns():020d}-{push.name}"
            unfinished = self.root / "pushing" / item  # an item appears together with its specification
            write_atomic(unfinished / "spec", json.dumps({"run": push.run, "config": push.config}))
            (self.root / "items").mkdir(exist_ok=True)
            unfinished.rename(self.root / "items" / item)
        return item

    def item_state(self, item: str) -> str | None:
        with self._request("item_state", item):
            path = self.root / "items" / item
            return (read_text(path / "state") or "pending") if (path / "spec").exists() else None

    def delete_item(self, item: str) -> None:
        with self._request("delete_item", item):
            path = self.root / "items" / item
            if not (path / "state").exists():
                (path / "spec").unlink(missing_ok=True)

    def runs(self, ids: Sequence[str]) -> Mapping[str, ObservedRun]:
        with self._request("runs", str(len(ids))):
            return {run: facts for run in ids if (facts := self.run(run)) is not None}

    def stop(self, run: str, cause: StopCause) -> None:
        with self._request("stop", run):
            if self.run(run) is not None:
                write_atomic(self.of(run) / "tag", f"{STOP_TAG}{cause}")
                write_atomic(self.of(run) / "stop", "")

    def configure(self, run: str, values: Mapping[str, Any]) -> None:
        with self._request("configure", run):
            if self.run(run) is None:
                raise GiveUp(f"there is no run {run}")
            write_atomic(self.of(run) / "config", json.dumps(values))

    def steps(self, run: str) -> Iterator[Mapping[str, Any]]:
        with self._request("steps", run):
            yield from ()

    def fetch_adapter(self, name: str, directory: str) -> None:
        with self._request("fetch_adapter", name):
            write_atomic(Path(directory) / "adapter_config.json", "{}")

    # --- what a test asks ----------------------------------------------------------------------------------------

    def of(self, run: str) -> Path:
        return self.root / "runs" / run

    def run(self, run: str) -> ObservedRun | None:
        written = read_json(self.of(run) / "state")
        if written is None or (self.of(run) / "deleted").exists():
            return None
        tag = read_text(self.of(run) / "tag")
        state = written["state"]
        if state == "running" and not _alive(written["pid"]):
            state = "crashed"
        return ObservedRun(
            run, state, str(written["beat"]), written["sweep"], written["summary"], (tag,) if tag else ()
        )

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.root / "runs").glob("*"))

    def items(self) -> list[str]:
        """All items that were ever pushed, in order."""
        return sorted(path.name for path in (self.root / "items").glob("*"))

    def lose(self, item: str) -> None:
        (self.root / "items" / item / "spec").unlink()

    def delete_run(self, run: str) -> None:
        write_atomic(self.of(run) / "deleted", "")

    def press_stop(self, run: str) -> None:
        """Request a stop as a person does in W&B."""
        write_atomic(self.of(run) / "stop", "")

    def asked(self, what: str) -> list[str]:
        lines = (read_text(self.root / "requests") or "").splitlines()
        return [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == what]

    def fail(self, what: str, times: int = ALWAYS, *, acted: bool = False, error: str = "retry") -> None:
        """Let the next requests of this kind fail; if `acted`, they are carried out and only their answers are lost."""
        write_atomic(self.root / f"fault-{what}", json.dumps({"left": times, "acted": acted, "error": error}))

    def mend(self, what: str) -> None:
        (self.root / f"fault-{what}").unlink(missing_ok=True)

    @contextmanager
    def _request(self, what: str, subject: str) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "requests").open("a") as file:
            append_line(file, f"{what} {subject}")
        fault = self._fault(what)
        if fault and not fault["acted"]:
            raise _error(fault)
        yield
        if fault:
            raise _error(fault)

    def _fault(self, what: str) -> Any:
        for name in (what, "all"):
            fault = read_json(self.root / f"fault-{name}")
            if not fault or fault["left"] <= 0:
                continue
            if (
                fault["left"] < ALWAYS
            ):  # a lasting fault is not counted down: writing it would bring back a fault that was just removed
                write_atomic(self.root / f"fault-{name}", json.dumps({**fault, "left": fault["left"] - 1}))
            return fault
        return None


def _error(fault: Mapping[str, Any]) -> Exception:
    return GiveUp("W&B refuses it") if fault["error"] == "giveup" else RetryLater("W&B cannot answer now (503)")


@dataclass
class Agent:
    """An agent in a process of its own, whose jobs are its children.

    Args:
        behaviours: by worker, what its job does: `fail`, `ignore`, `twice`, `dies at N` (reports), `dies when stopped`,
            `dies at once`, `late` (it is taken, and starts after half a second). Any other runs.
    """

    api: FakeLaunchApi
    behaviours: Mapping[str, str] = field(default_factory=dict)
    pid: int = 0

    def __enter__(self) -> Self:
        self.begin()
        return self

    def begin(self) -> None:
        test = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            with suppress(BaseException):
                self._serve(test)
            os._exit(0)

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill it and its jobs."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.pid = 0

    def _serve(self, test: int) -> None:
        """Serve the queue as long as the test's own process lives."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a job
        while os.getppid() == test:
            for item in self.api.items():
                path = self.api.root / "items" / item
                name = item.partition("-")[2]
                behaviour = self.behaviours.get(name, "")
                spec = read_json(path / "spec")
                if spec is None or (path / "state").exists() or behaviour == "ignore":
                    continue
                write_atomic(path / "state", "failed" if behaviour == "fail" else "claimed")
                for _ in range({"fail": 0, "twice": 2}.get(behaviour, 1)):
                    self._start(spec["config"][JOB_KEY], behaviour)
            time.sleep(EXCHANGE_SECONDS)

    def _start(self, raw: Mapping[str, Any], behaviour: str) -> None:
        if os.fork() == 0:
            try:
                with (self.api.root / "jobs.log").open("a") as log:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                if behaviour == "late":
                    time.sleep(0.5)
                if behaviour != "dies at once":
                    FakeJob(self.api, JobSpec(**{**raw, "specs": tuple(raw["specs"])}), behaviour).run()
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
            os._exit(0)


@dataclass
class FakeJob:
    """A job whose worker trains nothing."""

    api: FakeLaunchApi
    job: JobSpec
    behaviour: str
    _done: threading.Event = field(default_factory=threading.Event)
    _beats: int = 0

    def run(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            alone = self.job.channel == "wandb"
            room = Room(Path(directory) if alone else Path(self.job.room))
            if alone:
                marks = executions_dir(self.api.root.parent)
                marks.mkdir(exist_ok=True)
                executions_dir(room.root).symlink_to(marks)
                write_token(room, self.job.token)
                write_assignments(room, self.job.worker, tuple(self._without_checkpoint(raw) for raw in self.job.specs))
            if not claim(room.worker(self.job.worker)) or (alone and self._name_was_served()):
                return
            exchange = threading.Thread(target=self._exchange, args=(room,), daemon=True)
            self._write_own_run("running")
            exchange.start()
            serve_fast(str(room.root), self.job.worker, self.job.options)
            self._done.set()
            exchange.join()
            self._publish_trials(room)
            self._write_own_run("finished")

    def _without_checkpoint(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """A later attempt begins anew, since its directory holds no checkpoint."""
        return {**raw, "tracking": None} if raw["attempt"] > 1 else raw

    def _name_was_served(self) -> bool:
        run = self.job.run or self.job.specs[0]["tracking"]["run"]
        facts = self.api.run(run)
        owner = facts.sweep if facts is not None else {}
        later = not self.job.run and owner.get("attempt", 0) > self.job.specs[0]["attempt"]
        return owner.get("worker") == self.job.worker or later

    def _write_own_run(self, state: str) -> None:
        if self.job.run:
            self._write_run(self.job.run, state, {"worker": self.job.worker}, {})
        elif self._beats == 0 and state == "running":
            first = self.job.specs[0]
            owner = {"attempt": first["attempt"], "worker": self.job.worker}
            self._write_run(first["tracking"]["run"], state, owner, {})

    def _exchange(self, room: Room) -> None:
        while not self._done.wait(EXCHANGE_SECONDS):
            self._beats += 1
            self._write_own_run("running")
            self._obey_controller(room)
            self._publish_trials(room)

    def _obey_controller(self, room: Room) -> None:
        """Take over new assignments, a drain and a stop."""
        if self.job.run and self.job.channel == "wandb":
            config = (read_json(self.api.of(self.job.run) / "config") or {}).get(JOB_KEY, {})
            assigned = tuple(self._without_checkpoint(raw) for raw in config.get("inbox", ()))
            write_assignments(room, self.job.worker, assigned)
            if config.get("drain"):
                write_atomic(room.worker(self.job.worker).drain, "")
        if self.job.run and (self.api.of(self.job.run) / "stop").exists():
            os.kill(os.getpid(), signal.SIGINT)

    def _publish_trials(self, room: Room) -> None:
        for trial, number in room.worker(self.job.worker).assignments():
            files = room.attempt(trial, number)
            spec = decode(TrialSpec, read_text(files.spec) or "")
            run = self._run_of(spec)
            if not run or not (files.reports.exists() or files.outcome.exists()):
                continue
            lines = (read_text(files.reports) or "").splitlines()
            if self.behaviour == f"dies at {len(lines)}":
                os.kill(os.getpid(), signal.SIGKILL)
            if (self.api.of(run) / "stop").exists() and not files.stop.exists():
                if self.behaviour == "dies when stopped":
                    os.kill(os.getpid(), signal.SIGKILL)
                cause = (read_text(self.api.of(run) / "tag") or f"{STOP_TAG}cancelled").removeprefix(STOP_TAG)
                write_atomic(files.stop, f"{cause}\nit was stopped in W&B")
            owner = {"attempt": number, "worker": self.job.worker}
            summary = {REPORTS_KEY: json.dumps({**owner, "reports": lines})}
            state = "running"
            if (text := read_text(files.outcome)) is not None:
                outcome = decode(Outcome, text)
                summary |= {OUTCOME_KEY: json.dumps({**owner, "outcome": encode(outcome)}), **summary_of(outcome)}
                state = "finished" if exit_code(outcome) == 0 else "failed"
            known = read_json(self.api.of(run) / "state") or {}
            over = known.get("state") not in (None, "running") and known["sweep"] == owner
            if not over and not known.get("sweep", {}).get("attempt", 0) > number:
                self._write_run(run, state, owner, summary)

    def _run_of(self, spec: TrialSpec) -> str:
        if spec.tracking is not None:
            return spec.tracking.run
        config = (read_json(self.api.of(self.job.run) / "config") or {}).get(JOB_KEY, {}) if self.job.run else {}
        assigned = [*self.job.specs, *config.get("inbox", ())]
        runs = [
            raw["tracking"]["run"] for raw in assigned if (raw["trial"], raw["attempt"]) == (spec.trial, spec.attempt)
        ]
        return str(runs[0]) if runs else ""

    def _write_run(self, run: str, state: str, sweep: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        written = {"state": state, "pid": os.getpid(), "beat": self._beats, "sweep": sweep, "summary": summary}
        write_atomic(self.api.of(run) / "state", json.dumps(written), durable=False)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
