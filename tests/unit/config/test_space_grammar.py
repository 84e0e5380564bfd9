"""Search spaces in Hydra's override grammar: every form of it, and every mistake in it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.config.space import Choice, Domain, Interval, contains
from sweep.config.space_grammar import flatten, merged, parse_domain, parse_space
from sweep.errors import ConfigError

TWO = "choice(1, 2)"


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("choice(4, 8, 16)", Choice((4, 8, 16))),
        ("choice(4,8,16)", Choice((4, 8, 16))),
        ("4, 8, 16", Choice((4, 8, 16))),
        ("choice(0.0, 0.05)", Choice((0.0, 0.05))),
        ("choice(true, false)", Choice((True, False))),
        ("choice(torch.optim.AdamW, torch.optim.SGD)", Choice(("torch.optim.AdamW", "torch.optim.SGD"))),
        ("choice('torch.optim.AdamW', \"torch.optim.SGD\")", Choice(("torch.optim.AdamW", "torch.optim.SGD"))),
        ("choice('a, b', 'c (d)')", Choice(("a, b", "c (d)"))),
        ("choice(/data/a.jsonl, ./b.jsonl)", Choice(("/data/a.jsonl", "./b.jsonl"))),
        ("choice([q_proj, v_proj], [q_proj])", Choice((["q_proj", "v_proj"], ["q_proj"]))),
        ("choice(['a.b', 1], [])", Choice((["a.b", 1], []))),
        ("choice({a: 1, b: 'x y'}, {a: [2]})", Choice(({"a": 1, "b": "x y"}, {"a": [2]}))),
        ("sort(choice(3, 1))", Choice((1, 3))),
        ("interval(1e-5, 1e-3)", Interval(1e-5, 1e-3)),
        ("interval(-1, 1)", Interval(-1, 1)),
        ("tag(log, interval(1e-5, 1e-3))", Interval(1e-5, 1e-3, log=True)),
        ("int(interval(1, 128))", Interval(1, 128, integer=True)),
        ("tag(log, int(interval(1, 128)))", Interval(1, 128, log=True, integer=True)),
        ("int(tag(log, interval(1, 128)))", Interval(1, 128, log=True, integer=True)),
        ("tag(int, interval(1, 128))", Interval(1, 128, integer=True)),
        ("tag(log, int, interval(1, 128))", Interval(1, 128, log=True, integer=True)),
        ("range(1, 4)", Interval(1, 3, step=1, integer=True)),  # its end is left out
        ("range(4)", Interval(0, 3, step=1, integer=True)),
        ("range(0, 10, 3)", Interval(0, 9, step=3, integer=True)),
        ("range(0, 9, 3)", Interval(0, 6, step=3, integer=True)),
        ("range(0, 1, 0.25)", Interval(0, 0.75, step=0.25)),
        ("tag(log, range(1, 9))", Interval(1, 8, log=True, step=1, integer=True)),
        ("range(0, 1, 0.3)", Interval(0, 0.9, step=0.3)),
        ("range(0.1, 0.4, 0.1)", Interval(0.1, 0.3, step=0.1)),
        ("range(1e-4, 1e-3, 3e-4)", Interval(1e-4, 7e-4, step=3e-4)),
    ],
)
def test_every_form(text: str, domain: Domain) -> None:
    found = parse_domain("key", text)
    assert found == domain
    if isinstance(found, Choice):
        assert isinstance(domain, Choice)
        assert list(map(type, found.values)) == list(map(type, domain.values))


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("interval(1, 1)", ["interval(1, 1) is empty"]),
        ("interval(3, 1)", ["is empty"]),
        ("range(5, 1)", ["is empty"]),
        ("range(1, 2)", ["is empty"]),  # a single value
        ("range(5, 1, -1)", ["step above 0"]),
        ("range(1, 4, 0)", ["step above 0"]),
        ("range(0, inf)", ["finite ends"]),
        ("tag(int, interval(1.5, 3.5))", ["whole numbers only"]),
        ("interval(1)", ["cannot be read", "interval(low, high)"]),
        ("interval(-inf, 1)", ["finite ends"]),
        ("tag(log, interval(0, 1))", ["logarithmic scale", "above 0"]),
        ("tag(log, interval(-1, 1))", ["logarithmic scale", "above 0"]),
        ("tag(log, range(1, 9, 2))", ["logarithmic scale and a step"]),
        ("tag(loog, interval(1, 9))", ["tag loog is unknown", "log and int"]),
        ("choice(a, b, a)", ["holds a twice"]),
        ("choice(1, '1')", ["holds 1 twice"]),
        ("choice(a)", ["fewer than two values"]),
        ("choice()", ["cannot be read"]),
        ("choice(1, 2", ["cannot be read", "choice(a, b, …)"]),
        ("uniform(1, 2)", ["cannot be read", "Unknown function 'uniform'"]),
        ("5", ["does not vary", "recipe.overrides"]),
        (5, ["does not vary"]),
        (0.5, ["does not vary"]),
        (True, ["does not vary"]),
        ("adam", ["does not vary"]),
        ("", ["does not vary"]),
        ("[1, 2]", ["does not vary"]),
        (["a", "b"], ["does not vary"]),
        ("glob(*)", ["does not vary"]),
    ],
)
def test_every_mistake_is_named_with_its_key(text: Any, complaints: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space({"some": {"key": text}})
    message = str(caught.value)
    assert message.startswith("space.some.key")
    assert "\n" not in message
    for complaint in complaints:
        assert complaint in message


# --- spaces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        {"model.lora_rank": "choice(4, 8)", "model.lora_dropout": "interval(0, 0.1)"},
        {"model": {"lora_rank": "choice(4, 8)", "lora_dropout": "interval(0, 0.1)"}},
        {"model": {"lora_rank": "choice(4, 8)"}, "model.lora_dropout": "interval(0, 0.1)"},
    ],
    ids=["dotted", "nested", "both"],
)
def test_keys_may_be_dotted_or_nested(raw: dict[str, Any]) -> None:
    assert parse_space(raw).describe() == {"model.lora_rank": "choice(4, 8)", "model.lora_dropout": "interval(0, 0.1)"}


def test_null_removes_a_key() -> None:
    space = parse_space({"a": TWO, "b": None, "c": {"d": None, "e": TWO}})
    assert list(space.describe()) == ["a", "c.e"]


def test_plus_marks_a_key_that_the_configuration_lacks() -> None:
    space = parse_space({"+optimizer.momentum": TWO, "optimizer.lr": TWO})
    assert [(p.key, p.adds) for p in space] == [("optimizer.momentum", True), ("optimizer.lr", False)]


def test_plus_may_stand_in_a_nested_key() -> None:
    (parameter,) = parse_space({"optimizer": {"+momentum": TWO}})
    assert (parameter.key, parameter.adds) == ("optimizer.momentum", True)


@pytest.mark.parametrize(
    ("when", "conditions"),
    [
        ({"a": 1}, (("a", (1,)),)),
        ({"a": [1, 2]}, (("a", (1, 2)),)),
        ({"a": 1, "b.c": "torch.optim.SGD"}, (("a", (1,)), ("b.c", ("torch.optim.SGD",)))),
        ({"b": {"c": "torch.optim.SGD"}}, (("b.c", ("torch.optim.SGD",)),)),
        ({"new": 2}, (("new", (2,)),)),
        ({}, ()),
        (None, ()),
    ],
)
def test_conditions(when: Any, conditions: tuple[Any, ...]) -> None:
    raw = {"a": TWO, "b.c": "choice(torch.optim.AdamW, torch.optim.SGD)", "+new": TWO}
    parameter = parse_space({**raw, "x": {"value": "interval(0.0, 0.95)", "when": when}})["x"]
    assert parameter.when == conditions
    assert parameter.domain == Interval(0.0, 0.95)


def test_a_condition_may_stand_before_what_it_names() -> None:
    space = parse_space({"x": {"value": TWO, "when": {"a": 1}}, "a": TWO})
    assert list(space.describe()) == ["a", "x"]


@pytest.mark.parametrize(
    ("raw", "complaints"),
    [
        ({}, ["space is empty"]),
        ({"a": None}, ["space is empty"]),
        ({"a": TWO, "x": {"value": TWO, "when": {"y": 1}}}, ["space.x", "names y", "may name a"]),
        ({"a": TWO, "x": {"value": TWO, "when": {"a": 3}}}, ["space.x", "a=3 can never hold", "choice(1, 2)"]),
        ({"a": TWO, "x": {"value": TWO, "when": {"a": [1, 3]}}}, ["a=3 can never hold"]),
        ({"a": TWO, "x": {"value": TWO, "when": "a"}}, ["space.x.when=a", "must map"]),
        ({"a": TWO, "x": {"value": TWO, "wenn": {"a": 1}}}, ["space.x", "no key wenn", "value and when"]),
        ({"x": {"value": None}}, ["space.x=None", "does not vary"]),
        (
            {"x": {"value": TWO, "when": {"y": 1}}, "y": {"value": TWO, "when": {"x": 1}}},
            ["are circular", "x", "y"],
        ),
        ({"a": TWO, "x": {"when": {"a": 1}}}, ["space.x", "value"]),
    ],
)
def test_an_impossible_space_is_refused(raw: dict[str, Any], complaints: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space(raw)
    for complaint in complaints:
        assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ([{"a.b": 1}, {"a": {"b": 2}}], {"a.b": 2}),
        ([{"a": {"b": 1}, "a.b": 2}], {"a.b": 2}),
        ([{"+a.b": 1, "c": 3}, {"a.b": 2}], {"c": 3, "+a.b": 2}),
        ([{"a.+b": 1}], {"+a.b": 1}),
        ([{"a": {"b": 1, "c": 2}, "ab": 3}, {"a": None}], {"ab": 3, "a": None}),
        ([{"a": None}, {"a.b": 1}], {"a": None, "a.b": 1}),
        ([{"a": "x"}, {"a": {"when": {"b": 1}}}], {"a": {"value": "x", "when": {"b": 1}}}),
        ([{"a": {"value": "x", "when": {"b": 1}}}, {"a": {"value": "y"}}], {"a": {"value": "y", "when": {"b": 1}}}),
        ([{"a": {"value": "x", "when": {"b": 1}}}, {"a": "y"}], {"a": "y"}),
        ([{"a": None}, {"a": {"when": {}}}], {"a": {"when": {}}}),
        ([], {}),
    ],
)
def test_merged(layers: list[dict[str, Any]], found: dict[str, Any]) -> None:
    assert list(merged(*layers).items()) == list(found.items())


@pytest.mark.parametrize(
    ("raw", "flat"),
    [
        ({"a": {"b": {"c": 1}}, "d": 2}, {"a.b.c": 1, "d": 2}),
        ({"a.b": {"c": 1}}, {"a.b.c": 1}),
        ({"a": {"value": 1}}, {"a": {"value": 1}}),
        ({"a": {"when": {}}}, {"a": {"when": {}}}),
        ({"a": {"when": {}, "b": 1}}, {"a.b": 1}),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1}]}),
        ({"a": {}}, {}),
    ],
)
def test_flatten(raw: dict[str, Any], flat: dict[str, Any]) -> None:
    assert dict(flatten(raw)) == flat


@settings(deadline=None, max_examples=40)
@given(start=st.integers(-20, 20), width=st.integers(2, 20), step=st.sampled_from([1, 2, 3, 0.5, 0.25]), data=st.data())
def test_a_range_contains_what_pythons_own_would(start: int, width: int, step: float, data: st.DataObject) -> None:
    count = len(range(0, int(width * 4), int(step * 4)))  # quarters are exact
    if count < 2:
        return
    domain = parse_domain("key", f"range({start}, {start + width}, {step})")
    value = start + data.draw(st.integers(0, count + 2)) * step
    assert contains(domain, value) is (value < start + width)
