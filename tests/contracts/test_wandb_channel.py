"""What a `Channel` through W&B alone does with what runs say; what all channels share: `test_channel.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from sweep.controller.room_channel import RoomChannel
from sweep.errors import RetryLater
from sweep.queues.launch.api import ObservedRun
from sweep.queues.launch.channel import WandbChannel
from sweep.queues.launch.runs import Runs
from tests.helpers.launch_fakes import FakeLaunchApi
from trainer.contract import (
    JOB_KEY,
    OUTCOME_KEY,
    REPORTS_KEY,
    Outcome,
    OutcomeKind,
    Report,
    StopCause,
    Tracking,
    TrialSpec,
    decode,
    encode,
)
from trainer.room import Room, read_json, read_text, write_atomic

TRACKING = Tracking("run-1", "online", {"entity": "team", "project": "p"}, adapter="s-adapter", checkpoint="c")
SPEC = TrialSpec("s", 3, 1, "w0001", {"model": {"lora_rank": 8}}, milestone_tokens=10, tracking=TRACKING)
REPORT = Report(1, 2, 10, 0, 2.5, 1.0, 1e-3, 100.0, 0.5)
COMPLETED = Outcome(OutcomeKind.COMPLETED, adapter="adapter")


@dataclass
class Scene:
    room: Room
    api: FakeLaunchApi
    stopping: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.channel = self.restarted()

    def restarted(self) -> WandbChannel:
        return WandbChannel(self.room, RoomChannel(self.room), self.api, Runs(self.api, 0.0), self.stopping.append)

    def look(self, channel: WandbChannel | None = None) -> Any:
        """A round: the dispatcher looks, the channel shows."""
        channel = channel or self.channel
        channel.observe([3], ["w0001"])
        channel.runs.look()
        return channel.observe([3], ["w0001"])

    def say(self, *reports: Report, outcome: Outcome | None = None, state: str = "running", **of: Any) -> None:
        who = {"attempt": 1, "worker": "w0001", **of}
        summary: dict[str, Any] = {REPORTS_KEY: json.dumps({**who, "reports": [encode(one) for one in reports]})}
        summary |= {OUTCOME_KEY: json.dumps({**who, "outcome": encode(outcome)})} if outcome else {}
        self.tell("run-1", state, {"trial": 3, **who}, summary)

    def tell(self, run: str, state: str, sweep: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        said = {"state": state, "pid": 1, "beat": len(reports_of(summary)), "sweep": sweep, "summary": summary}
        write_atomic(self.api.of(run) / "state", json.dumps(said))

    def job(self, **said: Any) -> None:
        write_atomic(self.room.worker("w0001").job, json.dumps({"place": 0, "run": "run-1", "pushed": 1.0, **said}))

    def outcome(self) -> Outcome | None:
        text = read_text(self.room.attempt(3, 1).outcome)
        return None if text is None else decode(Outcome, text)


def reports_of(summary: Mapping[str, Any]) -> list[str]:
    return list(json.loads(summary.get(REPORTS_KEY, '{"reports": []}'))["reports"])


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    (tmp_path / "room").mkdir()
    made = Scene(Room(tmp_path / "room"), FakeLaunchApi(tmp_path / "wandb"))
    made.channel.assign(SPEC)
    made.job()
    return made


def test_reports_and_outcome_of_a_run_become_the_files_of_its_attempt(scene: Scene) -> None:
    second = replace(REPORT, milestone=2)
    scene.say(REPORT)
    assert scene.look()[0][3][0].reports == (REPORT,)
    scene.say(REPORT, second, outcome=COMPLETED, state="finished")
    (sight,) = scene.look()[0][3]
    assert sight.reports == (second,)
    assert sight.outcome == COMPLETED
    assert (scene.room.attempt(3, 1).adapter / "adapter_config.json").exists()


def test_reports_that_come_after_the_outcome_are_taken_until_the_final_one_is_there(scene: Scene) -> None:
    """W&B's summary is put together of what arrives, in whatever order."""
    final = replace(REPORT, milestone=2, final=True)
    scene.say(REPORT, outcome=COMPLETED, state="finished")
    (sight,) = scene.look()[0][3]
    assert (sight.reports, sight.outcome) == ((REPORT,), COMPLETED)
    fetched = scene.api.asked("fetch_adapter")
    scene.say(REPORT, final, outcome=COMPLETED, state="finished")
    (sight,) = scene.look()[0][3]
    assert (sight.reports, sight.outcome) == ((final,), COMPLETED)
    assert scene.api.asked("fetch_adapter") == fetched, "the outcome is not taken twice"
    scene.say(REPORT, final, replace(REPORT, milestone=3), outcome=COMPLETED, state="finished")
    assert scene.look()[0][3][0].reports == ()


