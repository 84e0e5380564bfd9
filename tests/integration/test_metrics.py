"""Trials measure metrics at their milestones, and train as if they did not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import embedded_config
from tests.helpers.attempts import reports, run, spec, steps
from tests.helpers.packs import make
from tests.helpers.schedulers import Hands
from trainer.base import Cache
from trainer.contract import Metric, OutcomeKind, Report, Step, TrialSpec, decode
from trainer.data import build_tokenizer
from trainer.packed.pack import Pack
from trainer.recipe import LoraRecipe
from trainer.room import Room, Tail

pytestmark = pytest.mark.slow

VALIDATION = tuple(
    Metric(name, "validation", {"measure": name}) for name in ("perplexity", "token_accuracy", "bits_per_byte")
)
RUN = tuple(
    Metric(name, "run", {"measure": name})
    for name in ("trained_seconds", "tokens_per_second", "peak_memory_gib", "adapter_megabytes")
)


@pytest.fixture(scope="module")
def cache() -> Cache:
    return Cache()


def with_metrics(wanted: TrialSpec, *metrics: Metric, **more: Any) -> TrialSpec:
    return replace(wanted, metrics=metrics, **more)


def numbers(of: list[Report]) -> list[tuple[Any, ...]]:
    return [(r.milestone, r.tokens, r.loss, repr(r.grad_norm), r.val_loss, r.lr, r.final) for r in of]  # may be NaN


def counted(recipe: LoraRecipe) -> tuple[int, int, int]:
    """Correct labels, labels, and bytes of their text, one row at a time."""
    correct = labels = size = 0
    tokenizer = build_tokenizer(recipe.cfg, recipe._cache)
    recipe.model.eval()
    for batch in recipe.validation_batches():
        for tokens, wanted in zip(batch["tokens"], batch["labels"], strict=True):
            with torch.no_grad():
                logits = recipe.model(tokens[None])
            logits = torch.cat(logits, dim=1) if isinstance(logits, list) else logits
            follows = wanted[1:] != -100
            correct += int((logits[0, :-1].argmax(-1) == wanted[1:])[follows].sum())
            labels += int(follows.sum())
            size += len(tokenizer.decode([int(label) for label in wanted if label != -100]).encode())
    recipe.model.train()
    return correct, labels, size


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "change",
    [{}, {"dataset_val__train_on_input": True}, {"loss___component_": "torch.nn.CrossEntropyLoss", "batch_size": 3}],
    ids=["chunks", "on input", "plain"],
)
def test_the_pass_that_gives_the_loss_counts_the_correct_labels_too(
    packed: bool, change: Mapping[str, Any], cache: Cache, tmp_path: Path
) -> None:
    recipe = make(cache, tmp_path, dict(change))
    correct, labels, _ = counted(recipe)
    assert 0 < correct < labels
    if packed:
        Pack().put(recipe)
    plain, full = recipe.validate(), recipe.validate(correct=True)
    assert plain is not None
    assert full is not None
    assert (plain.loss, plain.tokens, plain.correct) == (full.loss, full.tokens, 0), "to the bit"
    assert abs(full.correct - correct) <= (1 if packed else 0)
    assert full.predicted == labels


def test_metrics_of_the_validation_and_of_the_run(cache: Cache, tmp_path: Path) -> None:
    plain, room = Room(tmp_path / "plain"), Room(tmp_path / "metrics")
    run(plain, cache, spec())
    late = Metric("late", "validation", {"measure": "val_loss"}, every=3)
    assert run(room, cache, with_metrics(spec(), *VALIDATION, *RUN, late)).kind is OutcomeKind.COMPLETED
    seen = reports(room)
    assert numbers(seen) == numbers(reports(plain))
    assert steps(room) == steps(plain)
    recipe = LoraRecipe(OmegaConf.create(embedded_config()), cache, tmp_path / "scratch")
    tokens, size = recipe.validate(correct=True), counted(recipe)[2]
    assert tokens is not None
    for report in seen:
        assert report.val_loss is not None
        assert not report.problems
        assert report.scores["perplexity"] == math.exp(report.val_loss)
        assert 0 < report.scores["token_accuracy"] < 1
        bits = report.val_loss * tokens.tokens / math.log(2) / size
        assert report.scores["bits_per_byte"] == pytest.approx(bits)
        assert report.scores["tokens_per_second"] == report.tokens_per_second > 0
        assert 0 < report.scores["trained_seconds"] < report.seconds
        assert report.scores["peak_memory_gib"] > 0.01
        assert report.scores["adapter_megabytes"] == sum(p.numel() for p in recipe.trainable) * 4 / 1e6
    assert [("late" in report.scores) for report in seen] == [False, False, True, True]
    trained = [report.scores["trained_seconds"] for report in seen]
    assert trained == sorted(trained)
    assert seen[-1].scores["token_accuracy"] > seen[0].scores["token_accuracy"]


def of_trial(room: Room, trial: int) -> tuple[list[Report], list[Step]]:
    files = room.attempt(trial, 1)
    return (
        [decode(Report, line) for line in Tail(files.reports).lines()],
        [decode(Step, line) for line in Tail(files.steps).lines()],
    )


def test_a_pack_trains_as_without_metrics_and_measures_as_each_trial_alone(cache: Cache, tmp_path: Path) -> None:
    small: dict[str, Any] = {"dataset__split": "train[:16]", "dataset_val__split": "train[:8]"}
    changes: dict[int, dict[str, Any]] = {
        0: small,
        1: {**small, "model__lora_rank": 4, "gradient_accumulation_steps": 2},
    }
    rooms = {}
    for name, metrics in (("plain", ()), ("metrics", (*VALIDATION, *RUN))):
        hands = Hands(Room(tmp_path / name), cache, 2)
        for trial, change in changes.items():
            hands.give(trial, metrics=metrics, milestone_tokens=90, **change)
        hands.finish()
        assert {outcome.kind for outcome in hands.ended.values()} == {OutcomeKind.COMPLETED}
        rooms[name] = hands.room
    for trial in changes:
        (plain, plain_steps), (seen, seen_steps) = of_trial(rooms["plain"], trial), of_trial(rooms["metrics"], trial)
        assert numbers(seen) == numbers(plain)
        assert seen_steps == plain_steps
        assert 0 < seen[-1].scores["trained_seconds"] < seen[-1].seconds
    alone = Room(tmp_path / "alone")
    run(alone, cache, with_metrics(spec(**changes[1]), *VALIDATION, milestone_tokens=90))
    for ours, theirs in zip(seen, reports(alone), strict=True):
        for metric in VALIDATION:
            assert ours.scores[metric.name] == pytest.approx(theirs.scores[metric.name], rel=3e-3)
