"""What a trial's tracker tells its W&B run, with a run in the place of W&B's; and that nothing of it fails a trial."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trainer import logs
from trainer.contract import (
    OUTCOME_KEY,
    REPORTS_KEY,
    STOP_TAG,
    FailureKind,
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
from trainer.room import Room, write_atomic
from trainer.tracking import tracker as tracking
from trainer.tracking.tracker import Tracker, exit_code

INIT = {"entity": "team", "project": "p", "name": "s-3"}
ONLINE = Tracking(
    "run-1", "online", INIT, adapter="s-adapter", inputs={"base": {"type": "base-model", "uri": "file:///b"}}
)
CONFIG = {"model": {"lora_rank": 8, "lora_alpha": 16}, "optimizer": {"lr": 0.1}, "seed": 5, "epochs": 2}
SPEC = TrialSpec("s", 3, 1, "w0001", CONFIG, milestone_tokens=10, tracking=ONLINE)
CARRIED = replace(ONLINE, checkpoint="run-1-checkpoint")
COMPLETED = Outcome(OutcomeKind.COMPLETED)
PRUNED = Outcome(OutcomeKind.STOPPED, "worse: 3 of 4", cause=StopCause.PRUNED)
PREEMPTED = Outcome(OutcomeKind.STOPPED, "its worker ends", cause=StopCause.PREEMPTED)


def step(number: int) -> Step:
    return Step(number, number * 10, 3.0 - number / 10, 1.5, 1e-3)


def report(milestone: int, val_loss: float | None = 2.5) -> Report:
    return Report(milestone, milestone, milestone * 10, 0, 2.9, 1.5, 1e-3, 100.0, 0.5, val_loss=val_loss)


@dataclass
class FakeRun:
    """As much of a `wandb.Run` as a tracker uses."""

    offline: bool
    settings: Any
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    logged: list[tuple[Any, list[str]]] = field(default_factory=list)
    used: list[Any] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    preempting: bool = False
    broken: set[str] = field(default_factory=set)

    def log(self, row: dict[str, Any]) -> None:
        self._may("log")
        self.rows.append(row)
        self.summary |= row

    def define_metric(self, name: str, step_metric: str) -> None:
        self._may("define_metric")

    def save(self, path: str, base_path: str, policy: str) -> None:
        self.saved.append(path)

    def log_artifact(self, artifact: Any, aliases: list[str] | None = None) -> Any:
        self._may("log_artifact")
        self.logged.append((artifact, aliases or []))
        return SimpleNamespace(wait=lambda: None)

    def use_artifact(self, artifact: Any) -> None:
        self.used.append(artifact)

    def mark_preempting(self) -> None:
        self.preempting = True

    def finish(self, exit_code: int) -> None:
        self.codes.append(exit_code)

    def _may(self, what: str) -> None:
        if what in self.broken:
            raise ConnectionError(f"{what}: W&B is away")


@dataclass
class FakeArtifact:
    name: str
    type: str
    metadata: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    references: list[str] = field(default_factory=list)

    def add_dir(self, path: str) -> None:
        self.files |= {one.name: one.read_bytes() for one in Path(path).iterdir()}

    def add_file(self, path: str) -> None:
        self.files[Path(path).name] = Path(path).read_bytes()

    def add_reference(self, uri: str, name: str, checksum: bool) -> None:
        self.references.append(uri)


class FakeWandb(ModuleType):
    """In the place of the package."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.runs: list[FakeRun] = []
        self.there: dict[str, Any] = {}  # the summary of the run as W&B has it
        self.tags: list[str] = []
        self.refuses = 0
        self.broken: set[str] = set()
        self.Artifact = FakeArtifact
        self.Settings = SimpleNamespace
        self.states = ["finished"]  # of the run, as W&B has it each time that it is asked anew; the last one stays
        self.asked: list[str] = []
        self.Api = lambda timeout: SimpleNamespace(run=self._look, flush=self._forget)

    def init(self, **words: Any) -> FakeRun:
        self.begun.append(words)
        if words["mode"] == "online" and self.refuses:
            self.refuses -= 1
            raise ConnectionError("W&B is away")
        self.runs.append(
            FakeRun(words["mode"] == "offline", words["settings"], dict(self.there), broken=set(self.broken))
        )
        return self.runs[-1]

    def _look(self, path: str) -> SimpleNamespace:
        self.asked.append(path)
        return SimpleNamespace(tags=self.tags, state=self.states[0])

    def _forget(self) -> None:
        self.states = self.states[1:] or self.states

    @property
    def run(self) -> FakeRun:
        return self.runs[-1]


