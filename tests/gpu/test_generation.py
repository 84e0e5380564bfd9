"""Answers on one CUDA GPU, of a trial alone and of a pack: `pytest -m gpu tests/gpu/test_generation.py -s`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bench.packed_parity import compiled
from tests.helpers.answers import early_stops, random_prompts, torchtune_answer, with_random_adapter
from tests.helpers.packs import TRIALS, Change, drive, make
from trainer import sampling
from trainer.base import Cache
from trainer.contract import Step
from trainer.generation import Sampling, answer_alone
from trainer.packed.pack import Pack
from trainer.packed.slot import Slot

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

LENGTHS = (5, 17, 1, 60, 8, 8, 2, 33, 64, 100)
TOKENS = 40
ADAPTERS: tuple[Change, ...] = (
    {"model__lora_rank": 4, "model__lora_alpha": 32},
    {"model__lora_rank": 16, "model__lora_alpha": 8},
    {"model__lora_dropout": 0.3},
    {"model__lora_rank": 64},
)


def packed(scratch: Path, changes: tuple[Change, ...], dtype: str) -> tuple[Pack, list[Slot]]:
    pack, cache = Pack(), Cache()
    slots = []
    for seed, change in enumerate(changes):
        recipe = make(cache, scratch, {**change, "device": "cuda", "dtype": dtype})
        slots.append(pack.put(with_random_adapter(recipe, seed)))
    return pack, slots


@pytest.mark.parametrize("most", [1024, 9, 3])
def test_fp32_has_the_tokens_of_torchtune_alone_and_in_a_pack(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MOST_SEQUENCES", most)
    pack, slots = packed(tmp_path, ADAPTERS, "fp32")
    prompts = random_prompts(0, LENGTHS)
    requests = {slot: [*prompts[index:], *prompts[:index]] for index, slot in enumerate(slots)}
    found = pack.answer(requests, Sampling(TOKENS))
    early = Sampling(TOKENS, stop=early_stops([answer for of_slot in found.values() for answer in of_slot]))
    stopped = pack.answer(requests, early)
    hot = Sampling(TOKENS, temperature=0.9, top_k=50, seed=7, stop=early.stop)
    drawn = pack.answer(requests, hot)
    some = pack.answer({slots[3]: prompts, slots[1]: prompts[:4]}, early)
    for slot in slots:
        assert found[slot] == answer_alone(slot.recipe, requests[slot], Sampling(TOKENS))
        assert stopped[slot] == answer_alone(slot.recipe, requests[slot], early)
        assert drawn[slot] == answer_alone(slot.recipe, requests[slot], hot)
    assert some[slots[3]] == answer_alone(slots[3].recipe, prompts, early)
    for slot in slots:
        model: Any = slot.recipe.model
        assert stopped[slot] == [torchtune_answer(model, one, TOKENS, early.stop) for one in requests[slot]]
        model.train()


def test_bf16_has_most_of_the_tokens(tmp_path: Path) -> None:
    """Rounding may turn a choice between nearly equal tokens, after which an answer goes its own way."""
    pack, slots = packed(tmp_path, ADAPTERS, "bf16")
    before = compiled()
    requests = dict.fromkeys(slots, random_prompts(0, LENGTHS * 8))
    found = pack.answer(requests, Sampling(8))
    assert compiled() - before == set(), "the kernels are those of training"
    pairs = []
    for slot in slots:
        alone = answer_alone(slot.recipe, requests[slot], Sampling(8))
        pairs += list(zip(found[slot], alone, strict=True))
    share = sum(a == b for a, b in pairs) / len(pairs)
    first = sum(a[0] == b[0] for a, b in pairs) / len(pairs)
    print(f"{share:.3f} of the answers are equal, {first:.3f} of the first tokens")
    assert first > 0.9
    assert share > 0.6


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_training_goes_on_bit_for_bit_and_memory_is_freed(dtype: str, tmp_path: Path) -> None:
    prompts = random_prompts(0, LENGTHS)

    def steps(interrupted: bool) -> tuple[list[list[Step]], torch.Tensor]:
        pack, cache = Pack(), Cache()
        changes: list[Change] = [{**change, "device": "cuda", "dtype": dtype} for change in TRIALS[:3]]
        slots = [pack.put(make(cache, tmp_path, change)) for change in changes]
        seen: dict[Slot, list[Step]] = {}
        for rounds in (1, 1, 3):
            drive(pack, seen, rounds)
            if interrupted:
                held, state = torch.cuda.memory_allocated(), torch.cuda.get_rng_state()
                pack.answer(dict.fromkeys(slots, prompts), Sampling(TOKENS, temperature=1.0))
                answer_alone(slots[2].recipe, prompts, Sampling(TOKENS, temperature=1.0))
                assert torch.equal(torch.cuda.get_rng_state(), state)
                assert torch.cuda.memory_allocated() <= held + 2**20
        values = pack.store.values.clone()
        drive(pack, seen)
        return [seen[slot] for slot in slots], values

    (ours, values), (theirs, others) = steps(interrupted=True), steps(interrupted=False)
    assert ours == theirs
    assert torch.equal(values, others)


def test_a_real_out_of_memory_halves_the_sequences_and_loses_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate is told that there is much memory, and this process may have little."""
    pack, slots = packed(tmp_path, ADAPTERS, "fp32")
    requests = dict.fromkeys(slots, random_prompts(0, LENGTHS * 16))
    wanted = pack.answer(requests, Sampling(TOKENS))
    torch.cuda.empty_cache()
    held, total = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[1]
    torch.cuda.reset_peak_memory_stats()
    pack.answer(requests, Sampling(TOKENS))
    most = torch.cuda.max_memory_reserved()
    pack._memory_probe = lambda _: None
    monkeypatch.setattr(sampling, "HOST_BYTES", 2**45)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((held + 0.4 * (most - held)) / total)
    try:
        found = pack.answer(requests, Sampling(TOKENS))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    print(f"{held / 2**20:.0f} MiB before, {most / 2**20:.0f} MiB without a limit")
    assert found == wanted
