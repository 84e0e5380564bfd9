"""A pack against each of its trials alone: the same loss and grad_norm at every step, whatever happens beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sweep.resources import embedded_dir
from tests.helpers.packs import TOLERANCE, TRIALS, Change, alone, drive, make, worst
from trainer import base, checkpoint
from trainer.base import Cache
from trainer.contract import Step
from trainer.packed.dropout import dropout_masks
from trainer.packed.model import Decoder
from trainer.packed.pack import Pack
from trainer.packed.slot import Slot, SlotBatch
from trainer.recipe import LoraRecipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache() -> Cache:
    return Cache()


def test_mixed_trials_with_staggered_starts(cache: Cache, tmp_path: Path) -> None:
    """A smaller rank first, so that the store grows under a running trial; places are refilled as they get free."""
    pack = Pack()
    steps: dict[Slot, list[Step]] = {}
    slots: list[Slot] = []
    for change in TRIALS:
        while len(pack.slots) == 3:
            drive(pack, steps, 1)
        recipe = make(cache, tmp_path, change)
        assert pack.refusal_reason(recipe) is None
        slots.append(pack.put(recipe))
        drive(pack, steps, 2)
    drive(pack, steps)
    differences = [
        worst(steps[slot], alone(cache, tmp_path, change)) for slot, change in zip(slots, TRIALS, strict=True)
    ]
    print(differences)
    assert max(differences) < TOLERANCE


def test_some_adapted_layers(cache: Cache, tmp_path: Path) -> None:
    """Only q and v of the three that share an input, and no MLP."""
    change = {"model__lora_attn_modules": ["q_proj", "v_proj"], "model__apply_lora_to_mlp": False}
    pack = Pack()
    steps: dict[Slot, list[Step]] = {}
    slots = [pack.put(make(cache, tmp_path, {**change, "model__lora_rank": rank})) for rank in (4, 8)]
    drive(pack, steps)
    for slot, rank in zip(slots, (4, 8), strict=True):
        whole = alone(cache, tmp_path, {**change, "model__lora_rank": rank})
        assert worst(steps[slot], whole) < TOLERANCE


def test_positions_of_another_kind_are_not_packed(cache: Cache, tmp_path: Path) -> None:
    lora = {"lora_attn_modules": ["q_proj"], "lora_rank": 8, "lora_alpha": 16, "apply_lora_to_mlp": False}
    sizes = {"vocab_size": 1024, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 64}
    qwen = {"_component_": "torchtune.models.qwen2.lora_qwen2", "intermediate_dim": 96, "max_seq_len": 256}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "load_base", lambda cfg, model, scratch: base._frozen(model))
        refused = Pack().refusal_reason(make(Cache(), tmp_path, {"model": {**qwen, **sizes, **lora}}))
    assert refused == "layer 0 has Qwen2RotaryPositionalEmbeddings for positions"


def test_validation_and_the_adapter_are_the_trial_s_own(cache: Cache, tmp_path: Path) -> None:
    single = make(cache, tmp_path, TRIALS[0])
    list(single.train())
    pack = Pack()
    slots = [pack.put(make(cache, tmp_path, change)) for change in TRIALS[:2]]
    for _ in range(single.total):
        pack.step()
        assert single.evaluate() == pytest.approx(single.evaluate())
    assert slots[0].recipe.evaluate() == pytest.approx(single.evaluate(), rel=1e-5)
    for name, ours in slots[0].recipe.adapter().items():
        assert torch.allclose(ours, single.adapter()[name], atol=1e-4), name
    assert slots[0].recipe.save_adapter(tmp_path / "adapter")


def saved(recipe: LoraRecipe, path: Path) -> dict[str, Any]:
    checkpoint.save(path, {"recipe": recipe.state(), "milestones": {}, "guard": {}})
    assert path.stat().st_size < 4e6, "a row, not the whole store"
    state: dict[str, Any] = checkpoint.load(path)["recipe"]
    return state


@pytest.mark.parametrize("stop_at", [3, 4, 12])
def test_a_trial_moves_between_a_pack_and_itself_alone(stop_at: int, cache: Cache, tmp_path: Path) -> None:
    """Out of a pack within an accumulation, at a step, and at an epoch's end; on alone, and into another pack."""
    change, other = TRIALS[2], TRIALS[0]
    pack = Pack()
    steps: dict[Slot, list[Step]] = {}
    beside, slot = pack.put(make(cache, tmp_path, other)), pack.put(make(cache, tmp_path, change))
    drive(pack, steps, stop_at)
    first = steps[slot]
    state = saved(slot.recipe, tmp_path / "c.pt")
    if slot in pack.slots:
        pack.remove(slot)
    single = make(cache, tmp_path, change)
    single.load_state(state)
    batches = single.train()
    onward = [batch.step for _, batch in zip(range(5), batches, strict=False) if batch.step]
    state = saved(single, tmp_path / "d.pt")
    again = make(cache, tmp_path, change)
    again.load_state(state)
    last = pack.put(again)
    drive(pack, steps)
    whole = alone(cache, tmp_path, change)
    assert worst(first + onward + steps[last], whole) < TOLERANCE
    assert worst(steps[beside], alone(cache, tmp_path, other)) < TOLERANCE


