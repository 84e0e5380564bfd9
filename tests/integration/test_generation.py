"""Answers of a trial alone against torchtune's own, and of a pack against each trial alone: the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.answers import early_stops, random_prompts, torchtune_answer, with_random_adapter
from tests.helpers.packs import TRIALS, Change, drive, make
from trainer import base, generation, sampling
from trainer.base import Cache
from trainer.contract import Step
from trainer.generation import Sampling, answer_alone
from trainer.packed.kv_cache import KeyValueCache
from trainer.packed.memory import Memory
from trainer.packed.model import Decoder
from trainer.packed.pack import Pack
from trainer.packed.slot import Slot
from trainer.recipe import LoraRecipe
from trainer.sampling import Answer, Prompt, choose

pytestmark = pytest.mark.slow

LENGTHS = (5, 17, 1, 30, 8, 8, 2)
TOKENS = 15
SOME_MODULES: Change = {"model__lora_attn_modules": ["q_proj", "v_proj"], "model__apply_lora_to_mlp": False}
LORA = {"lora_attn_modules": ["q_proj", "output_proj"], "lora_rank": 8, "lora_alpha": 16, "apply_lora_to_mlp": True}
SIZES = {"vocab_size": 1024, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 64, "max_seq_len": 256}
QUANTIZED = {"_component_": "torchtune.models.llama3.lora_llama3", "quantize_base": True, **SIZES, **LORA}
QUANTIZED |= {"num_layers": 1, "num_kv_heads": 4, "embed_dim": 256, "intermediate_dim": 256}  # whole blocks of scales
QWEN = {"_component_": "torchtune.models.qwen2.lora_qwen2", "intermediate_dim": 96, "tie_word_embeddings": True}
GEMMA = {"_component_": "torchtune.models.gemma2.lora_gemma2", "intermediate_dim": 96, "head_dim": 16}


@pytest.fixture(scope="module")
def cache() -> Cache:
    return Cache()


@pytest.fixture
def random_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases of any builder keep their random weights."""
    monkeypatch.setattr(base, "load_base", lambda cfg, model, scratch: base._frozen(model))


# --- a trial alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {},
        {
            **SOME_MODULES,
            "model__use_dora": True,
            "model__apply_lora_to_output": True,
            "enable_activation_checkpointing": True,
            "loss": {"_component_": "torch.nn.CrossEntropyLoss"},
        },
        {"model": QUANTIZED},
        {"model": {**QWEN, **SIZES, **LORA}},
        pytest.param({"model": {**GEMMA, **SIZES, **LORA}}, marks=pytest.mark.deep),
        {"model": {**GEMMA, **SIZES, **LORA, "sliding_window_size": 8}},  # torchtune cannot cache it
    ],
    ids=[
        "plain",
        "DoRA, output adapted, checkpointing",
        "quantized base",
        "Qwen 2",
        "Gemma 2",
        "Gemma 2, a short window",
    ],
)
@pytest.mark.usefixtures("random_base")
def test_a_trial_alone_answers_as_torchtune_does(change: Change, tmp_path: Path) -> None:
    recipe, prompts = with_random_adapter(make(Cache(), tmp_path, change), 1), random_prompts(0, LENGTHS)
    if "model" in change:  # random embeddings, both read and written, would repeat the last token for ever
        recipe.model.get_parameter("tok_embeddings.weight").data.mul_(0.02)
    before = model_state(recipe)
    whole = answer_alone(recipe, prompts, Sampling(TOKENS))
    stop = early_stops(whole)
    found = answer_alone(recipe, prompts, Sampling(TOKENS, stop=stop))
    assert model_state(recipe) == before
    cached = "sliding_window_size" not in change.get("model", {})
    assert whole == [torchtune_answer(recipe.model, prompt, TOKENS, cached=cached) for prompt in prompts]
    assert found == [torchtune_answer(recipe.model, prompt, TOKENS, stop, cached) for prompt in prompts]
    assert {len(answer) for answer in whole} == {TOKENS}
    assert len({len(answer) for answer in found}) > 2, "some end early, at several places"


