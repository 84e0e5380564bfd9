"""What a person sees in a terminal."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from sweep.model.facts import WorkerFacts
from sweep.model.limits import Limits
from sweep.model.objectives import Objective
from sweep.model.states import JobState, TrialStatus
from sweep.model.summary import SweepState, TrialRow
from sweep.report.formatting import (
    BLOCKS,
    curve,
    duration,
    number,
    param,
    params_text,
    ranked,
    short_keys,
    sparkline,
)
from sweep.report.terminal import (
    COLOURS,
    PlainConsole,
    counts_text,
    live_view,
    trials_table,
    waiting_text,
    workers_table,
)
from trainer.contract import Report
from trainer.names import harmless

FAST = settings(deadline=None, max_examples=40)
NAN, INF = math.nan, math.inf


# --- figures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([], 16, ""),
        ([NAN, INF, -INF], 16, ""),
        ([3.0], 16, "▁"),
        ([3.0, 3.0], 16, "▁▁"),
        ([1.0, 2.0], 16, "▁█"),
        ([2.0, 1.0], 16, "█▁"),
        ([1.0, NAN, 2.0], 16, "▁█"),
        (range(8), 16, BLOCKS),
        ([9.0, 1.0, 2.0, 3.0], 2, "▁█"),  # the last points
    ],
)
def test_sparkline(values: Sequence[float], width: int, drawn: str) -> None:
    assert sparkline(values, width) == drawn


@FAST
@given(values=st.lists(st.floats(-1e300, 1e300) | st.just(NAN)), width=st.integers(1, 20))
def test_a_sparkline_rises_and_falls_with_its_values(values: list[float], width: int) -> None:
    finite = [value for value in values if math.isfinite(value)][-width:]
    drawn = [BLOCKS.index(block) for block in sparkline(values, width)]
    assert len(drawn) == len(finite)
    for (value, height), (later, then) in zip(
        zip(finite, drawn, strict=True), zip(finite[1:], drawn[1:], strict=True), strict=False
    ):
        assert (later - value) * (then - height) >= 0
    if len(set(finite)) > 1:
        assert (min(drawn), max(drawn)) == (0, len(BLOCKS) - 1)


def test_a_sparkline_over_the_whole_range_of_numbers() -> None:
    assert sparkline([-1e308, 1e308]) == "▁█"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (9.9, "0:09"),
        (60, "1:00"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (3723, "1:02:03"),
        (360000, "100:00:00"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@FAST
@given(st.integers(0, 10**7))
def test_a_duration_reads_back(seconds: int) -> None:
    *hours, minutes, rest = map(int, duration(seconds).split(":"))
    assert (hours or [0])[0] * 3600 + minutes * 60 + rest == seconds
    assert minutes < 60
    assert rest < 60


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(None, 4, "–"), (NAN, 4, "–"), (1.23456, 4, "1.2346"), (1.23456, 1, "1.2"), (INF, 3, "inf"), (0.0, 2, "0.00")],
)
def test_number(value: float | None, digits: int, text: str) -> None:
    assert number(value, digits) == text


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ([], []),
        (["model.lora_rank", "optimizer.lr"], ["lora_rank", "lr"]),
        (["batch_size", "gradient_accumulation_steps"], ["batch_size", "accum"]),
        (["model.lr", "optimizer.lr", "x.y"], ["model.lr", "optimizer.lr", "y"]),
        (["optimizer._component_", "loss._component_"], ["optimizer._component_", "loss._component_"]),
    ],
)
def test_short_keys(keys: list[str], names: list[str]) -> None:
    assert short_keys(keys) == dict(zip(keys, names, strict=True))


@FAST
@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join), unique=True))
def test_short_keys_tell_keys_apart(keys: list[str]) -> None:
    names = short_keys(keys)
    assert list(names) == keys
    for key, name in names.items():
        assert key == name or key.endswith(f".{name}")
    assert len(set(names.values())) == len(keys)


@pytest.mark.parametrize(
    ("value", "key", "text"),
    [
        (3e-4, "optimizer.lr", "0.0003"),
        (1.23456e-5, "", "1.23e-05"),
        (8, "", "8"),
        (True, "", "True"),
        ("torch.optim.AdamW", "optimizer._component_", "AdamW"),
        ("AdamW", "_component_", "AdamW"),
        ("end.", "_component_", "end."),
        ("torch.optim.AdamW", "note", "torch.optim.AdamW"),
        ("train.jsonl", "dataset.data_files", "train.jsonl"),
        ("v1.5", "", "v1.5"),
        (["q_proj", "v_proj"], "", "q_proj,v_proj"),
        (None, "", "None"),
    ],
)
def test_param(value: Any, key: str, text: str) -> None:
    assert param(value, key) == text


def test_params_text() -> None:
    assert params_text({"model.lora_rank": 8, "optimizer.lr": 1e-3, "gradient_accumulation_steps": 2}) == (
        "lora_rank=8 lr=0.001 accum=2"
    )
    assert params_text({"optimizer._component_": "torch.optim.SGD", "dataset.split": "a.b"}) == (
        "_component_=SGD split=a.b"
    )
    assert params_text({}) == ""


# --- states of a sweep --------------------------------------------------------------------------------------------

PARAMS = {"model.lora_rank": 8, "optimizer.lr": 3e-4}


def report(milestone: int, value: float | None, grad_norm: float = 0.5) -> Report:
    return Report(milestone, milestone, 1000 * milestone, 0, 2.0, grad_norm, 1e-3, 812.0, 3.0, val_loss=value)


def row(number: int, state: str, *values: float | None, **more: Any) -> TrialRow:
    """A trial with these values of val_loss at its milestones."""
    made = tuple(report(index, value) for index, value in enumerate(values, start=1))
    last = values[-1] if values else None
    return TrialRow(number, TrialStatus(state), PARAMS, value=last, reports=made, **more)


def sweep(*rows: TrialRow, workers: tuple[WorkerFacts, ...] = (), **more: Any) -> SweepState:
    limits = more.pop("limits", Limits(trials=24))
    return SweepState("demo-1", (Objective("val_loss"),), rows, workers, limits, 75.0, 4000, **more)


def shown(drawn: RenderableType, width: int = 100) -> str:
    console = Console(record=True, width=width, height=40, file=io.StringIO())
    console.print(drawn)
    text = console.export_text()
    assert all(len(line) <= width for line in text.splitlines())
    return text


STARTING = WorkerFacts("w0001", 0, JobState.RUNNING)
READY = WorkerFacts("w0002", 1, JobState.RUNNING, ready=True)
NOTHING = sweep()
STARTED = sweep(workers=(STARTING, STARTING), controller=True)
RUNNING = sweep(
    row(0, "running", 3.0, 2.5, worker="w0002"), row(1, "running"), workers=(READY,), limits=Limits(seconds=600)
)
DIVERGING = sweep(
    TrialRow(0, TrialStatus.RUNNING, PARAMS, reports=(report(1, NAN, NAN), report(2, None, INF)), attempts=2)
)
MIXED = sweep(
    row(0, "complete", 3.0, 2.0),
    row(1, "complete", 3.0, 1.5),
    row(2, "pruned", 3.5, reason="worse"),
    row(3, "failed", reason="out of memory"),
    row(4, "cancelled"),
    row(5, "running", 2.75),
    row(6, "waiting", 2.25),
    workers=(READY,),
    limits=Limits(trials=24, tokens=50_000),
    controller=True,
)
ENDED = sweep(row(0, "complete", 2.0), row(1, "pruned", 3.0), limits=Limits(trials=2))
ALL = {
    "nothing": NOTHING,
    "started": STARTED,
    "running": RUNNING,
    "diverging": DIVERGING,
    "mixed": MIXED,
    "ended": ENDED,
}


@pytest.mark.parametrize("width", [100, 60, 30])
@pytest.mark.parametrize("state", ALL.values(), ids=ALL)
def test_every_state_is_drawn_at_every_width(state: SweepState, width: int) -> None:
    logs = {"w0001": "/room/log"}
    for drawn in (live_view(state, ["an event"], 40), trials_table(state, state.rows), workers_table(state, logs)):
        assert shown(drawn, width).strip()
    assert shown(live_view(state, [], 5), width).strip()  # a terminal too low for it


@pytest.mark.parametrize(
    ("state", "words", "absent"),
    [
        (
            NOTHING,
            ["sweep demo-1", "no trial is running", "no trial is complete yet", "0/24 trials", "1:15", "watching"],
            ["•"],
        ),
        (STARTED, ["2 workers are starting", "0 tokens", "Ctrl-C: detach"], ["watching", "no trial is running"]),
        (
            RUNNING,
            [
                "2 running",
                "2.5000",
                "█▁",
                "0.500",
                "812",
                "lora_rank=8 lr=0.0003",
                "2,000 tokens",
                "1:15/10:00",
                "trial 0 leads with",
            ],
            ["trials  ", "Ctrl-C"],
        ),
        (DIVERGING, ["0 ·2", "inf", "–"], ["nan"]),
        (
            MIXED,
            ["1 running  1 waiting", "5/24 trials", "7,000/50,000 tokens", "best trial 1", "val_loss 1.5000", "2.7500"],
            ["out of memory"],
        ),
        (ENDED, ["no trial is running", "best trial 0", "2/2 trials", "1 complete", "1 pruned"], ["starting"]),
    ],
    ids=ALL,
)
def test_live_view(state: SweepState, words: list[str], absent: list[str]) -> None:
    text = shown(live_view(state, [], 40))
    for word in words:
        assert word in text
    for word in absent:
        assert word not in text


MARKUP = {"dataset.split": "[/a]", "[red]key": "[b]", "emoji": ":smile:"}


def test_nothing_that_a_user_names_is_parsed_as_markup() -> None:
    """`choice('[/a]','[b]')` is a space, and a queue's reasons and paths are not ours either."""
    rows = (
        TrialRow(0, TrialStatus.RUNNING, MARKUP, reports=(report(1, 2.0),), worker="w0001"),
        TrialRow(1, TrialStatus.COMPLETE, MARKUP, value=1.0, scores={"[/score]": 0.5}),
    )
    pending = WorkerFacts("w0001", 0, JobState.PENDING, reason="[/QOS]")
    state = SweepState("[/s]", (Objective("val_loss"),), rows, workers=(pending,))
    live = shown(live_view(state, ["[/event]"], 40), 140)
    table = shown(trials_table(state, rows), 140)
    workers = shown(workers_table(state, {"w0001": "/rooms/[/x]/log"}), 140)
    for drawn, words in (
        (live, ["sweep [/s]", "split=[/a]", "[red]key=[b]", "emoji=:smile:", "[/event]", "[/QOS]"]),
        (table, ["[/a]", "[red]key", "[b]", ":smile:", "eval [/score]"]),
        (workers, ["/rooms/[/x]/log", "[/QOS]"]),
    ):
        for word in words:
            assert word in drawn