def test_a_diverging_neighbour_changes_nothing(cache: Cache, tmp_path: Path) -> None:
    pack = Pack()
    steps: dict[Slot, list[Step]] = {}
    bad = pack.put(make(cache, tmp_path, {"optimizer__lr": 1e30, "clip_grad_norm": None}))
    good = pack.put(make(cache, tmp_path, TRIALS[0]))
    drive(pack, steps)
    assert any(step.loss != step.loss for step in steps[bad]), "it is not finite"
    assert worst(steps[good], alone(cache, tmp_path, TRIALS[0])) < TOLERANCE


def fails(pack: Pack, error: Callable[[int], Exception | None]) -> list[int]:
    """Have passes fail, given the number of their slots, after their backward pass; returns those numbers."""
    seen: list[int] = []
    real = pack._pass

    def one(group: Any) -> torch.Tensor:
        seen.append(len(group))
        sums = real(group)
        if (failure := error(len(group))) is not None:
            raise failure
        return sums

    pack._pass = one  # type: ignore[method-assign]
    return seen


def test_out_of_memory_halves_the_passes_and_loses_no_trial(cache: Cache, tmp_path: Path) -> None:
    pack = Pack()
    steps: dict[Slot, list[Step]] = {}
    changes = [{**TRIALS[2], "epochs": 1, "seed": seed} for seed in range(4)]
    slots = [pack.put(make(cache, tmp_path, change)) for change in changes]
    drive(pack, steps, 1)
    seen = fails(pack, lambda count: torch.OutOfMemoryError("CUDA out of memory") if count > 2 else None)
    drive(pack, steps)
    assert seen[:3] == [4, 2, 2]
    assert max(seen[1:]) <= 3, "not all in one pass again"
    for slot, change in zip(slots, changes, strict=True):
        assert worst(steps[slot], alone(cache, tmp_path, change)) < TOLERANCE