def test_an_outcome_that_cannot_be_read_is_taken_again(scene: Scene) -> None:
    scene.say(REPORT, outcome=COMPLETED, state="finished")
    scene.look()
    scene.room.attempt(3, 1).outcome.write_bytes(b"\x00" * 50)
    assert scene.look(scene.restarted())[0][3][0].outcome == COMPLETED


def test_a_run_that_is_deleted_after_its_outcome_has_not_been_cancelled(scene: Scene) -> None:
    scene.say(REPORT, outcome=COMPLETED, state="finished")
    scene.look()
    scene.api.delete_run("run-1")
    for _ in range(5):
        scene.look()
    assert scene.outcome() == COMPLETED


def test_a_torn_file_of_reports_is_made_whole(scene: Scene) -> None:
    scene.room.attempt(3, 1).reports.write_text(encode(REPORT)[:30])
    scene.say(REPORT)
    assert scene.look(scene.restarted())[0][3][0].reports == (REPORT,)


@pytest.mark.parametrize("of", [{"attempt": 2}, {"worker": "w0002"}])
def test_what_another_attempt_says_in_this_run_is_not_this_one_s(scene: Scene, of: dict[str, Any]) -> None:
    scene.say(REPORT, outcome=COMPLETED, state="finished", **of)
    (sight,) = scene.look()[0][3]
    assert (sight.reports, sight.outcome, sight.begun) == ((), None, False)


def test_a_summary_that_speaks_of_an_earlier_attempt_says_nothing_of_this_one(scene: Scene) -> None:
    """The run is the same; its configuration is of this attempt already, its summary still of the last."""
    scene.say(REPORT, outcome=COMPLETED, attempt=1)
    said = read_json(scene.api.of("run-1") / "state")
    scene.channel.assign(replace(SPEC, attempt=2))
    scene.tell("run-1", "running", {"attempt": 2, "worker": "w0001"}, said["summary"])
    first, second = scene.look()[0][3]
    assert (second.reports, second.outcome) == ((), None)
    assert first.outcome is None


def test_a_run_s_sign_of_life_is_its_worker_s_beat(scene: Scene) -> None:
    assert scene.look()[1]["w0001"].beat is None
    scene.say()
    first = scene.look()[1]["w0001"].beat
    assert first is not None
    assert scene.look()[1]["w0001"].beat == first
    scene.say(REPORT)
    assert scene.look()[1]["w0001"].beat not in (None, first)


def test_a_run_that_was_over_before_we_looked_has_begun_all_the_same(scene: Scene) -> None:
    """Or three quick trials would be three workers that were never ready, and end the sweep."""
    scene.say(REPORT, outcome=COMPLETED, state="finished")
    assert scene.look()[1]["w0001"].beat is not None


def test_while_wandb_does_not_answer_no_beat_is_missed(scene: Scene) -> None:
    scene.say()
    beats = [scene.look()[1]["w0001"].beat]
    scene.api.fail("runs", 2)
    for _ in range(2):
        with pytest.raises(RetryLater):
            scene.channel.runs.look()
        beats.append(scene.channel.observe([3], ["w0001"])[1]["w0001"].beat)
    assert len(set(beats)) == 3


