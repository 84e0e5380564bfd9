"""What the keys of a torchtune recipe take: for the base, for the space, and for derived values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.config.recipe_values import KINDS, LARGEST_SEED, Number, check_base, check_derived, check_space, corners
from sweep.config.space_grammar import parse_space
from sweep.errors import ConfigError
from trainer.environment import reference

WHOLE = "must be a whole number of at least 1"


def nested(key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {name: value}


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("batch_size", "4", f"{WHOLE}; it is text: remove its quotes"),
        ("batch_size", 0, WHOLE),
        ("batch_size", True, WHOLE),
        ("gradient_accumulation_steps", 2.068, WHOLE),
        ("epochs", 1.5, WHOLE),
        ("epochs", 2.0, f"{WHOLE}; write 2"),
        ("epochs", 0, WHOLE),
        ("max_steps_per_epoch", -1, f"{WHOLE} or null"),
        ("max_steps_per_epoch", "3", f"{WHOLE} or null; it is text: remove its quotes"),
        ("seed", -1, f"must be a whole number from 0 to {LARGEST_SEED} or null"),
        ("seed", 2**40, f"must be a whole number from 0 to {LARGEST_SEED} or null"),
        ("dtype", "float32", "must be bf16, fp32 or fp64; write fp32"),
        ("device", "gpu", "or one with a number such as cuda:1; write cuda"),
        ("shuffle", None, "must be true or false"),
        ("shuffle", "false", "must be true or false; it is text: remove its quotes"),
        ("clip_grad_norm", 0, "must be a number above 0 or null"),
        ("model.lora_rank", 7.5, WHOLE),
        ("model.lora_dropout", 1.5, "must be a number from 0 to 1"),
        ("model.lora_attn_modules", [], "must be a list of at least one of q_proj, k_proj, v_proj, output_proj"),
        ("model.lora_attn_modules", ["q_proj", "o_proj"], "torchtune's name of o_proj is output_proj"),
        ("model.lora_attn_modules", ["q_proj", "q_proj"], "must be a list"),
        ("optimizer.lr", "fast", "must be a number of at least 0"),
        ("optimizer.lr", float("nan"), "must be a number of at least 0"),
    ],
)
def test_a_base_with_another_kind_of_value_is_refused(key: str, value: Any, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_base(nested(key, value), {}, "mine.yaml")
    text = str(refused.value)
    assert complaint in text
    assert text.startswith(f"mine.yaml: {key}=")
    assert text.endswith(f"set recipe.overrides.{key}")
    with pytest.raises(ConfigError, match=f"^recipe.overrides.{key}="):
        check_base(nested(key, value), {key: value}, "mine.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 1),
        ("batch_size_val", None),
        ("max_steps_per_epoch", None),
        ("seed", LARGEST_SEED),
        ("seed", None),
        ("clip_grad_norm", float("inf")),
        ("clip_grad_norm", "1.0"),  # the recipe reads it with float()
        ("model.lora_alpha", 0.5),
        ("model.lora_attn_modules", ["output_proj", "q_proj"]),
        ("device", "cuda:3"),
        ("optimizer.lr", 0),
        ("compile", None),
        ("batch_size", reference("BATCH_SIZE")),  # only the worker knows its value
        ("unknown", object()),
    ],
)
def test_what_torchtune_takes_passes(key: str, value: Any) -> None:
    check_base(nested(key, value), {}, "mine.yaml")


@pytest.mark.parametrize(
    ("key", "domain", "complaint"),
    [
        ("gradient_accumulation_steps", "interval(1,4)", "write int(interval(1, 4))"),
        ("epochs", "interval(1,4)", "write int(interval(1, 4))"),
        ("model.lora_rank", "tag(log, interval(1,64))", "write int(interval(…))"),
        ("epochs", "range(0.5, 3, 0.5)", "write int(interval(…))"),
        ("batch_size", "int(interval(0,4))", "choose other ends"),
        ("seed", "int(interval(0,1e12))", "choose other ends"),
        ("epochs", "choice(1, 2.0)", "2.0 of choice(1, 2.0) must be a whole number of at least 1; write 2"),
        ("batch_size", "choice(4, '8')", "it is text: remove its quotes"),
        ("dtype", "choice(bf16, float32)", "write fp32"),
        ("model.lora_dropout", "interval(0, 2)", "choose other ends"),
        ("shuffle", "interval(0, 1)", "shuffle must be true or false"),
        ("model.lora_attn_modules", "choice([q_proj],[o_proj])", "torchtune's name of o_proj is output_proj"),
    ],
)
def test_a_space_that_would_propose_another_kind_of_value_is_refused(key: str, domain: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_space(parse_space({key: domain}))
    assert str(refused.value).startswith(f"space.{key}: ")
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("key", "domain"),
    [
        ("gradient_accumulation_steps", "int(interval(1,4))"),
        ("epochs", "range(1, 4)"),
        ("model.lora_rank", "choice(1, 64)"),
        ("optimizer.lr", "tag(log, interval(1e-5, 1e-3))"),
        ("max_steps_per_epoch", "choice(null, 5)"),
        ("dataset.source", "choice(a, b)"),
    ],
)
def test_a_space_of_values_that_torchtune_takes_passes(key: str, domain: str) -> None:
    if domain != "choice(null, 5)":  # how null is written is the grammar's matter
        check_space(parse_space({key: domain}))


def test_a_derived_value_of_another_kind_is_refused_with_what_it_comes_from() -> None:
    check_derived({"model.lora_alpha": 8.0}, {"model.lora_rank": 4})
    with pytest.raises(
        ConfigError, match=r"^derive.epochs gives 1.5 for model.lora_rank=4, and must be a whole number"
    ):
        check_derived({"epochs": 1.5}, {"model.lora_rank": 4})


def test_the_corners_of_a_space_hold_each_value_of_a_choice_and_both_ends_of_an_interval() -> None:
    space = parse_space(
        {
            "a": "choice(x, y, z)",
            "b": "int(interval(1, 9))",
            "c": {"value": "interval(0.5, 1)", "when": {"a": "z"}},
        }
    )
    assert list(corners(space, 10)) == [
        {"a": "x", "b": 1},
        {"a": "z", "b": 9, "c": 1.0},
        {"a": "y", "b": 1},
    ]
    assert len(list(corners(parse_space({"a": f"choice({','.join(map(str, range(500)))})"}), 16))) == 16


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers())))
def test_every_kind_answers_for_every_value_and_describes_itself(value: Any) -> None:
    for kind in KINDS.values():
        assert kind.accepts(value) in (True, False)
        assert isinstance(kind.hint(value), str)
        assert str(kind)
        if isinstance(kind, Number) and kind.accepts(value) and isinstance(value, int | float):
            assert kind.low <= value <= kind.high