def model_state(recipe: LoraRecipe) -> Any:
    """What answering must not change in a model."""
    model: Any = recipe.model
    modules = [
        (name, module.training, sorted(vars(module)), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]
    caches = [(layer.attn.kv_cache, layer.attn.cache_enabled) for layer in model.layers]
    gradients = [None if p.grad is None else p.grad.clone() for p in recipe.trainable]
    return modules, caches, model.num_output_chunks, gradients


@pytest.mark.deep
@pytest.mark.usefixtures("random_base")
def test_a_compiled_trial_answers_and_compiles_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_COMPILE_BACKEND", "eager")
    prompts = random_prompts(0, LENGTHS[:3])
    recipe = make(Cache(), tmp_path, {"compile": True, "batch_size": 1})
    batches = recipe.train()
    for _ in range(3):
        next(batches)
    counters: Any = torch._dynamo.utils.counters
    compiled = dict(counters["stats"])
    assert compiled["unique_graphs"] > 0
    found = answer_alone(recipe, prompts, Sampling(4))
    next(batches)
    assert dict(counters["stats"]) == compiled
    torch._dynamo.reset()
    assert found == [torchtune_answer(recipe.model, prompt, 4) for prompt in prompts]


def test_prompts_that_cannot_be_answered_are_named(cache: Cache, tmp_path: Path) -> None:
    recipe, pack = make(cache, tmp_path, {}), Pack()
    limit = int(recipe.model.max_seq_len)  # type: ignore[arg-type]
    slot = pack.put(recipe)
    wrong: dict[str, Prompt] = {
        rf"^row 1 has a prompt of {limit - 19} tokens.*max_new_tokens=20.*max_seq_len={limit}": (1,) * (limit - 19),
        r"^row 1 has an empty prompt": (),
        r"^row 1 has token 1024, and the model has tokens 0 to 1023": (3, 1024),
    }
    for text, prompt in wrong.items():
        with pytest.raises(ValueError, match=text):
            answer_alone(recipe, [(1,), prompt], Sampling(20))
        with pytest.raises(ValueError, match=text):
            pack.answer({slot: [(1,), prompt]}, Sampling(20))
    longest = [(1,) * (limit - 20)]
    assert pack.answer({slot: longest}, Sampling(20))[slot] == answer_alone(recipe, longest, Sampling(20))
    assert pack.answer({slot: []}, Sampling(20)) == {slot: answer_alone(recipe, [], Sampling(20))} == {slot: []}


def test_numbers_out_of_range_are_refused() -> None:
    for wrong in ({"max_new_tokens": 0}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Sampling(**{"max_new_tokens": 1, **wrong})  # type: ignore[arg-type]


# --- draws -----------------------------------------------------------------------------------------------------------


def test_draws_follow_the_probabilities_and_their_row_seed_and_position() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5]).repeat(20_000, 1)
    rows, zeros = torch.arange(20_000), torch.zeros(20_000, dtype=torch.int64)
    hot = Sampling(1, temperature=2.0, seed=3)
    found = choose(logits, rows, zeros, hot)
    shares = torch.bincount(found, minlength=5) / 20_000
    assert torch.allclose(shares, torch.softmax(logits[0] / 2, 0), atol=0.015)
    by_position = choose(logits, zeros, rows, hot)
    assert torch.allclose(torch.bincount(by_position, minlength=5) / 20_000, shares, atol=0.02)
    for other in (by_position, choose(logits, rows, zeros, Sampling(1, temperature=2.0, seed=4))):
        assert 0.15 < float((found == other).float().mean()) < 0.4, "as chance has it"
    some = torch.tensor([17, 5, 19_999])
    assert choose(logits[some], rows[some], zeros[some], hot).tolist() == found[some].tolist()
    two = choose(logits, rows, zeros, Sampling(1, temperature=2.0, top_k=2, seed=3))
    assert set(two.tolist()) == {0, 4}
    assert choose(logits[:3], rows[:3], zeros[:3], Sampling(1)).tolist() == [0, 0, 0]


# --- a pack ----------------------------------------------------------------------------------------------------------