def test_counts_stay_on_one_line_of_the_live_view() -> None:
    assert "2 complete  1 pruned  1 failed" in shown(live_view(MIXED, [], 40))


@pytest.mark.parametrize(("height", "count"), [(24, 4), (40, 20), (17, 1), (0, 1)])
def test_live_view_shows_the_last_events_that_fit(height: int, count: int) -> None:
    events = [f"event {index} [/no markup]" for index in range(50)]
    lines = [line for line in shown(live_view(MIXED, events, height)).splitlines() if "event" in line]
    assert [line.strip("│ ") for line in lines] == events[-count:]


def test_progress_of_a_trial_is_full_at_its_end_and_not_beyond() -> None:
    """Reports may pass the tokens that were probed."""
    over = dataclasses.replace(RUNNING, rows=(row(0, "running", 3.0, 2.5, 2.4, 2.3, 2.2),))
    exact = dataclasses.replace(RUNNING, rows=(row(0, "running", 3.0, 2.5, 2.4, 2.3),))
    unknown = dataclasses.replace(exact, trial_tokens=0)
    bars = [shown(live_view(state, [], 40)).count("━") for state in (over, exact, unknown)]
    assert bars[0] == bars[1] > 0
    assert shown(live_view(unknown, [], 40))


def test_trials_table_ranks_and_limits() -> None:
    text = shown(trials_table(MIXED, MIXED.rows))
    states = [word for line in text.splitlines() for word in line.replace("┃", " ").split() if word in COLOURS]
    assert states == ["complete", "complete", "waiting", "running", "pruned", "failed", "cancelled"]
    assert text.index("1.5000") < text.index("2.0000") < text.index("2.2500") < text.index("2.7500")
    few = shown(trials_table(MIXED, MIXED.rows, limit=2))
    assert "2.0000" in few
    assert "2.2500" not in few
    for heading in ("trial", "state", "lora_rank", "lr", "val_loss", "grad_norm", "tokens", "curve"):
        assert heading in text


