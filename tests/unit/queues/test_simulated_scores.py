"""The metrics of simulated trials: recorded, made up from the loss, or refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sweep.queues.simulated.scores import base_scores, refusal, scores_of
from sweep.queues.simulated.tables import Table, load_table
from tests.helpers.tables import write_table
from trainer.contract import Metric, Report

EM = Metric("em", "generate", {"rows": 64, "score": "exact_match"}, every=2)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    path = write_table(tmp_path_factory.mktemp("curves") / "curves.npz")
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["style"] = np.where(np.arange(8) % 2, 0.5, np.nan) * np.ones((len(arrays["lr"]), 1))
    np.savez(path, **arrays)
    return load_table(str(path))


def report(milestone: int, val_loss: float = 1.0) -> Report:
    return Report(milestone, milestone, milestone, 0, 2.0, 1.0, 0.0, 5.0, 60.0, val_loss=val_loss, final=milestone == 8)


def test_an_accuracy_is_a_count_of_right_rows_around_what_the_loss_says(table: Table) -> None:
    values = [scores_of([EM], table, row, report(2), {})["em"] for row in range(300)]
    assert all((value * 64).is_integer() for value in values)
    assert float(np.mean(values)) == pytest.approx(math.exp(-1.0), abs=0.02)
    assert float(np.var(values)) == pytest.approx(math.exp(-1.0) * (1 - math.exp(-1.0)) / 64, rel=0.3)
    assert values == [scores_of([EM], table, row, report(2), {})["em"] for row in range(300)]


def test_a_metric_is_measured_when_it_is_due_and_at_the_end(table: Table) -> None:
    due = [milestone for milestone in range(1, 9) if scores_of([EM], table, 0, report(milestone), {})]
    assert due == [2, 4, 6, 8]
    assert scores_of([replace(EM, every=5)], table, 0, report(8), {}).keys() == {"em"}
    assert scores_of([EM], table, 0, report(2, math.nan), {}) == {}


def test_what_is_recorded_comes_before_what_is_made_up(table: Table) -> None:
    style = Metric("style", "command", {})
    assert refusal(style, table) == ""
    assert [scores_of([style], table, 0, report(m), {}).get("style") for m in (1, 2)] == [None, 0.5]


def test_the_others_follow_from_the_loss_and_the_run(table: Table) -> None:
    measures = {"perplexity": math.e, "token_accuracy": 1 / math.e, "bits_per_byte": 1 / math.log(2) / 4}
    metrics = [Metric(name, "validation", {"measure": name}) for name in measures]
    assert scores_of(metrics, table, 0, report(1), {}) == pytest.approx(measures)
    run = {"trained_seconds": 60.0, "tokens_per_second": 5.0, "adapter_megabytes": 16.0}
    metrics = [Metric(name, "run", {"measure": name}) for name in run]
    assert scores_of(metrics, table, 0, report(1), {"model.lora_rank": 16}) == run
    base = base_scores([EM, *metrics], table, report(1))
    assert base.keys() == {"em"}
    assert base["em"] < 0.2
    assert base_scores([EM], table, report(2)) == {}


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (Metric("m", "command", {}), "a simulated trial has no source command"),
        (Metric("m", "generate", {"rows": 4, "score": "my:f"}), "calls no function of yours"),
        (Metric("m", "run", {"measure": "peak_memory_gib"}), "needs no memory"),
        (EM, ""),
    ],
)
def test_what_cannot_be_simulated_is_refused(metric: Metric, said: str, table: Table) -> None:
    assert said in refusal(metric, table)
    assert bool(said) == bool(refusal(metric, table))
