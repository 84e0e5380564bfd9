"""A trial's run in W&B: what a `Reporter` receives becomes its history, its files and its artifacts.

Invariants: training never waits for W&B and never fails because of it: a thread of the attempt's own talks to W&B, and
what goes wrong there becomes a line in the worker's log. Everything that is sent also lies in the attempt's directory,
from where `sweep sync` uploads what did not arrive; `tracked` marks what did. Attempts of one trial go on in one run: a
step that an earlier attempt has logged is not logged again, and one client writes to it at a time, since a later one
would overwrite what it has not seen. A run ends with the attempt's true exit code.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import yaml

from trainer.components import check_path
from trainer.contract import (
    OUTCOME_KEY,
    REPORTS_KEY,
    STOP_TAG,
    ContractError,
    Outcome,
    OutcomeKind,
    Report,
    Step,
    StopCause,
    Tracking,
    TrialSpec,
    decode,
    encode,
)
from trainer.room import Room, read_text, write_atomic

_log = logging.getLogger(__name__)

# Several runs share one process: what it prints belongs to none of them.
SETTINGS: Mapping[str, Any] = {"silent": True, "console": "off"}
# Where the controller waits for what a run sends, it is sent more often than the client's every 15 s.
CARRYING_SETTINGS: Mapping[str, Any] = {"x_file_stream_transmit_interval": 5}
# How long an ending worker waits for what W&B has not got yet: a copy of it stays in the room, or none does.
FINISH_SECONDS = 30.0
CARRYING_FINISH_SECONDS = 900.0
RETRY_SECONDS = 15.0
# How long a client waits for the one before it; where that one was killed, W&B takes minutes to notice.
HANDOVER_SECONDS, HANDOVER_LOOK_SECONDS = 15.0, 0.5
# What a trial's state is called in its run's summary.
STATE, REASON = "trial/state", "trial/reason"

# The thread of each run's newest client in this process: W&B's client refuses a second one beside it.
_threads: WeakValueDictionary[str, threading.Thread] = WeakValueDictionary()

T = TypeVar("T")
Act = Callable[[Any], None]
Hook = Callable[[Step], Mapping[str, float]]


class Tracker:
    """A `Reporter` (see `trainer.reporter`) that keeps a W&B run.

    Args:
        tracking: the specification's.
    """

    def __init__(self, room: Room, spec: TrialSpec, tracking: Tracking) -> None:
        self._spec, self._tracking = spec, tracking
        self._files = room.attempt(spec.trial, spec.attempt)
        self._before, self._milestone = _logged_before(room, spec)
        self._hook: Hook | None = None
        self._every = int(spec.config.get("log_every_n_steps") or 1)
        self._last: dict[str, Any] = {}
        self._reports: list[str] = []
        self._lap: tuple[float, int] | None = None
        self._acts: SimpleQueue[Act | None] = SimpleQueue()
        self._stop = threading.Event()
        try:
            self._hook = _load_hook(tracking.hook, spec.components)
        except Exception as error:
            self._say(f"wandb.hook={tracking.hook} is not asked: {_short(error)}")
        earlier = _threads.get(tracking.run)
        self._thread = _threads[tracking.run] = threading.Thread(target=self._serve, args=(earlier,), daemon=True)
        self._thread.start()

    # --- what the attempt tells ----------------------------------------------------------------------------------

    def step(self, step: Step) -> None:
        row = {"global_step": step.step, "tokens": step.tokens, "loss": step.loss, "grad_norm": step.grad_norm}
        row |= {"lr": step.lr, **self._rate(step)}
        if self._hook is not None:
            row |= self._asked_hook(step)
        self._last |= row
        if step.step % self._every == 0:
            self._acts.put(lambda run: self._log(run, row))

    def report(self, report: Report) -> None:
        row: dict[str, Any] = {"milestone": report.milestone, "current_epoch": report.epoch, "tokens": report.tokens}
        row |= {"global_step": report.step, "tokens_per_second": report.tokens_per_second}
        row |= {"memory_gib": report.memory_gib} if report.memory_gib else {}
        row |= {"val_loss": report.val_loss} if report.val_loss is not None else {}
        self._last |= row
        self._reports.append(encode(report))
        told = {REPORTS_KEY: self._told("reports", list(self._reports))} if self._tracking.checkpoint else {}
        self._acts.put(lambda run: self._log_report(run, row, told))

    def adapter(self, path: Path) -> None:
        if not self._tracking.adapter:
            return
        try:
            import wandb

            artifact = wandb.Artifact(self._tracking.adapter, type="model", metadata=self._metadata())
            artifact.add_dir(str(path))  # copied now: a later adapter overwrites it
        except Exception as error:
            self._say(f"the adapter was not uploaded: {_short(error)}")
            return
        self._acts.put(lambda run: run.log_artifact(artifact, aliases=[f"trial-{self._spec.trial}"]))

    def close(self, outcome: Outcome | None) -> None:
        self._acts.put(lambda run: self._finish(run, outcome))
        self._acts.put(None)

    # --- what the worker asks ------------------------------------------------------------------------------------

    def asked_to_stop(self) -> tuple[StopCause, str] | None:
        """A stop that was asked for in W&B: with its page's button, or by a controller that shares nothing else."""
        return (self._told_cause(), "it was stopped in W&B") if self._stop.is_set() else None

    @property
    def patience(self) -> float:
        """How long to wait for it at a worker's end, seconds."""
        return CARRYING_FINISH_SECONDS if self._tracking.checkpoint else FINISH_SECONDS

    def wait(self, seconds: float) -> bool:
        """Wait until everything has been handed to W&B; False where it has not by then."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # --- the thread ----------------------------------------------------------------------------------------------

    def _serve(self, earlier: threading.Thread | None) -> None:
        if earlier is not None:
            earlier.join()
        run: Any = None
        try:
            run = self._open()
        except Exception as error:
            self._say(f"not tracked: {_short(error)}")
        while (act := self._acts.get()) is not None:
            if run is None:
                continue
            try:
                act(run)
            except Exception as error:
                self._say(_short(error))

    def _open(self) -> Any:
        if self._spec.attempt > 1 and self._tracking.mode != "offline":
            await_others(self._tracking)
        deadline = time.monotonic() + self.patience
        try:
            while True:
                try:
                    return self._init(self._tracking.mode)
                except Exception as error:
                    if not self._tracking.checkpoint or time.monotonic() > deadline:
                        raise
                    self._say(f"cannot be reached, trying again: {_short(error)}")
                    time.sleep(RETRY_SECONDS)
        except Exception as error:
            if self._tracking.mode == "offline":
                raise
            self._say(f"W&B cannot be reached ({_short(error)}); `sweep sync` uploads this attempt later")
            return self._init("offline")

    def _init(self, mode: str) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")  # else each artifact prints a line into the worker's log
        import wandb

        wanted = dict(self._tracking.init)
        carrying = CARRYING_SETTINGS if self._tracking.checkpoint else {}
        settings = {**SETTINGS, **carrying, **wanted.pop("settings", {}), "stop_fn": self._stop.set}
        run: Any = wandb.init(
            **wanted,
            id=self._tracking.run,
            mode="offline" if mode == "offline" else "online",
            dir=str(self._files.path),
            config=self._config(),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**settings),
        )
        run.define_metric("*", step_metric="global_step")
        self._save_config(run)
        if not run.offline:
            self._before = int(run.summary.get("global_step") or 0)
            self._milestone = int(run.summary.get("milestone") or 0)
            declare_inputs(run, self._tracking.inputs)
        return run

    def _config(self) -> dict[str, Any]:
        spec = self._spec
        sweep = {"name": spec.sweep, "trial": spec.trial, "attempt": spec.attempt, "worker": spec.worker}
        return {**spec.config, "sweep": sweep}

    def _save_config(self, run: Any) -> None:
        path = self._files.path / "torchtune_config.yaml"
        write_atomic(path, yaml.safe_dump(dict(self._spec.config), sort_keys=False))
        run.save(str(path), base_path=str(path.parent), policy="now")

    def _log(self, run: Any, row: Mapping[str, Any]) -> None:
        if row["global_step"] > self._before:
            run.log(dict(row))

    def _log_report(self, run: Any, row: Mapping[str, Any], told: Mapping[str, Any]) -> None:
        if row["milestone"] > self._milestone:
            run.log(dict(row))
        run.summary.update(dict(told))

    def _finish(self, run: Any, outcome: Outcome | None) -> None:
        try:
            if outcome is not None:
                self._conclude(run, outcome)
        finally:
            run.finish(exit_code=exit_code(outcome))
        if not run.offline:
            write_atomic(self._files.path / "tracked", self._tracking.run)

    def _conclude(self, run: Any, outcome: Outcome) -> None:
        if self._tracking.checkpoint:
            self._carry(run, outcome)
        run.summary.update(summary_of(outcome))
        if outcome.cause is StopCause.PREEMPTED and not run.offline:
            run.mark_preempting()

    def _carry(self, run: Any, outcome: Outcome) -> None:
        """Hand over how it ended, after the checkpoint from which the next attempt goes on."""
        if outcome.resumable and self._files.checkpoint.exists():
            import wandb

            artifact = wandb.Artifact(self._tracking.checkpoint, type="checkpoint")
            artifact.add_file(str(self._files.checkpoint))
            run.log_artifact(artifact).wait()
        run.summary.update({OUTCOME_KEY: self._told("outcome", encode(outcome))})

    # --- parts ---------------------------------------------------------------------------------------------------

    def _told(self, what: str, value: Any) -> str:
        return json.dumps({"attempt": self._spec.attempt, "worker": self._spec.worker, what: value})

    def _rate(self, step: Step) -> dict[str, float]:
        now, before = time.perf_counter(), self._lap
        self._lap = now, step.tokens
        if before is None or now <= before[0]:
            return {}
        return {"tokens_per_second": (step.tokens - before[1]) / (now - before[0])}

    def _asked_hook(self, step: Step) -> dict[str, float]:
        assert self._hook is not None
        try:
            return {str(key): float(value) for key, value in self._hook(step).items()}
        except Exception as error:
            self._say(f"wandb.hook={self._tracking.hook} failed and is not asked again: {_short(error)}")
            self._hook = None
            return {}

    def _metadata(self) -> dict[str, Any]:
        cfg, last = self._spec.config, self._last
        found = {
            "sweep": self._spec.sweep,
            "trial": self._spec.trial,
            "seed": cfg.get("seed"),
            "epochs": cfg.get("epochs"),
            "steps": last.get("global_step"),
            "tokens": last.get("tokens"),
            "lora_rank": cfg.get("model", {}).get("lora_rank"),
            "lora_alpha": cfg.get("model", {}).get("lora_alpha"),
            "learning_rate": cfg.get("optimizer", {}).get("lr"),
            "milestone": last.get("milestone"),
            "loss": last.get("loss"),
            "val_loss": last.get("val_loss"),
        }
        return {key: value for key, value in found.items() if value is not None}

    def _told_cause(self) -> StopCause:
        """Why the controller asked for the stop, as a tag of the run says; without one, a person did.

        Where W&B is all that is shared, the controller knows who it was, and a checkpoint is kept until it says so.
        """
        with suppress(Exception):
            import wandb

            run = wandb.Api(timeout=10).run(_path_of(self._tracking))
            causes = [tag.removeprefix(STOP_TAG) for tag in run.tags if tag.startswith(STOP_TAG)]
            return StopCause(causes[-1])
        return StopCause.INTERRUPTED if self._tracking.checkpoint else StopCause.CANCELLED

    def _say(self, text: str) -> None:
        _log.warning("trial %d attempt %d: W&B: %s", self._spec.trial, self._spec.attempt, text)


def summary_of(outcome: Outcome) -> dict[str, Any]:
    """How a trial ended, for a run's summary: what a person reads there."""
    state = outcome.cause.value if outcome.cause is not None else outcome.kind.value
    if outcome.kind is OutcomeKind.COMPLETED:
        state = "complete"  # as the sweep's own words are
    return {STATE: state, REASON: outcome.reason, **score_summary(outcome.scores)}


