"""A trial's whole state: saved anywhere, resumed bit-exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import embedded_config
from trainer import checkpoint
from trainer.base import Cache
from trainer.contract import Step
from trainer.recipe import LoraRecipe

pytestmark = pytest.mark.slow

HARD = {"model__lora_dropout": 0.2, "gradient_accumulation_steps": 2, "epochs": 2, "dataset__split": "train[:28]"}


@pytest.fixture(scope="module")
def cache() -> Cache:
    return Cache()


def recipe(cache: Cache, tmp_path: Path, **changes: Any) -> LoraRecipe:
    return LoraRecipe(OmegaConf.create(embedded_config(**{**HARD, **changes})), cache, tmp_path / "scratch")


def saved(trial: LoraRecipe, path: Path) -> dict[str, Any]:
    checkpoint.save(path, {"recipe": trial.state(), "milestones": {}, "guard": {}})
    state: dict[str, Any] = checkpoint.load(path)["recipe"]
    return state


@pytest.mark.parametrize("stop_at", [*(pytest.param(n, marks=pytest.mark.deep) for n in (1, 2, 9)), 5, 6])
def test_resume_is_bit_exact_within_an_epoch_an_accumulation_and_at_their_ends(
    stop_at: int, cache: Cache, tmp_path: Path
) -> None:
    """28 rows of 4 make 7 micro-batches an epoch, of which 6 fill steps of two."""
    whole = recipe(cache, tmp_path)
    reference = [batch.step for batch in whole.train() if batch.step]
    first = recipe(cache, tmp_path)
    steps: list[Step] = []
    for batch in first.train():
        steps += [batch.step] if batch.step else []
        if batch.position == stop_at:
            break
    state = saved(first, tmp_path / "c.pt")
    torch.manual_seed(99)  # whatever happened in between must not matter
    torch.rand(7)
    second = recipe(cache, tmp_path)
    second.load_state(state)
    steps += [batch.step for batch in second.train() if batch.step]
    assert steps == reference
    for (name, ours), theirs in zip(second.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_validation_changes_no_later_number(cache: Cache, tmp_path: Path) -> None:
    plain = [batch.step for batch in recipe(cache, tmp_path).train() if batch.step]
    watched = recipe(cache, tmp_path)
    steps = []
    for batch in watched.train():
        watched.evaluate()
        steps += [batch.step] if batch.step else []
    assert steps == plain


def test_a_finished_trial_is_extended(cache: Cache, tmp_path: Path) -> None:
    done = recipe(cache, tmp_path)
    list(done.train())
    longer = recipe(cache, tmp_path, epochs=3)
    longer.load_state(saved(done, tmp_path / "c.pt"))
    more = [batch.step for batch in longer.train() if batch.step]
    assert [step.step for step in more] == [7, 8, 9]
    assert all(step.lr > 0 for step in more), "the schedule is the longer one's, not at its end"


def test_another_trial_s_checkpoint_is_refused(cache: Cache, tmp_path: Path) -> None:
    trial = recipe(cache, tmp_path)
    next(iter(trial.train()))
    state = saved(trial, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="gradient_accumulation_steps=2, but this trial has"):
        recipe(cache, tmp_path, gradient_accumulation_steps=1).load_state(state)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_an_unreadable_checkpoint_is_named(damage: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"recipe": {"x": torch.ones(1000)}, "milestones": {}, "guard": {}})
    path.write_bytes(path.read_bytes()[:-200] if damage is None else damage)
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read"):
        checkpoint.load(path)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "c.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.load(tmp_path / "c.pt")
    assert not (tmp_path / "ran").exists()