ADAPTERS: tuple[Change, ...] = (
    {"model__lora_rank": 4, "model__lora_alpha": 32},
    {"model__lora_rank": 16, "model__lora_alpha": 8},
    {"model__lora_dropout": 0.3},
    {"model__lora_rank": 64},
)


def packed(cache: Cache, scratch: Path, changes: Sequence[Change]) -> tuple[Pack, list[Slot]]:
    pack = Pack()
    recipes = (with_random_adapter(make(cache, scratch, change), seed) for seed, change in enumerate(changes))
    return pack, [pack.put(recipe) for recipe in recipes]


def alone(requests: Mapping[Slot, Sequence[Prompt]], how: Sampling) -> dict[Slot, list[Answer]]:
    """By torchtune's modules, whose parameters are views into the pack's store."""
    return {slot: answer_alone(slot.recipe, prompts, how) for slot, prompts in requests.items()}


def at_a_time(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode so many sequences at one time; the next ones enter as others end, a few in one pass."""
    monkeypatch.setattr(sampling, "MOST_SEQUENCES", most)
    monkeypatch.setattr("trainer.packed.generation.PASS_TOKENS", 70)


@pytest.mark.parametrize(
    ("modules", "counts"),
    [({}, (1024, 9)), (SOME_MODULES, (3,))],
    ids=["all at once, and nine at a time", "some layers, fewer at a time than slots"],
)
def test_a_pack_answers_as_each_trial_alone(
    modules: Change, counts: Sequence[int], cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, slots = packed(cache, tmp_path, [{**change, **modules} for change in ADAPTERS])
    prompts = random_prompts(0, LENGTHS)
    requests = {slot: [*prompts[index:], *prompts[:index]][: 7 - index] for index, slot in enumerate(slots)}
    some = {slots[3]: prompts[2:], slots[1]: prompts[:3]}  # not neighbours in the store
    whole = alone(requests, Sampling(TOKENS))
    everything = [answer for of_slot in whole.values() for answer in of_slot]
    assert len(set(everything)) > 18
    assert {len(answer) for answer in everything} == {TOKENS}
    early = Sampling(TOKENS, stop=early_stops(everything))
    hot = Sampling(TOKENS, temperature=0.9, top_k=50, seed=2**40 + 7, stop=early.stop)
    stopped, drawn, of_some = alone(requests, early), alone(requests, hot), alone(some, early)
    assert len({len(answer) for of_slot in stopped.values() for answer in of_slot}) > 5
    assert drawn != stopped
    for most in counts:
        at_a_time(most, monkeypatch)
        assert pack.answer(requests, Sampling(TOKENS)) == whole
        assert pack.answer(requests, early) == stopped
        assert pack.answer(requests, hot) == drawn
        assert pack.answer(some, early) == of_some


def test_a_slot_whose_numbers_are_not_finite_changes_no_other(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_a_time(9, monkeypatch)
    pack, slots = packed(cache, tmp_path, ADAPTERS[:3])
    requests = {slot: random_prompts(0, LENGTHS) for slot in slots}
    wanted = pack.answer(requests, Sampling(TOKENS))
    with torch.no_grad():
        pack.store.values[slots[1].row] = float("nan")
    found = pack.answer(requests, Sampling(TOKENS))
    assert [found[slot] for slot in (slots[0], slots[2])] == [wanted[slot] for slot in (slots[0], slots[2])]


def test_a_sequence_whose_numbers_are_not_finite_changes_none_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves an entry of the KV cache to the next one."""
    pack, (slot,) = packed(Cache(), tmp_path, ADAPTERS[:1])
    prompts = random_prompts(0, LENGTHS)
    wanted = pack.answer({slot: prompts}, Sampling(TOKENS))[slot]
    pack.decoder._embed.weight.data[1000] = float("nan")
    assert not any(1000 in one for one in (*prompts, *wanted))
    at_a_time(1, monkeypatch)
    found = pack.answer({slot: [(1000,) * 40, *prompts]}, Sampling(TOKENS))[slot]
    assert found[1:] == wanted


def test_sequences_are_bounded_by_the_free_memory(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, (slot,) = packed(cache, tmp_path, ADAPTERS[:1])
    counts = list[int]()
    real = KeyValueCache.__init__

    def counted(self: KeyValueCache, decoder: Decoder, count: int, size: int) -> None:
        counts.append(count)
        real(self, decoder, count, size)

    monkeypatch.setattr(KeyValueCache, "__init__", counted)
    requests = {slot: random_prompts(0, LENGTHS)}
    for free in (2**40, 200 * 2**20, 1):
        pack._memory_probe = lambda _, free=free: Memory(free, 2**40)  # type: ignore[misc]
        pack.answer(requests, Sampling(TOKENS))
    assert counts[0] == len(LENGTHS) and counts[-1] == 1


def test_out_of_memory_halves_the_sequences_and_loses_no_answer(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, slots = packed(cache, tmp_path, ADAPTERS[:2])
    requests = {slot: random_prompts(0, LENGTHS) for slot in slots}
    early = Sampling(TOKENS, stop=early_stops(pack.answer(requests, Sampling(TOKENS))[slots[0]]))
    wanted = pack.answer(requests, early)
    real, passes = Decoder.hidden, list[int]()

    def tight(self: Decoder, store: Any, layout: Any, *args: Any) -> torch.Tensor:
        passes.append(len(layout.starts) - 1)
        if passes[-1] > 4 and len(passes) > 8:  # in the middle of the answers
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, store, layout, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "hidden", tight)
        assert pack.answer(requests, early) == wanted
    assert max(passes) == 14 and max(passes[20:]) <= 4
    recipe, sizes = slots[0].recipe, list[int]()
    batch = generation._answer_batch

    def small(model: Any, prompts: Any, *args: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch(model, prompts, *args)

    monkeypatch.setattr(generation, "_answer_batch", small)
    assert answer_alone(recipe, requests[slots[0]], early) == wanted[slots[0]]
    assert sizes == [7, 3, 3, 1]
    monkeypatch.setattr(generation, "_answer_batch", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(torch.OutOfMemoryError):
        answer_alone(recipe, [(1,)], early)
    assert recipe.model.training


# --- training goes on ------------------------------------------------------------------------------------------------


def test_training_alone_goes_on_bit_for_bit(cache: Cache, tmp_path: Path) -> None:
    """With dropout, within an accumulation, at a step and before the first one."""
    prompts, how = random_prompts(0, LENGTHS), Sampling(8, temperature=1.0)

    def losses(interrupted: bool) -> list[Any]:
        recipe = make(cache, tmp_path, {**TRIALS[2], "epochs": 1})
        seen: list[Any] = []
        if interrupted:
            answer_alone(recipe, prompts, how)
        for batch in recipe.train():
            seen.append((batch.step, torch.get_rng_state().tolist()))
            if interrupted and batch.position in (1, 2, 5):
                answer_alone(recipe, prompts, how)
        return [*seen, {name: tensor.tolist() for name, tensor in recipe.adapter().items()}]

    assert losses(interrupted=True) == losses(interrupted=False)


def test_training_in_a_pack_goes_on_bit_for_bit(cache: Cache, tmp_path: Path) -> None:
    prompts = random_prompts(0, LENGTHS)

    def steps(interrupted: bool) -> tuple[list[list[Step]], list[Any]]:
        pack = Pack()
        slots = [pack.put(make(cache, tmp_path, {**change, "epochs": 1})) for change in TRIALS[:3]]
        seen: dict[Slot, list[Step]] = {}
        states = []
        for rounds in (1, 1, 2):
            drive(pack, seen, rounds)
            if interrupted:
                before = torch.get_rng_state()
                pack.answer(dict.fromkeys(slots[1:], prompts), Sampling(8, temperature=1.0))
                assert torch.equal(torch.get_rng_state(), before)
            states += [tensor.clone() for tensor in pack.store.tensors]
        drive(pack, seen, 3)
        return [seen[slot] for slot in slots], states

    (ours, states), (theirs, others) = steps(interrupted=True), steps(interrupted=False)
    assert ours == theirs
    assert all(torch.equal(a, b) for a, b in zip(states, others, strict=True))
