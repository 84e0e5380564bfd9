"""Tracks a trial in W&B: what a `Reporter` receives becomes the history, the files and the artifacts of a run.

Invariants: training never waits for W&B and never fails because of it. A thread of the attempt's own talks to W&B, and
an error there becomes a line in the worker's log. Everything that is sent is also in the attempt's directory, from
which `sweep sync` uploads what did not arrive; the file `tracked` marks what did. All attempts of a trial share one
run. A step that an earlier attempt has logged is not logged again. One client writes to a run at a time, since a later
one would overwrite what it has not read. A run ends with the attempt's true exit code.
"""

from __future__ import annotations

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

from trainer.components import load_function
from trainer.contract import (
    OUTCOME_KEY,
    REPORTS_KEY,
    ContractError,
    Outcome,
    Report,
    Step,
    StopCause,
    Tracking,
    TrialSpec,
    decode,
    encode,
)
from trainer.room import Room, read_text, write_atomic
from trainer.shortening import short_values
from trainer.tracking.runs import await_others, declare_inputs, stop_cause
from trainer.tracking.summary import exit_code, metric_summary, summary_of

_log = logging.getLogger(__name__)

# Several runs share one process, so that its output belongs to none of them.
SETTINGS: Mapping[str, Any] = {"silent": True, "console": "off"}
# If the controller waits for what a run sends, the client sends it every 5 s instead of every 15 s.
CARRYING_SETTINGS: Mapping[str, Any] = {"x_file_stream_transmit_interval": 5}
# How long an ending worker waits for its uploads to W&B: with a copy in a shared room, and without one.
FINISH_SECONDS = 30.0
CARRYING_FINISH_SECONDS = 900.0
RETRY_SECONDS = 15.0
# The thread of each run's newest client in this process; W&B refuses two clients of one run in a process.
_threads: WeakValueDictionary[str, threading.Thread] = WeakValueDictionary()

T = TypeVar("T")
Act = Callable[[Any], None]
Hook = Callable[[Step], Mapping[str, float]]