def test_trials_table_has_a_column_for_each_hyperparameter_of_any_trial() -> None:
    other = TrialRow(9, TrialStatus.FAILED, {"optimizer.momentum": 0.9})
    text = shown(trials_table(MIXED, [*MIXED.rows, other]))
    assert "momentum" in text
    assert "0.9" in text


def test_a_grad_norm_that_is_no_number_is_a_dash() -> None:
    (line,) = [line for line in shown(trials_table(DIVERGING, DIVERGING.rows)).splitlines() if "running" in line]
    assert "inf" in line
    first = dataclasses.replace(
        DIVERGING, rows=(dataclasses.replace(DIVERGING.rows[0], reports=(report(1, NAN, NAN),)),)
    )
    (line,) = [line for line in shown(trials_table(first, first.rows)).splitlines() if "running" in line]
    assert "nan" not in line
    assert line.count("–") == 2


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (NOTHING, ""),
        (RUNNING, "2 running  "),
        (ENDED, "1 complete  1 pruned  "),
        (MIXED, "1 running  1 waiting  2 complete  1 pruned  1 failed  1 cancelled  "),
    ],
    ids=["nothing", "running", "ended", "mixed"],
)
def test_counts_text(state: SweepState, text: str) -> None:
    assert counts_text(state).plain == text


