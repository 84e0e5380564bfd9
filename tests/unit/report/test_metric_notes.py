"""What is said of metrics: the base, what failed, zeros everywhere, and answers beside their references."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import RenderableType

from sweep.cli.line_log import LineLog
from sweep.model.objectives import Direction, Objective, Spread
from sweep.model.states import TrialStatus
from sweep.model.summary import SweepState, TrialRow
from sweep.report.answers import LONGEST, SHOWN, answers_of
from sweep.report.figures import metric_histories
from sweep.report.formatting import ranked
from sweep.report.html import page
from sweep.report.metric_notes import base_scores, problems_of, scored_names, zero_trials
from sweep.report.terminal import PlainConsole, live_view, trials_table
from sweep.search.significance import finalists_text, rank_finalists
from trainer.contract import Metric, Report
from trainer.room import Room

EM = Objective("em", Direction.MAXIMIZE, Spread.SHARE, 64)
EVIL = "<script>alert(1)</script>"
METRICS = (Metric("em", "generate"), Metric("peak_memory_gib", "run"))


def shown(drawn: RenderableType) -> str:
    console = PlainConsole(width=100)
    with console.capture() as captured:
        console.print(drawn)
    return captured.get()


def report(milestone: int, problems: dict[str, str] | None = None, **scores: float) -> Report:
    numbers = (milestone, milestone, milestone, 0, 1.5, 1.0, 1e-3, 1.0, 1.0)
    return Report(*numbers, scores=scores, problems=problems or {})


def row(number: int, *reports: Report, state: TrialStatus = TrialStatus.COMPLETE, **more: Any) -> TrialRow:
    value = next((r.scores["em"] for r in reversed(reports) if "em" in r.scores), None)
    return TrialRow(number, state, {"optimizer.lr": 1e-3}, value, reports=reports, **more)


def state(*rows: TrialRow, **more: Any) -> SweepState:
    return SweepState("s", (EM,), rows, metrics=("em", "peak_memory_gib"), **more)


def test_the_best_is_the_highest_and_trials_stand_in_that_order() -> None:
    rows = (row(0, report(1, em=0.2)), row(1, report(1, em=0.6)), row(2, report(1, em=0.4)))
    best = state(*rows).best
    assert best is not None
    assert best.number == 1
    assert [one.number for one in ranked(rows, EM)] == [1, 2, 0]
    finals = tuple(row(9 + n, report(1, em=v), final=(n % 2, n // 2)) for n, v in enumerate((0.5, 0.3, 0.6, 0.2)))
    decided = state(*rows, *finals).best
    assert decided is not None
    assert decided.number == 0, "the mean of its finals is the highest"


def test_finals_of_a_maximised_metric_are_compared_the_other_way_round() -> None:
    values = {1: {0: 0.5, 1: 0.52, 2: 0.51}, 2: {0: 0.2, 1: 0.23, 2: 0.22}, 3: {0: 0.5, 1: 0.53, 2: 0.49}}
    more = rank_finalists(values, EM)
    less = rank_finalists({n: {s: -v for s, v in of.items()} for n, of in values.items()}, Objective("m"))
    assert [(one.number, one.p, one.tied) for one in more] == [(one.number, one.p, one.tied) for one in less]
    assert (more[0].number, more[-1].tied) == (1, False)
    assert more[0].mean == pytest.approx(0.51)
    assert "mean em ±" in finalists_text(values, EM)


def test_the_first_trial_that_measured_the_base_counts_and_views_show_it() -> None:
    numbers = (1, 1, 1, 0, 1.5, 1.0, 1e-3, 1.0, 1.0)
    rows = (row(0, Report(*numbers, scores={"em": 0.5}, base_scores={"em": 0.125})), row(1, report(1, em=0.25)))
    assert base_scores(rows) == {"em": 0.125}
    seen = state(*rows, base_scores=base_scores(rows), problems=("trial 1: [/x] failed",))
    text = shown(live_view(seen, [], 40))
    assert "maximises em; the base has em 0.1250" in text
    assert "trial 1: [/x] failed" in text
    assert "peak_memory_gib" in shown(trials_table(seen, seen.rows))


def test_a_problem_is_said_until_the_metric_is_measured_again() -> None:
    failed = report(2, {"em": "no \x1b[31m answer"})
    rows = (row(0, report(1, em=0.1), failed), row(1, failed, report(3, em=0.2)))
    (said,) = problems_of(rows, METRICS)
    assert said.startswith("trial 0: em could not be measured at milestone 2: no ")
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("values", "trials"),
    [([0, 0, 0], 3), ([0, 0], 0), ([0, 0, 0, 0.5], 0), ([0, 0, None, 0], 3), ([], 0)],
)
def test_a_metric_of_0_in_the_first_three_trials_is_said(values: list[float | None], trials: int) -> None:
    rows = [row(n, *(() if v is None else (report(1, em=v, peak_memory_gib=0.0),))) for n, v in enumerate(values)]
    assert zero_trials("em", rows) == trials
    said = problems_of(rows, METRICS)
    assert len(said) == bool(trials), "memory is 0 on every processor"
    assert all(f"em is 0 in all {trials} trials" in text for text in said)


def test_the_log_warns_once_of_zeros_and_of_what_failed(caplog: pytest.LogCaptureFixture) -> None:
    log = LineLog(cast(Any, None), EM, scored_names(METRICS))
    with caplog.at_level(logging.INFO):
        for trial in range(5):
            log.reported(trial, report(1, em=0.0, peak_memory_gib=0.0))
            log.reported(0, report(2, {"em": "it timed out"}))
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 2
    assert "trial 0: em could not be measured at milestone 2: it timed out" in warned[0]
    assert "em is 0 in all 3 trials" in warned[1]
    assert "trial 0 milestone 1: em 0.0000 loss 1.5000 peak_memory_gib 0.0000" in caplog.records[0].getMessage()


def written(room: Room, trial: int, name: str, lines: list[Any]) -> Path:
    folder = room.attempt(trial, 1).path / "answers"
    folder.mkdir(parents=True, exist_ok=True)
    (room.attempt(trial, 1).path / "spec.json").touch()
    (folder / name).write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return folder / name


def test_the_newest_answers_stand_beside_the_references_and_the_base(tmp_path: Path) -> None:
    room = Room(tmp_path)
    lines = [
        {
            "row": n,
            "prompt": f"q{n}",
            "answer": EVIL * 200,
            "reference": ["a", "b"],
            "score": n % 2,
        }
        for n in range(20)
    ]
    written(room, 0, "em.0.jsonl", [{**line, "answer": "of the base {{ 1 }}"} for line in lines])
    written(room, 3, "em.2.jsonl", lines[:1])
    written(room, 3, "em.4.jsonl", [*lines, "garbage", "[1]", {"row": "x"}, {"row": 99}])
    written(room, 3, "other.9.jsonl", lines)
    (found,) = answers_of(room, 3, ["em", "absent"])
    assert (found.metric, found.trial, found.milestone, found.count) == ("em", 3, 4, 21)
    assert len(found.rows) == SHOWN
    assert {answer.score for answer in found.rows} >= {0.0, 1.0}
    assert all(len(answer.answer) < 2 * LONGEST for answer in found.rows)
    assert found.rows[0].reference == "a | b"
    assert found.rows[0].base == "of the base {{ 1 }}"
    assert answers_of(room, 7, ["em"]) == []
    text = page(state(row(3, report(4, em=0.5))), (), (), [found])
    assert "Answers for em" in text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_what_all_prompts_begin_with_is_left_out(tmp_path: Path) -> None:
    template = "Below is an instruction that describes a task, and a question that follows: What is "
    lines = [{"row": n, "prompt": f"{template}{word}?", "answer": "", "score": 0} for n, word in enumerate("ab")]
    written(Room(tmp_path), 0, "em.1.jsonl", [*lines, {"row": 7, "answer": "x", "score": 1}])
    (shown,) = answers_of(Room(tmp_path), 0, ["em"])
    assert [answer.prompt for answer in shown.rows] == ["… a?", "… b?", ""]
    written(Room(tmp_path), 0, "em.2.jsonl", lines[:1])
    (shown,) = answers_of(Room(tmp_path), 0, ["em"])
    assert shown.rows[0].prompt.startswith("Below is"), "one prompt is shown whole"


def test_each_other_metric_has_a_history_with_the_line_of_the_base() -> None:
    rows = (row(0, report(1, em=0.1, peak_memory_gib=2.0), report(2, em=0.2, peak_memory_gib=2.5)), row(1))
    (plot,) = metric_histories(state(*rows, base_scores={"peak_memory_gib": 1.0}))
    assert plot.heading == "History of peak_memory_gib"
    (trace,) = plot.figures[0]["data"]
    assert list(trace["x"]) == [1, 2]
    assert len(plot.figures[0]["layout"]["shapes"]) == 1
    (empty,) = metric_histories(state(row(0)))
    assert "no trial has measured peak_memory_gib yet" in empty.missing
