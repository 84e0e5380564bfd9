"""The value that the study is told is that of the final report, or the trial is trained again; nothing else is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sweep.model.effects import Assign, Tell
from sweep.model.states import Ending, Mode
from tests.helpers.hand_played import HandPlayed
from trainer.contract import Outcome, OutcomeKind, Report, decode
from trainer.room import AttemptDir

COMPLETED = Outcome(OutcomeKind.COMPLETED, adapter="adapter")
SILENCE = 120.0


def lines(attempt: AttemptDir) -> list[str]:
    return attempt.reports.read_text().splitlines(keepends=True)


def without_last_line(attempt: AttemptDir) -> None:
    attempt.reports.write_text("".join(lines(attempt)[:-1]))


def with_half_a_last_line(attempt: AttemptDir) -> None:
    attempt.reports.write_text("".join([*lines(attempt)[:-1], lines(attempt)[-1][:40]]))


def with_zeros_in_the_last_line(attempt: AttemptDir) -> None:
    attempt.reports.write_bytes("".join(lines(attempt)[:-1]).encode() + bytes(len(lines(attempt)[-1]) - 1) + b"\n")


def with_invalid_text(attempt: AttemptDir) -> None:
    attempt.reports.write_bytes("".join(lines(attempt)[:-1]).encode() + b"\xff\xfe{\x80}\n")


def with_a_text_for_the_milestone(attempt: AttemptDir) -> None:
    attempt.reports.write_text("".join(lines(attempt)).replace('"milestone": 2', '"milestone": "2"'))


def emptied(attempt: AttemptDir) -> None:
    attempt.reports.write_text("")


def removed(attempt: AttemptDir) -> None:
    attempt.reports.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        without_last_line,
        with_half_a_last_line,
        with_zeros_in_the_last_line,
        with_invalid_text,
        with_a_text_for_the_milestone,
        emptied,
        removed,
    ],
)
def test_a_lost_final_report_is_made_again_and_its_value_is_told(
    rooms: Path, damage: Callable[[AttemptDir], None]
) -> None:
    played = HandPlayed(rooms)
    played.begin()
    played.report(1, 2.7217)
    played.report(2, 2.5550, final=True)
    damage(played.attempt())
    played.end(COMPLETED)
    effects = [*played.rounds(), *played.rounds_for(SILENCE - 20)]
    assert not [effect for effect in effects if isinstance(effect, Tell | Assign)], "it may still arrive"
    assert Assign(0, 2, "w0001") in played.rounds_for(60)
    played.report(2, 2.5550, final=True)
    played.end(COMPLETED)
    assert Tell(0, Ending.COMPLETE, "") in played.rounds()
    (trial,) = played.study.frozen()
    assert trial.value == decode(Report, lines(played.attempt())[-1]).loss == 2.5550


def test_a_final_report_that_arrives_after_the_outcome_is_told(rooms: Path) -> None:
    played = HandPlayed(rooms)
    played.begin()
    played.report(1, 2.7217)
    played.end(COMPLETED)
    assert played.rounds_for(SILENCE / 2) == []
    played.report(2, 2.5550, final=True)
    assert Tell(0, Ending.COMPLETE, "") in played.rounds()
    assert played.study.frozen()[0].value == 2.5550
    assert played.room.attempts(0) == [1]


def test_a_later_controller_waits_for_the_final_report_too(rooms: Path) -> None:
    played = HandPlayed(rooms)
    played.begin()
    played.report(1, 2.7217)
    played.end(COMPLETED)
    assert played.rounds() == []
    played.restarted()
    assert played.rounds() == []
    played.report(2, 2.5550, final=True)
    assert Tell(0, Ending.COMPLETE, "") in played.rounds()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\x00" * 80, b"\xff\xfe\x80", b"[]", b'"completed"', b'{"v": 1}', b'{"v": 9, "kind": "completed"}'],
)
def test_an_outcome_that_cannot_be_read_counts_as_a_lost_attempt(rooms: Path, content: bytes) -> None:
    played = HandPlayed(rooms)
    played.begin()
    played.report(1, 2.7217)
    played.report(2, 2.5550, final=True)
    played.attempt().outcome.write_bytes(content)
    assert Assign(0, 2, "w0001") in played.rounds()
    played.report(2, 2.5550, final=True)
    played.end(COMPLETED)
    assert Tell(0, Ending.COMPLETE, "") in played.rounds()
    assert played.study.frozen()[0].value == 2.5550


def test_the_value_of_the_last_attempt_is_told(rooms: Path) -> None:
    """Its adapter is the one that is kept. On another GPU its numbers may differ in the last digits."""
    played = HandPlayed(rooms)
    played.begin()
    played.report(1, 2.7)
    played.report(2, 2.5, final=True)
    played.rounds()
    played.attempt().outcome.write_bytes(b"")
    assert Assign(0, 2, "w0001") in played.rounds()
    played.report(2, 2.5001, final=True)
    played.end(COMPLETED)
    played.rounds()
    assert played.study.frozen()[0].value == 2.5001


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_never_told_as_complete(rooms: Path, loss: float) -> None:
    played = HandPlayed(rooms)
    played.begin()
    played.report(1, 2.7)
    played.report(2, loss, final=True)
    played.end(COMPLETED)
    reason = "its final report has no finite number of the objective"
    assert Tell(0, Ending.FAIL, reason) in played.rounds()
    assert played.study.frozen()[0].intermediate_values == {1: 2.7}


def test_reports_without_the_objective_are_no_values(rooms: Path) -> None:
    """An objective that a worker of another version does not report."""
    played = HandPlayed(rooms, "objective=val_loss")
    played.begin()
    played.report(1, 2.7)
    played.report(2, 2.5, final=True)
    played.end(COMPLETED)
    assert [effect.ending for effect in played.rounds() if isinstance(effect, Tell)] == [Ending.FAIL]


def test_a_paused_trial_that_reached_its_end_is_told_the_value_that_was_held_back(rooms: Path) -> None:
    played = HandPlayed(rooms, "pruner=freeze_thaw", "search.trials=8", "search.seed=1")
    played.begin()
    for number in range(8):
        played.report(1, 3.0 + number, trial=number)
        played.rounds()
        played.report(2, 2.0 + number, trial=number, final=True)
        played.end(COMPLETED, trial=number)
        played.rounds()
        if len(played.study.frozen()) == number + 1:
            break
    for trial in played.study.frozen():
        if trial.state.name == "COMPLETE":
            assert trial.value == 2.0 + trial.number


def test_a_stopped_sweep_does_not_tell_a_trial_whose_end_is_lost(rooms: Path) -> None:
    played = HandPlayed(rooms)
    played.begin()
    played.report(1, 2.7)
    played.end(COMPLETED)
    played.mode = Mode.STOP
    effects = played.controller.step()
    assert not [effect for effect in effects if isinstance(effect, Tell)]