def test_ranked_puts_complete_trials_first_and_values_before_none() -> None:
    assert [row.number for row in ranked(MIXED.rows, MIXED.objective)] == [1, 0, 6, 5, 2, 3, 4]
    assert ranked([], MIXED.objective) == []


def test_curve_leaves_out_milestones_without_a_value() -> None:
    trial = row(0, "running", 3.0, None, 2.0)
    assert curve(trial, "val_loss") == [3.0, 2.0]
    assert curve(trial, "loss") == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("worker", "status"),
    [
        (STARTING, "starting"),
        (READY, "ready"),
        (dataclasses.replace(READY, draining=True), "draining"),
    ],
)
def test_workers_table(worker: WorkerFacts, status: str) -> None:
    state = sweep(row(4, "running", worker=worker.name), row(5, "complete", worker=worker.name), workers=(worker,))
    text = shown(workers_table(state, {worker.name: "/room/log"}))
    line = next(line for line in text.splitlines() if worker.name in line)
    for word in (worker.name, str(worker.place), status, "4", "/room/log"):
        assert word in line
    assert "5" not in line


def job(name: str, **more: Any) -> WorkerFacts:
    return WorkerFacts(name, 0, **{"job": JobState.RUNNING, "ready": True, **more})


@pytest.mark.parametrize(
    ("worker", "status"),
    [
        (job("w0001", job=JobState.PENDING, reason="other jobs are ahead of it (Priority)"), "pending: other jobs"),
        (job("w0001", job=JobState.PENDING), "pending"),
        (job("w0001", ready=False), "starting"),
        (job("w0001"), "ready"),
    ],
)
def test_a_cluster_s_workers_have_a_job_and_a_node(worker: WorkerFacts, status: str) -> None:
    with_job = dataclasses.replace(worker, handle="12_3", node="n7")
    text = shown(workers_table(SweepState("s", (Objective("loss"),), (), workers=(with_job,)), {"w0001": "/room/log"}))
    for part in ("job", "node", "12_3", "n7", status, "/room/log"):
        assert part in text


def test_pending_jobs_are_counted_by_their_reason() -> None:
    waits = {"job": JobState.PENDING, "ready": False}
    workers = (job("w0001"), job("w0002", reason="a", **waits), job("w0003", reason="a", **waits))
    assert waiting_text(workers) == "2 jobs pending: a"
    assert waiting_text((*workers, job("w0004", reason="b", **waits))) == "2 jobs pending: a; 1 job pending: b"
    assert waiting_text(workers[:1]) == ""
    assert "2 jobs pending: a" in shown(live_view(SweepState("s", (Objective("loss"),), (), workers=workers), [], 30))


# --- texts that are not ours ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[/a] [bold]x[/] :smile:", "a\x1b[2Jb", "\x1b]0;title\x07", "\x9b31m", "\u202eabc"])
def test_no_text_is_markup_or_moves_the_cursor(text: str) -> None:
    row = TrialRow(0, TrialStatus.RUNNING, {"x": text}, reason=text, worker=text)
    worker = WorkerFacts(text, 0, JobState.PENDING, handle=text, node=text, reason=text)
    state = SweepState(text, (Objective("val_loss"),), (row,), workers=(worker,))
    out = PlainConsole(width=400)
    with out.capture() as captured:
        out.print(text)
        out.print(live_view(state, [text], 40))
        out.print(trials_table(state, [row]))
        out.print(workers_table(state, {text: text}))
    shown = captured.get()
    assert not any(ord(c) < 32 and c != "\n" for c in shown)
    assert not set(shown) & set("\x7f\x9b\u202e")
    words = harmless(text).rstrip("\ufffd")  # Rich drops a bell by itself
    assert shown.count(words) >= 4
