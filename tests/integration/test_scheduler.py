"""A worker with several slots: what is packed, what trains by itself, and that no trial pays for another."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchtune import config

from tests.conftest import embedded_config
from tests.helpers.attempts import Stops, steps
from tests.helpers.packs import TOLERANCE, worst
from tests.helpers.schedulers import Hands
from trainer import base, logs
from trainer.attempt import Attempt
from trainer.base import Cache
from trainer.contract import FailureKind, Outcome, OutcomeKind, Report, StopCause, decode
from trainer.packed.memory import Memory
from trainer.packed.pack import Pack
from trainer.packed.slot import Slot
from trainer.recipe import LoraRecipe
from trainer.room import Room, Tail
from trainer.scheduler import Scheduler

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def log_lines() -> None:
    """Log lines go to standard output, as in a worker."""
    logs.configure()


@pytest.fixture(scope="module")
def cache() -> Cache:
    return Cache()


@pytest.fixture
def counted() -> Iterator[None]:
    """What lives is what is referred to: after torch's import, full collections are rare anyway."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def numbers(room: Room, trial: int) -> list[Report]:
    return [decode(Report, line) for line in Tail(room.attempt(trial, 1).reports).lines()]


def stop_after(count: int, cause: StopCause) -> Stops:
    calls = iter(range(count))
    return lambda: None if next(calls, None) is not None else (cause, "enough")


CHANGES: list[dict[str, Any]] = [
    {"model__lora_rank": 4, "optimizer__lr": 1e-3},
    {"gradient_accumulation_steps": 3, "optimizer__lr": 2e-3},
    {"model__lora_rank": 16, "batch_size": 2, "optimizer__lr": 1e-3, "dataset__split": "train[:16]"},
    {"optimizer__lr": 1e-3, "seed": 7, "model__lora_dropout": 0.1},
]


def test_the_same_trials_one_by_one_and_side_by_side(cache: Cache, tmp_path: Path) -> None:
    single, packed = Hands(Room(tmp_path / "1"), cache, 1), Hands(Room(tmp_path / "3"), cache, 3)
    for hands in (single, packed):
        for trial, change in enumerate(CHANGES):
            hands.give(trial, **change)
        hands.finish()
        assert {outcome.kind for outcome in hands.ended.values()} == {OutcomeKind.COMPLETED}
    assert next(iter(packed.ended)) == 2, "the shortest ended first, and the fourth took its place"
    for trial in range(len(CHANGES)):
        ours, theirs = numbers(packed.room, trial), numbers(single.room, trial)
        assert [(r.milestone, r.step, r.tokens, r.lr) for r in ours] == [
            (r.milestone, r.step, r.tokens, r.lr) for r in theirs
        ]
        assert [r.loss for r in ours] == pytest.approx([r.loss for r in theirs], rel=TOLERANCE)
        assert [r.val_loss for r in ours] == pytest.approx([r.val_loss for r in theirs], rel=TOLERANCE)
        assert (packed.room.attempt(trial, 1).adapter / "adapter_model.safetensors").exists()