def score_summary(scores: Mapping[str, float]) -> dict[str, float]:
    """An evaluation's scores as keys of a run's summary."""
    return {f"eval/{name}": value for name, value in scores.items()}


def exit_code(outcome: Outcome | None) -> int:
    """A run's exit code: 0 for all that went as it was meant to, 143 for a preempted attempt, 1 for a failed one."""
    if outcome is None or outcome.kind is OutcomeKind.FAILED:
        return 1
    return 143 if outcome.cause is StopCause.PREEMPTED else 0


def await_trackers(run: str) -> None:
    """Wait until the trackers of a run in this process have ended; not for a tracker's own thread."""
    if (newest := _threads.get(run)) is not None:
        newest.join()  # each has waited for the one before it


def await_others(tracking: Tracking) -> None:
    """Wait until W&B knows of no client that writes to the run, `HANDOVER_SECONDS` at most.

    A client takes in the summary that it finds and sends it whole: what another sends in its last seconds, the end of
    training itself, would be lost.
    """
    import wandb

    end = time.monotonic() + HANDOVER_SECONDS
    with suppress(Exception):  # no such run, or W&B is away, which `init` will say
        api: Any = wandb.Api(timeout=10)
        while api.run(_path_of(tracking)).state in ("running", "preempting") and time.monotonic() < end:
            time.sleep(HANDOVER_LOOK_SECONDS)
            api.flush()