def test_no_memory_for_a_copy_of_gradients_loses_no_trial(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within an accumulation the gradients are copied before a pass: that may be what memory does not suffice for."""
    pack = Pack()
    steps: dict[Slot, list[Step]] = {}
    changes = [{**TRIALS[1], "seed": seed} for seed in range(2)]
    slots = [pack.put(make(cache, tmp_path, change)) for change in changes]
    drive(pack, steps, 1)
    real = torch.Tensor.clone

    def tight(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.shape == pack.store.grads.shape:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "clone", tight)
        drive(pack, steps, 1)
    assert pack.budget is not None, "one slot at a time from then on"
    drive(pack, steps)
    for slot, change in zip(slots, changes, strict=True):
        assert worst(steps[slot], alone(cache, tmp_path, change)) < TOLERANCE


def test_no_memory_for_a_validation_batch_halves_it(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack()
    slot = pack.put(make(cache, tmp_path, TRIALS[0]))
    pack.step()
    whole = slot.recipe.evaluate()
    real, sizes = Decoder.loss, list[int]()

    def tight(self: Decoder, store: Any, layout: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        sizes.append(layout.rows[0].shape[0])
        if sizes[-1] > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, store, layout, *args, **kwargs)

    monkeypatch.setattr(Decoder, "loss", tight)
    assert slot.recipe.evaluate() == pytest.approx(whole, rel=1e-6)
    assert max(sizes) > 10 >= min(sizes)


@pytest.mark.parametrize("packed", [False, True])
def test_validation_passes_over_a_batch_without_a_label(packed: bool, cache: Cache, tmp_path: Path) -> None:
    """As of rows whose prompts are so long that nothing of the answers is left."""
    rows = [json.loads(line) for line in (embedded_dir() / "val.jsonl").read_text().splitlines()[:4]]
    long = {**rows[2], "instruction": "word " * 600}

    def evaluate(*of: Any) -> float | None:
        file = tmp_path / f"{len(of)}.jsonl"
        file.write_text("\n".join(json.dumps(row) for row in of))
        change = {"dataset_val__data_files": str(file), "dataset_val__split": "train", "batch_size_val": 1}
        recipe = make(cache, tmp_path, change)
        return (Pack().put(recipe).recipe if packed else recipe).evaluate()

    assert evaluate(*rows[:2], long, *rows[2:]) == pytest.approx(evaluate(*rows), rel=1e-6)
    with pytest.raises(ValueError, match=r"^dataset_val has no label token.*leave dataset_val out$"):
        evaluate(long)


def test_the_masks_of_dropout_are_reckoned_with(cache: Cache, tmp_path: Path) -> None:
    plain, noisy = Pack(), Pack()
    plain.put(make(cache, tmp_path, {}))
    slot = noisy.put(make(cache, tmp_path, {"model__lora_dropout": 0.1}))
    slot.prefetch(noisy.decoder.max_length)
    assert isinstance(slot.prefetched, SlotBatch)
    layout = noisy._layout([slot.prefetched.batch], slot)
    masks = dropout_masks(noisy.decoder.groups, [slot], layout, noisy.decoder.like)
    kept = sum(mask.numel() * mask.element_size() for group in masks.values() for mask in group)
    assert 0 < kept <= noisy._pass_bytes(layout.size, 8) - plain._pass_bytes(layout.size, 8) < 2 * kept


def test_a_table_of_positions_is_in_memory_once(cache: Cache, tmp_path: Path) -> None:
    pack = Pack()
    models: list[Any] = [pack.put(make(cache, tmp_path, change)).recipe.model for change in TRIALS[:2]]
    first, second = (model.layers[0].attn.pos_embeddings.cache for model in models)
    assert first.data_ptr() == second.data_ptr()


def test_a_failure_is_one_slot_s(cache: Cache, tmp_path: Path) -> None:
    pack = Pack()
    slots = [pack.put(make(cache, tmp_path, TRIALS[0])) for _ in range(3)]
    pack.step()
    real = pack._pass

    def one(group: Any) -> torch.Tensor:
        if any(fed.slot is slots[1] for fed in group):
            raise RuntimeError("a kernel of its own")
        return real(group)

    pack._pass = one  # type: ignore[method-assign]
    results = {result.slot: result for result in pack.step()}
    assert "a kernel of its own" in str(results[slots[1]].error)
    assert all(results[slot].progress is not None for slot in (slots[0], slots[2]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"optimizer": {"_component_": "torch.optim.SGD", "lr": 0.1}}, "its optimizer is SGD, not AdamW"),
        ({"optimizer__amsgrad": True, "optimizer__fused": False}, "its AdamW has amsgrad"),
        ({"enable_activation_checkpointing": True}, "enable_activation_checkpointing is set"),
        ({"model__use_dora": True}, "is a DoRALinear, not a plain LoRALinear"),
        ({"model__apply_lora_to_output": True}, "its output projection is adapted"),
        ({"loss": {"_component_": "torch.nn.CrossEntropyLoss", "label_smoothing": 0.1}}, "CrossEntropyLoss"),
    ],
)
def test_what_cannot_be_packed_is_named(change: Change, reason: str, cache: Cache, tmp_path: Path) -> None:
    refused = Pack().refusal_reason(make(cache, tmp_path, change))
    assert refused is not None
    assert reason in refused