def test_a_stopped_trial_goes_on_in_another_pack(cache: Cache, tmp_path: Path) -> None:
    room, whole = Room(tmp_path / "a"), Hands(Room(tmp_path / "b"), cache, 1)
    whole.give(0, **CHANGES[1])
    whole.finish()
    first, second = Hands(room, cache, 2), Hands(room, cache, 2)
    first.give(0, stop_after(6, StopCause.INTERRUPTED), **CHANGES[1])
    first.give(1, **CHANGES[0])
    first.finish()
    assert first.ended[0].cause is StopCause.INTERRUPTED
    second.give(2, **CHANGES[3])
    second.give(0, attempt=2, **CHANGES[1])
    second.finish()
    assert second.ended[0].resumed_from == 1
    assert worst(steps(room) + steps(room, 2), steps(whole.room)) < TOLERANCE


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.usefixtures("counted")
def test_whatever_ended_a_trial_its_memory_is_free_at_once(
    slots: int, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: dict[int, list[weakref.ref[Any]]] = {}
    build, train, step = LoraRecipe.__init__, Pack._pass, LoraRecipe._micro_batch

    def built(self: LoraRecipe, *args: Any) -> None:
        build(self, *args)
        held = (self, self.model, self.optimizer, self.trainable[0], self._loader)
        alive[int(self.cfg.seed)] = [weakref.ref(one) for one in held]

    def broken(recipe: LoraRecipe) -> None:
        if recipe.cfg.seed == 3:
            raise RuntimeError("a kernel of its own")

    def trained(self: Pack, group: Any) -> torch.Tensor:
        sums = train(self, group)
        for one in group:
            broken(one.slot.recipe)
        return sums

    def stepped(self: LoraRecipe, batch: Any) -> Any:
        broken(self)
        return step(self, batch)

    monkeypatch.setattr(LoraRecipe, "__init__", built)
    monkeypatch.setattr(Pack, "_pass", trained)
    monkeypatch.setattr(LoraRecipe, "_micro_batch", stepped)
    hands = Hands(Room(tmp_path), cache, slots)
    hands.give(0, stop_after(3, StopCause.INTERRUPTED), seed=0)
    hands.give(1, seed=1, **CHANGES[2])
    hands.give(2, seed=2, optimizer__lr=1e30, clip_grad_norm=None)
    hands.give(3, seed=3)
    hands.give(4, seed=4, optimizer={"_component_": "torch.optim.SGD", "lr": 0.05}, dataset__split="train[:16]")
    while hands.scheduler.busy:
        hands.scheduler.step()
        kept = [trial for trial in hands.ended if any(one() is not None for one in alive[trial])]
        assert kept == [], {trial: hands.ended[trial] for trial in kept}
    assert [hands.ended[trial].kind for trial in range(5)] == [
        OutcomeKind.STOPPED,
        OutcomeKind.COMPLETED,
        OutcomeKind.DIVERGED,
        OutcomeKind.FAILED,
        OutcomeKind.COMPLETED,
    ]
    assert hands.ended[0].step == 3, "in the middle of training"


def test_what_cannot_be_packed_trains_by_itself_in_its_turn(
    cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd: dict[str, Any] = {"optimizer": {"_component_": "torch.optim.SGD", "lr": 0.05}, "model__lora_dropout": 0.1}
    alone = Hands(Room(tmp_path / "1"), cache, 1)
    alone.give(0, **odd)
    alone.finish()
    hands = Hands(Room(tmp_path / "2"), cache, 2)
    hands.give(1, **CHANGES[0])
    hands.give(0, **odd)
    hands.give(2, **CHANGES[2])
    hands.finish()
    assert "trial 0 trains by itself: its optimizer is SGD, not AdamW" in capsys.readouterr().out
    assert list(hands.ended) == [1, 0, 2], "nobody overtakes"
    assert steps(hands.room) == steps(alone.room)


def test_a_waiting_trial_obeys_a_stop_and_a_failure_is_its_own(cache: Cache, tmp_path: Path) -> None:
    hands = Hands(Room(tmp_path), cache, 2)
    hands.give(0, **CHANGES[0])
    hands.give(1, dataset__data_files="/nowhere/train.jsonl")
    hands.give(2, lambda: (StopCause.CANCELLED, "not wanted"), **CHANGES[1])
    hands.give(3, optimizer__lr=1e30, clip_grad_norm=None)
    hands.finish()
    kinds = {trial: outcome.kind for trial, outcome in hands.ended.items()}
    assert kinds == {
        0: OutcomeKind.COMPLETED,
        1: OutcomeKind.FAILED,
        2: OutcomeKind.STOPPED,
        3: OutcomeKind.DIVERGED,
    }


def test_a_built_trial_that_waits_for_the_pack_to_end_obeys_a_stop_and_loses_nothing(
    cache: Cache, tmp_path: Path
) -> None:
    odd: dict[str, Any] = {"optimizer": {"_component_": "torch.optim.SGD", "lr": 0.05}}
    room, whole = Room(tmp_path / "a"), Hands(Room(tmp_path / "b"), cache, 1)
    whole.give(0, **odd)
    whole.finish()
    first, second, third = (Hands(room, cache, 2) for _ in range(3))
    first.give(0, stop_after(4, StopCause.INTERRUPTED), **odd)
    first.finish()
    asked: list[tuple[StopCause, str]] = []
    second.give(1, **CHANGES[0])
    second.give(0, lambda: asked[0] if asked else None, attempt=2, **odd)
    second.scheduler.step()
    assert second.scheduler._alone is not None, "it is built"
    asked.append((StopCause.INTERRUPTED, "enough"))
    second.scheduler.step()
    assert list(second.ended) == [0], "at once, not once the other has ended"
    assert second.ended[0].cause is StopCause.INTERRUPTED
    assert (second.ended[0].step, second.ended[0].resumed_from) == (first.ended[0].step, 1)
    second.finish()
    assert second.ended[1].kind is OutcomeKind.COMPLETED
    third.give(0, attempt=3, **odd)
    third.finish()
    assert third.ended[0].resumed_from == 1
    assert steps(room) + steps(room, 3) == steps(whole.room)


@pytest.mark.parametrize("where", ["building it", "its row"])
def test_no_memory_for_one_more_trial_makes_it_wait(
    where: str, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hands = Hands(Room(tmp_path), cache, 4)
    begin, put = Attempt._begin, Pack.put
    beside: list[int] = []

    def tight(seed: int) -> None:
        if seed == 7 and len(hands.scheduler._packed) > 1:
            beside.append(len(hands.scheduler._packed))
            raise torch.OutOfMemoryError("CUDA out of memory")

    def tight_begin(self: Attempt) -> Outcome | None:
        tight(int(self.spec.config["seed"]))
        return begin(self)

    def tight_put(self: Pack, recipe: LoraRecipe) -> Slot:
        tight(int(recipe.cfg.seed))
        return put(self, recipe)

    if where == "building it":
        monkeypatch.setattr(Attempt, "_begin", tight_begin)
    else:
        monkeypatch.setattr(Pack, "put", tight_put)
    for trial in (0, 1, 3):
        hands.give(trial, **CHANGES[trial])
    hands.finish()
    assert beside == [2], "it was tried once, then waited for a place"
    assert {outcome.kind for outcome in hands.ended.values()} == {OutcomeKind.COMPLETED}


@pytest.fixture
def one_base(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device on which a model's own base has no room beside a kept one; how often that was met."""
    kept, met = list[weakref.ref[Any]](), list[int]()
    instantiate, load = config.instantiate, base.load_base

    def tight(cfg: Any, *args: Any, **kwargs: Any) -> Any:
        if "lora_" in cfg.get("_component_", "") and any(one() is not None for one in kept):
            met.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return instantiate(cfg, *args, **kwargs)

    def loaded(*args: Any) -> dict[str, torch.nn.Parameter]:
        frozen = load(*args)
        kept.extend(weakref.ref(one) for one in frozen.values())
        return frozen

    monkeypatch.setattr(config, "instantiate", tight)
    monkeypatch.setattr(base, "load_base", loaded)
    return met


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.usefixtures("counted")
def test_no_memory_for_a_model_beside_the_kept_base_lets_go_of_it(
    slots: int, one_base: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hands = Hands(Room(tmp_path), Cache(), slots)
    for trial in range(3):
        hands.give(trial, dataset__split="train[:16]", dataset_val=None)
    hands.finish()
    assert {outcome.kind for outcome in hands.ended.values()} == {OutcomeKind.COMPLETED}
    assert one_base
    assert capsys.readouterr().out.count("begins anew: no memory for its model beside the kept base") == 2


def test_what_has_no_memory_without_a_kept_base_either_fails_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, tried = Attempt._begin, list[int]()

    def tight(self: Attempt) -> Outcome | None:
        if self.spec.trial == 1:
            tried.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return begin(self)

    monkeypatch.setattr(Attempt, "_begin", tight)
    hands = Hands(Room(tmp_path), Cache(), 1)
    for trial in range(3):
        hands.give(trial, dataset__split="train[:16]", dataset_val=None)
    hands.finish()
    assert [hands.ended[trial].kind for trial in range(3)] == [
        OutcomeKind.COMPLETED,
        OutcomeKind.FAILED,
        OutcomeKind.COMPLETED,
    ]
    assert hands.ended[1].failure is FailureKind.OUT_OF_MEMORY
    assert len(tried) == 2


def test_what_can_never_fit_is_refused_and_what_does_not_fit_now_waits(
    cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = [Memory(10**12, 10**12)]
    hands = Hands(Room(tmp_path), cache, 4, lambda _: figures[0])
    hands.give(0, **CHANGES[0])
    hands.scheduler.step()
    pack = hands.scheduler._pack
    alone = pack.decoder.base_bytes + pack.store.row_bytes(8) + pack._pass_bytes(4 * pack._longest_row, 8)
    figures[0] = Memory(free=0, total=round(1.5 * alone))
    hands.give(1, batch_size=40)
    hands.give(2, model__lora_rank=100_000)
    hands.give(3, **CHANGES[3])
    hands.scheduler.step()
    assert list(hands.ended) == [1, 2], "at once: nobody waits behind them"
    for trial, figure in ((1, "for a pass over 40 rows of up to"), (2, "for its adapter")):
        assert (hands.ended[trial].kind, hands.ended[trial].failure) == (OutcomeKind.FAILED, FailureKind.OUT_OF_MEMORY)
        assert "GiB by itself" in hands.ended[trial].reason
        assert figure in hands.ended[trial].reason
    hands.finish()
    assert list(hands.ended) == [1, 2, 0, 3], "the last waited for the first to end"
    assert hands.ended[3].kind is OutcomeKind.COMPLETED
    assert "trial 3 waits: with it a pass needs about" in capsys.readouterr().out


def test_a_frugal_trial_is_not_judged_by_what_a_pack_would_take(cache: Cache, tmp_path: Path) -> None:
    figures = [Memory(10**12, 10**12)]
    hands = Hands(Room(tmp_path), cache, 2, lambda _: figures[0])
    hands.give(0, **CHANGES[2])
    hands.scheduler.step()
    figures[0] = Memory(0, 1)
    hands.give(1, enable_activation_checkpointing=True, **CHANGES[2])
    hands.finish()
    assert {outcome.kind for outcome in hands.ended.values()} == {OutcomeKind.COMPLETED}


def test_several_data_sets_in_one_are_packed_unless_torchtune_packs_one(
    cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {**embedded_config()["dataset"], "split": "train[:16]"}
    hands = Hands(Room(tmp_path / "2"), cache, 2)
    hands.give(0, dataset=[one, one], dataset_val=None)
    hands.give(1, dataset=[{**one, "packed": True}, {**one, "packed": True}], dataset_val=None)
    hands.finish()
    assert {outcome.kind for outcome in hands.ended.values()} == {OutcomeKind.COMPLETED}
    said = capsys.readouterr().out
    assert "trial 0 trains by itself" not in said
    assert "trial 1 trains by itself: its data set is packed by torchtune" in said


@pytest.mark.parametrize("where", ["refusal_reason", "put"])
def test_what_a_pack_cannot_take_fails_by_itself(
    where: str, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(Pack, where)

    def broken(self: Pack, recipe: LoraRecipe) -> Any:
        if recipe.cfg.seed == 7:
            raise RuntimeError("a model of another kind")
        return real(self, recipe)

    monkeypatch.setattr(Pack, where, broken)
    hands = Hands(Room(tmp_path), cache, 3)
    for trial in (0, 3, 2):
        hands.give(trial, **CHANGES[trial])
    hands.finish()
    assert (hands.ended[3].kind, hands.ended[3].reason) == (
        OutcomeKind.FAILED,
        "RuntimeError: a model of another kind",
    )
    assert {hands.ended[trial].kind for trial in (0, 2)} == {OutcomeKind.COMPLETED}


def test_auto_on_the_cpu_trains_one_at_a_time(cache: Cache, tmp_path: Path) -> None:
    said: list[int] = []
    assert not torch.cuda.is_available()
    scheduler = Scheduler(0, cache, said.append)
    assert (scheduler.free, said) == (1, [1])