def _path_of(tracking: Tracking) -> str:
    """The run's path for W&B's public API; without an entity its own default serves."""
    return "/".join(part for part in (tracking.init.get("entity"), tracking.init.get("project"), tracking.run) if part)


def declare_inputs(run: Any, inputs: Mapping[str, Any]) -> None:
    """Record by reference what a run's adapter is made of: `name` to `type` and `uri`."""
    import wandb

    for name, source in inputs.items():
        artifact = wandb.Artifact(name, type=source["type"], metadata={"uri": source["uri"]})
        artifact.add_reference(source["uri"], name="source", checksum=False)
        run.use_artifact(artifact)


def _logged_before(room: Room, spec: TrialSpec) -> tuple[int, int]:
    """The last optimizer step and the last milestone that an earlier attempt of this trial logged."""
    step = milestone = 0
    for number in room.attempts(spec.trial):
        if number < spec.attempt:
            files = room.attempt(spec.trial, number)
            step = max([step, *(one.step for one in _whole(Step, files.steps))])
            milestone = max([milestone, *(one.milestone for one in _whole(Report, files.reports))])
    return step, milestone


def _whole(kind: type[T], path: Path) -> Iterator[T]:
    """What the lines of a file say; a torn one says nothing."""
    for line in (read_text(path) or "").splitlines():
        with suppress(ContractError):
            yield decode(kind, line)


def _load_hook(path: str, components: tuple[str, ...]) -> Hook | None:
    if not path:
        return None
    check_path("wandb.hook", path, components)
    module, _, name = path.rpartition(".")
    hook: Hook = getattr(importlib.import_module(module), name)
    return hook


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