@pytest.fixture(autouse=True)
def log_lines() -> None:
    """Log lines go to standard output, as in a worker."""
    logs.configure()


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    made = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", made)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "HANDOVER_LOOK_SECONDS", 0.0)
    return made


@pytest.fixture
def room(tmp_path: Path) -> Room:
    found = Room(tmp_path)
    write_atomic(found.attempt(3, 1).spec, encode(SPEC))
    return found


def track(room: Room, spec: TrialSpec = SPEC, tracked: Tracking = ONLINE) -> Tracker:
    room.attempt(spec.trial, spec.attempt).path.mkdir(parents=True, exist_ok=True)
    return Tracker(room, replace(spec, tracking=tracked), tracked)


def close(tracker: Tracker, outcome: Outcome | None = COMPLETED) -> None:
    tracker.close(outcome)
    assert tracker.wait(60)


def test_what_a_trial_says_becomes_its_run(wandb: FakeWandb, room: Room) -> None:
    tracker = track(room)
    tracker.step(step(1))
    tracker.step(step(2))
    tracker.report(report(1))
    close(tracker)
    one, two, told = wandb.run.rows
    assert (one["global_step"], one["loss"], one["lr"], one["grad_norm"], one["tokens"]) == (1, 2.9, 1e-3, 1.5, 10)
    assert "tokens_per_second" not in one
    assert two["tokens_per_second"] > 0
    assert (told["milestone"], told["val_loss"], told["current_epoch"], told["global_step"]) == (1, 2.5, 0, 1)
    assert wandb.run.summary["trial/state"] == "complete"
    assert wandb.run.codes == [0]
    assert (room.attempt(3, 1).path / "tracked").read_text() == "run-1"


def test_how_its_run_begins(wandb: FakeWandb, room: Room) -> None:
    close(track(room, tracked=replace(ONLINE, init={**INIT, "notes": "why", "settings": {"console": "wrap"}})))
    (begun,) = wandb.begun
    assert {key: begun[key] for key in ("id", "mode", "resume", "reinit", "entity", "project", "notes")} == {
        "id": "run-1",
        "mode": "online",
        "resume": "allow",
        "reinit": "create_new",
        "entity": "team",
        "project": "p",
        "notes": "why",
    }
    assert begun["dir"] == str(room.attempt(3, 1).path)
    assert begun["config"] == {**CONFIG, "sweep": {"name": "s", "trial": 3, "attempt": 1, "worker": "w0001"}}
    assert (begun["settings"].console, begun["settings"].silent) == ("wrap", True), "the user's settings come last"
    assert [Path(path).name for path in wandb.run.saved] == ["torchtune_config.yaml"]
    assert [(one.name, one.type, one.references) for one in wandb.run.used] == [("base", "base-model", ["file:///b"])]


def test_log_every_n_steps_is_kept(wandb: FakeWandb, room: Room) -> None:
    tracker = track(room, replace(SPEC, config={**CONFIG, "log_every_n_steps": 3}))
    for number in range(1, 8):
        tracker.step(step(number))
    close(tracker)
    assert [row["global_step"] for row in wandb.run.rows] == [3, 6]


# --- the user's hook -------------------------------------------------------------------------------------------------


def with_hook(room: Room, name: str) -> Tracker:
    spec = replace(SPEC, components=("tests.unit.trainer.hooks",))
    return track(room, spec, replace(ONLINE, hook=f"tests.unit.trainer.hooks.{name}"))


def test_a_hook_s_numbers_are_logged_with_each_step(wandb: FakeWandb, room: Room) -> None:
    tracker = with_hook(room, "doubled")
    tracker.step(step(2))
    close(tracker)
    assert wandb.run.rows[0]["doubled"] == 4.0