class Tracker:
    """A `Reporter` (see `trainer.reporter`) that writes to a W&B run.

    Args:
        tracking: that of the specification.
    """

    def __init__(self, room: Room, spec: TrialSpec, tracking: Tracking) -> None:
        self._spec, self._tracking = spec, tracking
        self._files = room.attempt(spec.trial, spec.attempt)
        self._logged_step, self._logged_milestone = _logged_before(room, spec)
        self._hook: Hook | None = None
        self._every = int(spec.config.get("log_every_n_steps") or 1)
        self._last: dict[str, Any] = {}
        self._logged: dict[str, float] = {}
        self._reports: list[str] = []
        self._last_step: tuple[float, int] | None = None
        self._acts: SimpleQueue[Act | None] = SimpleQueue()
        self._stop = threading.Event()
        try:
            self._hook = _load_hook(tracking.hook, spec.components)
        except Exception as error:
            self._warn(f"wandb.hook={tracking.hook} cannot be loaded and is not called: {_short(error)}")
        earlier = _threads.get(tracking.run)
        self._thread = _threads[tracking.run] = threading.Thread(target=self._serve, args=(earlier,), daemon=True)
        self._thread.start()

    # --- what the attempt reports --------------------------------------------------------------------------------

    def step(self, step: Step) -> None:
        row = {"global_step": step.step, "tokens": step.tokens, "loss": step.loss, "grad_norm": step.grad_norm}
        row |= {"lr": step.lr, **self._rate(step)}
        if self._hook is not None:
            row |= self._hook_row(step)
        self._last |= row
        if step.step % self._every == 0:
            self._acts.put(lambda run: self._log(run, row))

    def report(self, report: Report) -> None:
        row: dict[str, Any] = dict(report.scores)
        row |= {"milestone": report.milestone, "current_epoch": report.epoch, "tokens": report.tokens}
        row |= {"global_step": report.step, "tokens_per_second": report.tokens_per_second}
        row |= {"memory_gib": report.memory_gib} if report.memory_gib else {}
        row |= {"val_loss": report.val_loss} if report.val_loss is not None else {}
        row |= metric_summary(report.scores)
        self._last |= row
        self._reports.append(encode(report))
        message = {REPORTS_KEY: self._message("reports", list(self._reports))} if self._tracking.checkpoint else {}
        self._acts.put(lambda run: self._log_report(run, row, message))

    def adapter(self, path: Path) -> None:
        if not self._tracking.adapter:
            return
        try:
            import wandb

            artifact = wandb.Artifact(self._tracking.adapter, type="model", metadata=self._metadata())
            artifact.add_dir(str(path))  # it copies the files now, since the next adapter overwrites them
        except Exception as error:
            self._warn(f"the adapter was not uploaded: {_short(error)}")
            return
        self._acts.put(lambda run: run.log_artifact(artifact, aliases=[f"trial-{self._spec.trial}"]))

    def close(self, outcome: Outcome | None) -> None:
        self._acts.put(lambda run: self._finish(run, outcome))
        self._acts.put(None)

    # --- for the worker ------------------------------------------------------------------------------------------

    def logged(self) -> dict[str, float]:
        """The last number under each name that the hook has returned."""
        return self._logged

    def stop_request(self) -> tuple[StopCause, str] | None:
        """A stop that was requested in W&B: with the button of its page, or by a controller that shares W&B only."""
        return (stop_cause(self._tracking), "it was stopped in W&B") if self._stop.is_set() else None

    @property
    def patience(self) -> float:
        """How many seconds an ending worker waits for it."""
        return CARRYING_FINISH_SECONDS if self._tracking.checkpoint else FINISH_SECONDS

    def wait(self, seconds: float) -> bool:
        """Wait until everything has been sent to W&B; False if it has not been after this many seconds."""
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
            self._warn(f"not tracked: {_short(error)}")
        while (act := self._acts.get()) is not None:
            if run is None:
                continue
            try:
                act(run)
            except Exception as error:
                self._warn(_short(error))

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
                    self._warn(f"unreachable, retrying: {_short(error)}")
                    time.sleep(RETRY_SECONDS)
        except Exception as error:
            if self._tracking.mode == "offline":
                raise
            self._warn(f"unreachable ({_short(error)}); run `sweep sync` to upload this attempt later")
            return self._init("offline")

    def _init(self, mode: str) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")  # otherwise each artifact prints a line into the worker's log
        import wandb

        arguments = dict(self._tracking.init)
        carrying = CARRYING_SETTINGS if self._tracking.checkpoint else {}
        settings = {**SETTINGS, **carrying, **arguments.pop("settings", {}), "stop_fn": self._stop.set}
        run: Any = wandb.init(
            **arguments,
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
            self._logged_step = int(run.summary.get("global_step") or 0)
            self._logged_milestone = int(run.summary.get("milestone") or 0)
            declare_inputs(run, self._tracking.inputs)
        return run

    def _config(self) -> dict[str, Any]:
        spec = self._spec
        sweep = {"name": spec.sweep, "trial": spec.trial, "attempt": spec.attempt, "worker": spec.worker}
        return {**short_values(spec.config), "sweep": sweep}  # the whole one is a file of the run

    def _save_config(self, run: Any) -> None:
        path = self._files.path / "torchtune_config.yaml"
        write_atomic(path, yaml.safe_dump(dict(self._spec.config), sort_keys=False))
        run.save(str(path), base_path=str(path.parent), policy="now")

    def _log(self, run: Any, row: Mapping[str, Any]) -> None:
        if row["global_step"] > self._logged_step:
            run.log(dict(row))

    def _log_report(self, run: Any, row: Mapping[str, Any], message: Mapping[str, Any]) -> None:
        if row["milestone"] > self._logged_milestone:
            run.log(dict(row))
        run.summary.update(dict(message))

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
        """Upload the checkpoint from which the next attempt resumes, then the outcome."""
        if outcome.resumable and self._files.checkpoint.exists():
            import wandb

            artifact = wandb.Artifact(self._tracking.checkpoint, type="checkpoint")
            artifact.add_file(str(self._files.checkpoint))
            run.log_artifact(artifact).wait()
        run.summary.update({OUTCOME_KEY: self._message("outcome", encode(outcome))})

    # --- parts ---------------------------------------------------------------------------------------------------

    def _message(self, what: str, value: Any) -> str:
        return json.dumps({"attempt": self._spec.attempt, "worker": self._spec.worker, what: value})

    def _rate(self, step: Step) -> dict[str, float]:
        now, before = time.perf_counter(), self._last_step
        self._last_step = now, step.tokens
        if before is None or now <= before[0]:
            return {}
        return {"tokens_per_second": (step.tokens - before[1]) / (now - before[0])}

    def _hook_row(self, step: Step) -> dict[str, float]:
        assert self._hook is not None
        try:
            row = {str(key): float(value) for key, value in self._hook(step).items()}
        except Exception as error:
            self._warn(f"wandb.hook={self._tracking.hook} failed and is not called again: {_short(error)}")
            self._hook = None
            return {}
        self._logged |= row
        return row

    def _metadata(self) -> dict[str, Any]:
        cfg, last = self._spec.config, self._last
        metadata = {
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
            **{key: value for key, value in last.items() if key.startswith("metric/")},
        }
        return {key: value for key, value in metadata.items() if value is not None}

    def _warn(self, text: str) -> None:
        _log.warning("trial %d attempt %d: W&B: %s", self._spec.trial, self._spec.attempt, text)


def await_trackers(run: str) -> None:
    """Wait until the trackers of a run in this process have ended. A tracker's own thread must not call it."""
    if (newest := _threads.get(run)) is not None:
        newest.join()  # each has waited for the one before it


def _logged_before(room: Room, spec: TrialSpec) -> tuple[int, int]:
    """The last optimizer step and the last milestone that earlier attempts of this trial logged."""
    step = milestone = 0
    for number in room.attempts(spec.trial):
        if number < spec.attempt:
            files = room.attempt(spec.trial, number)
            step = max([step, *(record.step for record in _whole(Step, files.steps))])
            milestone = max([milestone, *(record.milestone for record in _whole(Report, files.reports))])
    return step, milestone


def _whole(kind: type[T], path: Path) -> Iterator[T]:
    """The messages in the lines of a file, except damaged ones."""
    for line in (read_text(path) or "").splitlines():
        with suppress(ContractError):
            yield decode(kind, line)


def _load_hook(path: str, components: tuple[str, ...]) -> Hook | None:
    if not path:
        return None
    hook: Hook = load_function("wandb.hook", path, components)
    return hook


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