def test_an_unanswered_look_does_not_count_as_one_that_misses_a_run(scene: Scene) -> None:
    scene.say(REPORT)
    scene.look()
    scene.api.delete_run("run-1")
    scene.look()
    scene.api.fail("runs", 5)
    for _ in range(5):
        with pytest.raises(RetryLater):
            scene.channel.runs.look()
        scene.channel.observe([3], ["w0001"])
    assert scene.outcome() is None
    scene.look()
    assert scene.outcome() == Outcome(OutcomeKind.STOPPED, "its run was deleted in W&B", cause=StopCause.CANCELLED)


def test_a_run_that_has_not_begun_is_not_missed(scene: Scene) -> None:
    for _ in range(9):
        scene.look()
    assert scene.outcome() is None


# --- stops -----------------------------------------------------------------------------------------------------------


def test_a_stop_reaches_the_run_with_its_cause_once(scene: Scene) -> None:
    scene.say(REPORT)
    scene.look()
    for _ in range(2):
        scene.channel.stop(3, 1, StopCause.PRUNED, "worse")
    scene.restarted().stop(3, 1, StopCause.INTERRUPTED, "later")
    assert scene.api.asked("stop") == ["run-1"]
    facts = scene.api.run("run-1")
    assert isinstance(facts, ObservedRun)
    assert facts.tags == ("stop:pruned",)
    assert scene.stopping == ["run-1"], "no later attempt goes on in it"


def test_a_stop_that_did_not_get_through_is_asked_for_again(scene: Scene) -> None:
    scene.say(REPORT)
    scene.api.fail("stop", 1)
    with pytest.raises(RetryLater):
        scene.channel.stop(3, 1, StopCause.PRUNED, "worse")
    assert scene.look()[0][3][0].stop is None, "so that it is decided again"
    scene.channel.stop(3, 1, StopCause.PRUNED, "worse")
    assert scene.look()[0][3][0].stop is StopCause.PRUNED


def test_a_job_that_was_to_stop_before_it_began_is_told_when_it_begins(scene: Scene) -> None:
    scene.channel.stop(3, 1, StopCause.CANCELLED, "the sweep was stopped")
    assert scene.api.run("run-1") is None
    scene.say()
    scene.look()
    scene.look()
    facts = scene.api.run("run-1")
    assert isinstance(facts, ObservedRun)
    assert facts.tags == ("stop:cancelled",)
    assert len(scene.api.asked("stop")) == 2, "in vain, and when there was a run"


@pytest.mark.parametrize(
    ("asked", "told", "kept"),
    [
        (StopCause.PRUNED, StopCause.PRUNED, (StopCause.PRUNED, "worse")),
        (StopCause.PRUNED, StopCause.INTERRUPTED, (StopCause.PRUNED, "worse")),
        (None, StopCause.INTERRUPTED, (StopCause.CANCELLED, "it was stopped in W&B")),
        (None, StopCause.PREEMPTED, (StopCause.PREEMPTED, "said")),
        (StopCause.PRUNED, StopCause.PREEMPTED, (StopCause.PREEMPTED, "said")),
    ],
)
def test_we_know_why_we_asked_and_where_we_did_not_a_person_did(
    scene: Scene, asked: StopCause | None, told: StopCause, kept: tuple[StopCause, str]
) -> None:
    scene.say(REPORT)
    scene.look()
    if asked is not None:
        scene.channel.stop(3, 1, asked, "worse")
    scene.say(REPORT, outcome=Outcome(OutcomeKind.STOPPED, "said", cause=told), state="finished")
    outcome = scene.look()[0][3][0].outcome
    assert (outcome.cause, outcome.reason) == kept


# --- the end ---------------------------------------------------------------------------------------------------------


