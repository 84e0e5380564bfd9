"""The search space: what it refuses, in which order its parameters come, and what it contains."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.config import space as module
from sweep.config.space import Choice, Domain, Interval, Parameter, Space, contains, label
from sweep.errors import ConfigError

FAST = settings(deadline=None, max_examples=50)
RANK = Parameter("rank", Choice((4, 8)))
RATE = Parameter("rate", Interval(1e-5, 1e-3, log=True))
KIND = Parameter("kind", Choice(("adam", "sgd")))


def when(key: str, *conditions: tuple[str, Any]) -> Parameter:
    """A parameter over 1 and 2 with conditions."""
    return Parameter(key, Choice((1, 2)), tuple((other, (value,)) for other, value in conditions))


# --- domains ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ((), "fewer than two values"),
        ((4,), r"choice\(4\) has fewer than two values"),
        ((4, 8, 4), "holds 4 twice"),
        (("a", "a"), "holds a twice"),
        (([1], [1]), r"holds \[1\] twice"),
        (({"a": 1}, {"a": 1}), r'holds {"a": 1} twice'),
        ((1, "1"), "holds 1 twice"),  # their texts would not tell them apart in a study
        ((1, 1.0), "twice"),
        ((1, True), "twice"),
    ],
)
def test_a_choice_needs_two_different_values(values: tuple[Any, ...], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Choice(values)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Interval(1, 1), r"interval\(1, 1\) is empty"),
        (lambda: Interval(2, 1), "low end must be below its high end"),
        (lambda: Interval(2, 1, integer=True), r"int\(interval\(2, 1\)\) is empty"),
        (lambda: Interval(0, 1, log=True), "low end must be above 0"),
        (lambda: Interval(-1, 1, log=True), "logarithmic"),
        (lambda: Interval(-math.inf, 1), "finite ends"),
        (lambda: Interval(0, math.inf), "finite ends"),
        (lambda: Interval(math.nan, 1), "finite ends"),
        (lambda: Interval(1, 9, log=True, step=2), "both a logarithmic scale and a step"),
        (lambda: Interval(1, 9, step=0), "step above 0"),
        (lambda: Interval(1, 9, step=-1), "step above 0"),
        (lambda: Interval(1.5, 3.5, integer=True), r"int\(interval\(1.5, 3.5\)\) holds whole numbers only"),
        (lambda: Interval(1, 3.5, integer=True), "ends and its step must be whole"),
        (lambda: Interval(1, 4, step=0.5, integer=True), "ends and its step must be whole"),
    ],
)
def test_an_impossible_interval_is_refused(make: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make()


@pytest.mark.parametrize(
    ("domain", "text"),
    [
        (Choice((4, "a.b", [1, "x"], None, True)), 'choice(4, a.b, [1, "x"], null, true)'),
        (Interval(0, 0.5), "interval(0, 0.5)"),
        (Interval(1e-5, 1e-3, log=True), "tag(log, interval(1e-05, 0.001))"),
        (Interval(1, 64, integer=True), "int(interval(1, 64))"),
        (Interval(1, 64, log=True, integer=True), "tag(log, int(interval(1, 64)))"),
        (Interval(0, 1, step=0.25), "interval(0, 1, step=0.25)"),
    ],
)
def test_domains_read_like_the_grammar(domain: Domain, text: str) -> None:
    assert str(domain) == text


@pytest.mark.parametrize(
    ("domain", "value", "inside"),
    [
        (Choice((4, 8)), 4, True),
        (Choice((4, 8)), 5, False),
        (Choice((True, False)), 1, False),
        (Choice(([1], [1, 2])), [1, 2], True),
        (Choice(([1], [1, 2])), [2, 1], False),
        (Interval(0, 1), 0, True),  # both ends are included
        (Interval(0, 1), 1.0, True),
        (Interval(0, 1), 1.0000001, False),
        (Interval(0, 1), math.nan, False),
        (Interval(0, 2), True, False),  # a truth value is no number here
        (Interval(0, 2), "1", False),
        (Interval(0, 2), None, False),
        (Interval(1, 9, integer=True), 2, True),
        (Interval(1, 9, integer=True), 2.0, True),
        (Interval(1, 9, integer=True), 2.5, False),
        (Interval(1, 9, step=2, integer=True), 7, True),
        (Interval(1, 9, step=2, integer=True), 8, False),
        (Interval(0, 1, step=0.1), 0.3, True),  # 0.1 + 0.1 + 0.1 is a little more
        (Interval(0, 1, step=0.1), 0.1 + 0.2, True),
        (Interval(0, 1, step=0.1), 0.35, False),
        (Choice((1, 2)), "1", False),
    ],
)
def test_contains(domain: Domain, value: Any, inside: bool) -> None:
    assert contains(domain, value) is inside


plain = st.integers(-50, 50) | st.text(max_size=5) | st.booleans() | st.lists(st.integers(0, 3), max_size=3)
choices = (
    st.lists(plain, min_size=2, max_size=5, unique_by=label)
    .filter(lambda values: all(one != other for one, other in combinations(values, 2)))
    .map(lambda values: Choice(tuple(values)))
)
numbers = st.floats(-1e6, 1e6)


@FAST
@given(domain=choices, other=plain, data=st.data())
def test_a_choice_contains_its_values_and_nothing_else(domain: Choice, other: Any, data: st.DataObject) -> None:
    assert contains(domain, data.draw(st.sampled_from(domain.values)))
    assert contains(domain, other) is ((type(other), other) in [(type(value), value) for value in domain.values])


@FAST
@given(ends=st.lists(numbers, min_size=2, max_size=2, unique=True).map(sorted), share=st.floats(0, 1), out=numbers)
def test_an_interval_contains_what_lies_between_its_ends(ends: list[float], share: float, out: float) -> None:
    low, high = ends
    domain = Interval(low, high)
    assert contains(domain, min(high, low + share * (high - low)))
    assert contains(domain, out) is (low <= out <= high)
    assert not contains(domain, math.nextafter(low, -math.inf))
    assert not contains(domain, math.nextafter(high, math.inf))


@FAST
@given(
    low=st.integers(-100, 100),
    count=st.integers(1, 30),
    step=st.sampled_from([1, 2, 5, 0.1, 0.25, 1e-3]),
    data=st.data(),
)
def test_a_stepped_interval_contains_its_grid_only(low: int, count: int, step: float, data: st.DataObject) -> None:
    domain = Interval(low, low + count * step, step=step)
    index = data.draw(st.integers(0, count))
    assert contains(domain, low + index * step)
    assert not contains(domain, low + (index + 0.5) * step)


@FAST
@given(low=st.integers(1, 50), width=st.integers(1, 50), log=st.booleans(), value=st.integers(-20, 120))
def test_an_integer_interval_contains_whole_numbers_only(low: int, width: int, log: bool, value: int) -> None:
    domain = Interval(low, low + width, log=log, integer=True)
    assert contains(domain, value) is (low <= value <= low + width)
    assert not contains(domain, value + 0.5)


# --- spaces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ((), "space is empty"),
        ((RANK, when("a", ("nothing", 1))), r"space.a: its condition names nothing.* may name rank"),
        ((RANK, when("a", ("rank", 5))), r"its condition rank=5 can never hold; rank is choice\(4, 8\)"),
        ((RATE, when("a", ("rate", 1.0))), r"rate=1.0 can never hold"),
        ((when("a", ("b", 1)), when("b", ("a", 1))), "are circular: (a -> b -> a|b -> a -> b)"),
        ((when("a", ("a", 1)),), "are circular"),
        ((when("a", ("b", 1)), when("b", ("c", 1)), when("c", ("a", 1))), "are circular: .* -> .* -> "),
        ((RANK, Parameter("rank", Choice((1, 2)), adds=True)), "rank"),
        ((RANK, Parameter("a", Choice((1, 2)), (("rank", ()),))), "can never hold"),
        ((RANK, when("a", ("rank", "4"))), "can never hold"),
    ],
)
def test_an_impossible_space_is_refused(parameters: tuple[Parameter, ...], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Space(parameters)


def keys(space: Space) -> list[str]:
    return [parameter.key for parameter in space]


def test_parameters_keep_their_order_where_conditions_allow() -> None:
    assert keys(Space((RATE, RANK, KIND))) == ["rate", "rank", "kind"]
    assert keys(Space((KIND, RANK, when("a", ("kind", "sgd"))))) == ["kind", "rank", "a"]


@FAST
@given(data=st.data(), count=st.integers(2, 7))
def test_every_parameter_comes_after_those_that_its_conditions_name(data: st.DataObject, count: int) -> None:
    made = [
        when(str(index), *[(str(other), 1) for other in data.draw(st.sets(st.integers(0, index - 1), max_size=3))])
        if index
        else when("0")
        for index in range(count)
    ]
    space = Space(tuple(data.draw(st.permutations(made))))
    order = keys(space)
    assert sorted(order) == sorted(str(index) for index in range(count))
    for parameter in space:
        assert all(order.index(other) < order.index(parameter.key) for other, _ in parameter.when)


@pytest.mark.parametrize(
    ("params", "there"),
    [
        ({"kind": "sgd", "rank": 8}, True),
        ({"kind": "adam", "rank": 8}, False),
        ({"kind": "sgd", "rank": 4}, False),  # all conditions must hold
        ({"kind": "sgd"}, False),  # a parameter that is not there itself
        ({}, False),
    ],
)
def test_exists(params: dict[str, Any], there: bool) -> None:
    assert when("momentum", ("kind", "sgd"), ("rank", 8)).exists(params) is there
    assert RANK.exists(params)


def test_a_space_is_looked_up_by_key() -> None:
    space = Space((RANK, RATE))
    assert len(space) == 2
    assert space["rate"] is RATE
    assert "rank" in space
    assert "other" not in space


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({}, None),
        ({"rank": 8}, None),
        ({"rank": 8, "rate": 1e-4}, None),
        ({"rank": 5}, r"here: rank=5 is outside choice\(4, 8\)"),
        ({"rate": 1}, r"here: rate=1 is outside tag\(log"),
        ({"alpha": 1}, "here: alpha is not in the space; its keys are rank, rate"),
    ],
)
def test_check(params: dict[str, Any], complaint: str | None) -> None:
    space = Space((RANK, RATE))
    if complaint is None:
        space.check(params, "here")
        return
    with pytest.raises(ConfigError, match=complaint):
        space.check(params, "here")


def test_thousands_of_values_are_looked_at_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def counted(value: Any) -> str:
        asked.append(value)
        return label(value)

    monkeypatch.setattr(module, "label", counted)
    choice = Choice(tuple(range(1500)))
    assert len(asked) == 1500
    assert contains(choice, 1499)
    assert len(asked) == 1501


def test_a_long_domain_is_shortened_in_an_error() -> None:
    files = Space((Parameter("data_files", Choice(tuple(f"file{at}.jsonl" for at in range(2000)))),))
    with pytest.raises(ConfigError) as refused:
        files.check({"data_files": "x" * 5000}, "warm_start.enqueue[0]")
    assert len(str(refused.value)) < 800
    assert "file0.jsonl" in str(refused.value)


def test_describe_tells_conditions_apart() -> None:
    texts = Space((KIND, when("a", ("kind", "sgd")), when("b", ("kind", "adam")))).describe()
    assert list(texts) == ["kind", "a", "b"]
    assert texts["a"] == "choice(1, 2) when kind in ['sgd']"
    assert texts["b"] != texts["a"]