def test_a_hook_that_fails_is_asked_no_more(wandb: FakeWandb, room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = with_hook(room, "failing_at_two")
    for number in (1, 2, 3):
        tracker.step(step(number))
    close(tracker)
    assert [row.get("extra") for row in wandb.run.rows] == [1.0, None, None]
    said = capsys.readouterr().out
    assert (
        said.count("wandb.hook=tests.unit.trainer.hooks.failing_at_two failed and is not asked again: ValueError: two")
        == 1
    )


@pytest.mark.parametrize("path", ["tests.unit.trainer.hooks.absent", "os.system"])
def test_a_hook_that_cannot_be_had_is_told_and_done_without(
    wandb: FakeWandb, room: Room, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    tracker = track(room, replace(SPEC, components=("tests.unit.trainer.hooks",)), replace(ONLINE, hook=path))
    tracker.step(step(1))
    close(tracker)
    assert len(wandb.run.rows) == 1
    assert f"wandb.hook={path} is not asked" in capsys.readouterr().out


# --- attempts of one trial -------------------------------------------------------------------------------------------


def test_a_resumed_run_logs_no_step_and_no_milestone_twice(wandb: FakeWandb, room: Room) -> None:
    wandb.there = {"global_step": 3, "milestone": 2}
    tracker = track(room, replace(SPEC, attempt=2))
    for number in (2, 3, 4):
        tracker.step(step(number))
    for milestone in (2, 3):
        tracker.report(replace(report(milestone), step=milestone + 2))
    close(tracker)
    assert [row["global_step"] for row in wandb.run.rows if "lr" in row] == [4]
    assert [row["milestone"] for row in wandb.run.rows if "milestone" in row] == [3]


def test_a_later_attempt_waits_until_the_earlier_one_s_client_has_sent_all(wandb: FakeWandb, room: Room) -> None:
    wandb.states = ["running", "preempting", "running", "finished"]
    close(track(room, replace(SPEC, attempt=2)))
    assert wandb.asked == ["team/p/run-1"] * 4
    assert wandb.states == ["finished"]
    wandb.asked.clear()
    close(track(room))
    close(track(room, replace(SPEC, attempt=2), replace(ONLINE, mode="offline")))
    assert wandb.asked == [], "a first attempt has none before it, and offline there is nobody to ask"


def test_clients_of_one_process_follow_each_other_also_offline(wandb: FakeWandb, room: Room) -> None:
    """W&B's service refuses a second one of a run, wherever it writes to."""
    offline = replace(ONLINE, mode="offline")
    first, second, third = (track(room, replace(SPEC, attempt=number), offline) for number in (2, 3, 4))
    third.close(COMPLETED)
    second.close(PREEMPTED)
    assert not third.wait(0.2), "the first has not ended"
    assert len(wandb.runs) <= 1
    close(first)
    assert third.wait(60)
    assert [run.codes for run in wandb.runs] == [[0], [143], [0]]


def test_an_earlier_attempt_that_was_killed_is_not_waited_for_long(
    wandb: FakeWandb, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "HANDOVER_SECONDS", 0.01)
    wandb.states = ["running"]
    close(track(room, replace(SPEC, attempt=2)))
    assert wandb.run.codes == [0]


def test_offline_the_room_says_what_earlier_attempts_have_logged(wandb: FakeWandb, room: Room) -> None:
    files = room.attempt(3, 1)
    files.steps.write_text("".join(encode(step(number)) + "\n" for number in (1, 2, 3)) + encode(step(4))[:20])
    files.reports.write_text(encode(report(1)) + "\n")
    tracker = track(room, replace(SPEC, attempt=2), replace(ONLINE, mode="offline"))
    for number in (3, 4):
        tracker.step(step(number))
    for milestone in (1, 2):
        tracker.report(report(milestone))
    close(tracker)
    assert [row["global_step"] for row in wandb.run.rows if "lr" in row] == [4]
    assert [row["milestone"] for row in wandb.run.rows if "milestone" in row] == [2]


# --- W&B fails -------------------------------------------------------------------------------------------------------


def test_where_wandb_cannot_be_reached_the_run_is_kept_for_later(
    wandb: FakeWandb, room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.refuses = 99
    tracker = track(room)
    tracker.step(step(1))
    close(tracker)
    assert [begun["mode"] for begun in wandb.begun] == ["online", "offline"]
    assert len(wandb.run.rows) == 1
    assert not (room.attempt(3, 1).path / "tracked").exists()
    assert "`sweep sync` uploads this attempt later" in capsys.readouterr().out


def test_a_trial_goes_on_while_wandb_keeps_its_answer(
    wandb: FakeWandb, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, begin = threading.Event(), wandb.init

    def late(**words: Any) -> FakeRun:
        held.wait(30)
        return begin(**words)

    monkeypatch.setattr(wandb, "init", late)
    tracker = track(room)
    for number in (1, 2, 3):
        tracker.step(step(number))
    tracker.report(report(1))
    tracker.close(COMPLETED)
    assert not tracker.wait(0), "all was said, and no answer has come"
    held.set()
    assert tracker.wait(60)
    assert [row["global_step"] for row in wandb.run.rows if "lr" in row] == [1, 2, 3]
    assert wandb.run.codes == [0]


def test_where_the_controller_waits_for_it_wandb_is_tried_again(wandb: FakeWandb, room: Room) -> None:
    wandb.refuses = 3
    close(track(room, tracked=CARRIED))
    assert [begun["mode"] for begun in wandb.begun] == ["online"] * 4
    assert OUTCOME_KEY in wandb.run.summary


@pytest.mark.parametrize("what", ["log", "log_artifact", "define_metric"])
def test_whatever_wandb_does_the_trial_goes_on_and_its_run_ends(
    wandb: FakeWandb, room: Room, tmp_path: Path, what: str
) -> None:
    wandb.broken = {what}
    tracker = track(room)
    tracker.step(step(1))
    tracker.report(report(1))
    tracker.adapter(adapter(tmp_path))
    close(tracker)
    assert what == "define_metric" or wandb.run.codes == [0]


def test_a_run_ends_with_its_exit_code_though_its_last_words_fail(wandb: FakeWandb, room: Room) -> None:
    wandb.broken = {"log_artifact"}
    write_atomic(room.attempt(3, 1).checkpoint, b"state")
    close(track(room, tracked=CARRIED), PREEMPTED)
    assert wandb.run.codes == [143]


@pytest.mark.parametrize(
    ("outcome", "code", "state"),
    [
        (COMPLETED, 0, "complete"),
        (PRUNED, 0, "pruned"),
        (Outcome(OutcomeKind.DIVERGED, "nan"), 0, "diverged"),
        (Outcome(OutcomeKind.FAILED, "no file", failure=FailureKind.MISSING_FILE), 1, "failed"),
        (Outcome(OutcomeKind.STOPPED, "left", cause=StopCause.INTERRUPTED), 0, "interrupted"),
        (PREEMPTED, 143, "preempted"),
    ],
)
def test_the_end_and_its_reason(wandb: FakeWandb, room: Room, outcome: Outcome, code: int, state: str) -> None:
    close(track(room), outcome)
    assert wandb.run.codes == [code]
    assert (wandb.run.summary["trial/state"], wandb.run.summary["trial/reason"]) == (state, outcome.reason)
    assert wandb.run.preempting is (outcome is PREEMPTED)


def test_an_attempt_that_ended_without_a_word_has_failed(wandb: FakeWandb, room: Room) -> None:
    close(track(room), None)
    assert wandb.run.codes == [exit_code(None)] == [1]


# --- artifacts -------------------------------------------------------------------------------------------------------


def adapter(tmp_path: Path) -> Path:
    write_atomic(tmp_path / "adapter" / "adapter_model.safetensors", b"weights")
    write_atomic(tmp_path / "adapter" / "adapter_config.json", b"{}")
    return tmp_path / "adapter"


def test_an_adapter_at_each_milestone_with_what_made_it(wandb: FakeWandb, room: Room, tmp_path: Path) -> None:
    tracker = track(room)
    for number in (1, 2):
        tracker.step(step(number))
        tracker.report(report(number))
        tracker.adapter(adapter(tmp_path))
    close(tracker)
    first, second = wandb.run.logged
    assert (first[0].name, first[0].type, first[1]) == ("s-adapter", "model", ["trial-3"])
    assert set(first[0].files) == {"adapter_model.safetensors", "adapter_config.json"}
    assert [one.metadata["milestone"] for one, _ in (first, second)] == [1, 2]
    assert second[0].metadata == {
        "sweep": "s",
        "trial": 3,
        "seed": 5,
        "epochs": 2,
        "steps": 2,
        "tokens": 20,
        "lora_rank": 8,
        "lora_alpha": 16,
        "learning_rate": 0.1,
        "milestone": 2,
        "loss": 2.8,
        "val_loss": 2.5,
    }


def test_without_artifacts_no_adapter_is_uploaded(wandb: FakeWandb, room: Room, tmp_path: Path) -> None:
    tracker = track(room, tracked=replace(ONLINE, adapter=""))
    tracker.adapter(adapter(tmp_path))
    close(tracker)
    assert wandb.run.logged == []


# --- where W&B is all that is shared ---------------------------------------------------------------------------------


def test_reports_and_the_outcome_travel_in_the_summary_with_whose_they_are(wandb: FakeWandb, room: Room) -> None:
    tracker = track(room, tracked=CARRIED)
    for milestone in (1, 2):
        tracker.report(report(milestone))
    close(tracker, PRUNED)
    reports = json.loads(wandb.run.summary[REPORTS_KEY])
    assert (reports["attempt"], reports["worker"]) == (1, "w0001")
    assert [decode(Report, line) for line in reports["reports"]] == [report(1), report(2)]
    told = json.loads(wandb.run.summary[OUTCOME_KEY])
    assert decode(Outcome, told["outcome"]) == PRUNED
    assert wandb.run.settings.x_file_stream_transmit_interval == 5


def test_a_later_attempt_tells_all_its_reports_also_those_that_it_does_not_log(wandb: FakeWandb, room: Room) -> None:
    wandb.there = {"milestone": 1, "global_step": 1}
    tracker = track(room, replace(SPEC, attempt=2), CARRIED)
    for milestone in (1, 2):
        tracker.report(report(milestone))
    close(tracker)
    told = json.loads(wandb.run.summary[REPORTS_KEY])
    assert told["attempt"] == 2
    assert [decode(Report, line).milestone for line in told["reports"]] == [1, 2]
    assert [row["milestone"] for row in wandb.run.rows] == [2]


def test_the_checkpoint_is_there_before_the_outcome_that_needs_it(wandb: FakeWandb, room: Room) -> None:
    write_atomic(room.attempt(3, 1).checkpoint, b"state")
    close(track(room, tracked=CARRIED), PREEMPTED)
    ((artifact, _),) = wandb.run.logged
    assert (artifact.name, artifact.type, artifact.files) == (
        "run-1-checkpoint",
        "checkpoint",
        {"checkpoint.pt": b"state"},
    )
    assert OUTCOME_KEY in wandb.run.summary


def test_a_trial_that_is_over_leaves_no_checkpoint_in_wandb(wandb: FakeWandb, room: Room) -> None:
    write_atomic(room.attempt(3, 1).checkpoint, b"state")
    close(track(room, tracked=CARRIED), PRUNED)
    assert wandb.run.logged == []


@pytest.mark.parametrize(
    ("tracked", "tags", "cause"),
    [
        (CARRIED, [f"{STOP_TAG}pruned"], StopCause.PRUNED),
        (CARRIED, ["mine", f"{STOP_TAG}cancelled"], StopCause.CANCELLED),
        (CARRIED, ["mine"], StopCause.INTERRUPTED),
        (CARRIED, [f"{STOP_TAG}no such"], StopCause.INTERRUPTED),
        (ONLINE, ["mine"], StopCause.CANCELLED),
        (ONLINE, [f"{STOP_TAG}interrupted"], StopCause.INTERRUPTED),
    ],
)
def test_a_stop_that_was_asked_for_in_wandb(
    wandb: FakeWandb, room: Room, tracked: Tracking, tags: list[str], cause: StopCause
) -> None:
    """By the controller, whose reason is a tag; else by a person."""
    tracker = track(room, tracked=tracked)
    tracker.step(step(1))
    assert tracker.asked_to_stop() is None
    while not wandb.runs:
        tracker.wait(0.001)
    wandb.tags = tags
    wandb.run.settings.stop_fn()
    assert tracker.asked_to_stop() == (cause, "it was stopped in W&B")
    close(tracker)