def test_before_an_attempt_is_lost_with_its_worker_wandb_is_asked_once_more(scene: Scene) -> None:
    """A controller died between the worker's end and the outcome; or the last look was older than both."""
    scene.say(REPORT, outcome=COMPLETED, state="finished")
    scene.job(end="its run is finished")
    restarted = scene.restarted()
    (sight,) = restarted.observe([3], ["w0001"])[0][3]
    assert sight.outcome == COMPLETED
    scene.room.attempt(3, 1).outcome.unlink()
    scene.say(REPORT, state="crashed")
    again = scene.restarted()
    for _ in range(3):
        assert again.observe([3], ["w0001"])[0][3][0].outcome is None
    assert len(scene.api.asked("runs")) == 2, "once for each controller"


def test_an_adapter_that_cannot_be_fetched_now_keeps_the_outcome_back(scene: Scene) -> None:
    scene.say(REPORT, outcome=COMPLETED, state="finished")
    scene.api.fail("fetch_adapter", 2)
    scene.channel.observe([3], ["w0001"])
    scene.channel.runs.look()
    for _ in range(2):
        with pytest.raises(RetryLater):
            scene.channel.observe([3], ["w0001"])
    assert scene.channel.observe([3], ["w0001"])[0][3][0].outcome == COMPLETED


def test_an_adapter_that_cannot_be_had_is_told(scene: Scene) -> None:
    scene.say(REPORT, outcome=COMPLETED, state="finished")
    scene.api.fail("fetch_adapter", 1, error="giveup")
    outcome = scene.look()[0][3][0].outcome
    assert (outcome.kind, outcome.adapter) == (OutcomeKind.COMPLETED, None)
    assert outcome.reason == "its adapter is in W&B and could not be fetched: W&B refuses it"


# --- a worker that serves several trials -----------------------------------------------------------------------------


@pytest.fixture
def serving(scene: Scene) -> Scene:
    scene.job(run="s-w0001", serves=True)
    scene.tell("s-w0001", "running", {"worker": "w0001"}, {})
    return scene


def told(scene: Scene) -> dict[str, Any]:
    found: dict[str, Any] = read_json(scene.api.of("s-w0001") / "config")[JOB_KEY]
    return found


def test_what_a_serving_worker_is_given_later_is_in_its_run(serving: Scene) -> None:
    more = replace(SPEC, trial=4)
    serving.channel.assign(more)
    inbox = [decode(TrialSpec, json.dumps(raw)) for raw in told(serving)["inbox"]]
    assert inbox == [SPEC, more]
    assert told(serving)["drain"] is False
    serving.channel.drain("w0001")
    assert told(serving)["drain"] is True


@pytest.mark.parametrize("acted", [False, True])
def test_an_assignment_counts_as_delivered_only_once_its_worker_was_told(serving: Scene, acted: bool) -> None:
    serving.api.fail("configure", 1, acted=acted)
    more = replace(SPEC, trial=4)
    with pytest.raises(RetryLater):
        serving.channel.assign(more)
    (sight,) = serving.channel.observe([4], ["w0001"])[0][4]
    assert not sight.delivered, "so that it is assigned again, to the same worker"
    serving.channel.assign(more)
    (sight,) = serving.channel.observe([4], ["w0001"])[0][4]
    assert sight.delivered
    assert len(told(serving)["inbox"]) == 2


def test_a_drain_counts_only_once_its_worker_was_told(serving: Scene) -> None:
    serving.api.fail("configure", 1)
    with pytest.raises(RetryLater):
        serving.channel.drain("w0001")
    assert not serving.channel.observe([], ["w0001"])[1]["w0001"].draining
    serving.channel.drain("w0001")
    assert serving.channel.observe([], ["w0001"])[1]["w0001"].draining


def test_a_job_of_one_trial_is_told_nothing_more(scene: Scene) -> None:
    scene.channel.drain("w0001")
    assert scene.api.asked("configure") == []
