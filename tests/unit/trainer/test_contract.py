"""The messages between controller and workers: what is written is read back, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.contract import (
    SCHEMA_VERSION,
    ContractError,
    FailureKind,
    Guard,
    Metric,
    Outcome,
    OutcomeKind,
    Report,
    Step,
    StopCause,
    TrialSpec,
    decode,
    encode,
    from_plain,
)

FAST = settings(deadline=None, max_examples=40)

numbers = st.floats()  # NaN and the infinities included
counts = st.integers(0, 2**53)
words = st.text(max_size=12)
marks = st.sampled_from(["$float", "$$float", "$", "$$"])
plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | counts | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | marks, inner, max_size=3),
    max_leaves=6,
)
guards = st.builds(Guard, numbers, numbers)
metrics = st.builds(
    Metric,
    name=words,
    source=words,
    options=st.dictionaries(words | marks, plain, max_size=3),
    every=counts,
    at=st.lists(counts, max_size=3).map(tuple),
)
specs = st.builds(
    TrialSpec,
    sweep=words,
    trial=counts,
    attempt=counts,
    worker=words,
    config=st.dictionaries(words, plain, max_size=4),
    milestone_tokens=counts,
    checkpoint_every=counts,
    guard=guards,
    components=st.lists(words, max_size=3).map(tuple),
    metrics=st.lists(metrics, max_size=2).map(tuple),
    measure_base=st.booleans(),
)
steps = st.builds(Step, step=counts, tokens=counts, loss=numbers, grad_norm=numbers, lr=numbers)
reports = st.builds(
    Report,
    milestone=counts,
    step=counts,
    tokens=counts,
    epoch=counts,
    loss=numbers,
    grad_norm=numbers,
    lr=numbers,
    tokens_per_second=numbers,
    seconds=numbers,
    memory_gib=numbers,
    val_loss=st.none() | numbers,
    final=st.booleans(),
    scores=st.dictionaries(words, numbers, max_size=3),
    problems=st.dictionaries(words, words, max_size=3),
    base_scores=st.dictionaries(words, numbers, max_size=3),
)
outcomes = st.builds(
    Outcome,
    kind=st.sampled_from(OutcomeKind),
    reason=words,
    cause=st.none() | st.sampled_from(StopCause),
    failure=st.none() | st.sampled_from(FailureKind),
    step=counts,
    tokens=counts,
    seconds=numbers,
    resumed_from=st.none() | counts,
    adapter=st.none() | words,
    checkpoint=st.none() | words,
    steps_per_epoch=counts,
    leftover_batches=counts,
)
REPORT = Report(1, 5, 700, 0, 2.5, 0.4, 1e-3, 900.0, 0.8, val_loss=2.6)
MESSAGES = [Guard(), TrialSpec("s", 1, 1, "w0001", {"epochs": 1}, 100), Step(1, 70, 3.0, 1.0, 1e-3), REPORT]
MESSAGES += [Outcome(OutcomeKind.STOPPED, "enough", StopCause.PRUNED)]
KINDS = [type(message) for message in MESSAGES]


@FAST
@given(guards | specs | steps | reports | outcomes)
def test_decode_gives_back_what_encode_wrote(message: Any) -> None:
    line = encode(message)
    assert "\n" not in line
    json.loads(line, parse_constant=pytest.fail)  # no NaN or Infinity, which other readers of JSON refuse
    again = decode(type(message), line)
    assert_same(dataclasses.asdict(again), dataclasses.asdict(message))
    assert type(again) is type(message)


@pytest.mark.parametrize(
    ("message", "name"),
    [(REPORT, "seconds"), (REPORT, "memory_gib"), (Outcome(OutcomeKind.COMPLETED), "seconds")],
    ids=["Report.seconds", "Report.memory_gib", "Outcome.seconds"],
)
def test_every_float_field_takes_infinity(message: Any, name: str) -> None:
    again = decode(type(message), encode(dataclasses.replace(message, **{name: math.inf})))
    assert getattr(again, name) == math.inf


def test_the_configuration_of_a_spec_keeps_infinity() -> None:
    """`clip_grad_norm: .inf` is legal YAML, and what `sweep export --verify` sets."""
    config = {"clip_grad_norm": math.inf, "low": [-math.inf], "name": "inf", "path": {"$float": "inf", "$": 1}}
    config |= {"one": {"$float": "inf"}, "two": {"$$float": {"$float": math.inf}}}
    spec = TrialSpec("s", 1, 1, "w0001", config, 100)
    assert decode(TrialSpec, encode(spec)).config == config


@pytest.mark.parametrize(
    ("metric", "due"),
    [
        (Metric("m", "run"), [1, 2, 3, 4, 5]),
        (Metric("m", "run", every=2), [2, 4, 5]),
        (Metric("m", "run", every=2, at=(1, 4)), [1, 4, 5]),
        (Metric("m", "run", every=9), [5]),
    ],
)
def test_when_a_metric_is_measured(metric: Metric, due: list[int]) -> None:
    assert [milestone for milestone in range(1, 6) if metric.due(milestone, final=milestone == 5)] == due


@pytest.mark.parametrize(("name", "value"), [("loss", 2.5), ("val_loss", 2.6), ("f1", 0.5), ("seconds", math.nan)])
def test_the_value_of_a_report(name: str, value: float) -> None:
    report = dataclasses.replace(REPORT, scores={"f1": 0.5})
    assert math.isnan(value) == math.isnan(report.value(name))
    assert math.isnan(value) or report.value(name) == value
    assert math.isnan(dataclasses.replace(REPORT, val_loss=None).value("val_loss"))


def test_a_report_without_scores_has_the_keys_of_old_versions_alone() -> None:
    assert not {"scores", "problems", "base_scores"} & set(json.loads(encode(REPORT)))


def test_enums_and_nested_messages_come_back_as_themselves() -> None:
    outcome = decode(Outcome, encode(Outcome(OutcomeKind.FAILED, failure=FailureKind.NO_SPACE)))
    assert (type(outcome.kind), type(outcome.failure)) == (OutcomeKind, FailureKind)
    spec = decode(TrialSpec, encode(TrialSpec("s", 1, 1, "w", {}, 1, guard=Guard(3.0, math.inf), components=("my.",))))
    assert spec.guard == Guard(3.0, math.inf)
    assert spec.components == ("my.",)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_another_schema_version_is_refused(message: Any) -> None:
    raw = json.loads(encode(message))
    for version in (SCHEMA_VERSION + 1, SCHEMA_VERSION - 1, str(SCHEMA_VERSION), None):
        with pytest.raises(ContractError, match=rf"schema version {version}; this program reads {SCHEMA_VERSION}"):
            decode(type(message), json.dumps({**raw, "v": version}))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_unknown_keys_are_ignored(message: Any) -> None:
    raw = {**json.loads(encode(message)), "later": {"more": [1]}}
    assert decode(type(message), json.dumps(raw)) == message


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_a_missing_field_is_refused(kind: type[Any]) -> None:
    message = next(message for message in MESSAGES if type(message) is kind)
    raw = json.loads(encode(message))
    for field in dataclasses.fields(kind):
        less = json.dumps({key: value for key, value in raw.items() if key != field.name})
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            with pytest.raises(ContractError, match=field.name):
                decode(kind, less)
        else:  # what a later version adds has a default, so that older messages are still read
            assert isinstance(decode(kind, less), kind)


@pytest.mark.parametrize(
    ("kind", "change", "complaint"),
    [
        (Outcome, {"kind": "exploded"}, "exploded"),
        (Outcome, {"cause": "boredom"}, "boredom"),
        (Outcome, {"failure": "moon"}, "moon"),
        (Outcome, {"kind": ["failed"]}, "failed"),
        (Report, {"loss": "low"}, "low"),
        (Step, {"grad_norm": []}, "list"),
        (TrialSpec, {"guard": {"loss_ratio": "high"}}, "high"),
        (TrialSpec, {"components": 3}, "a number is no list"),
    ],
)
def test_a_value_that_a_field_cannot_take_is_refused(kind: type[Any], change: dict[str, Any], complaint: str) -> None:
    message = next(message for message in MESSAGES if type(message) is kind)
    with pytest.raises(ContractError, match=complaint):
        decode(kind, json.dumps({**json.loads(encode(message)), **change}))


def test_a_nested_message_that_is_no_mapping_is_refused() -> None:
    raw = {**json.loads(encode(MESSAGES[1])), "guard": 5}
    with pytest.raises(ContractError):
        decode(TrialSpec, json.dumps(raw))


def test_null_for_a_required_enum_is_refused() -> None:
    with pytest.raises(ContractError):
        decode(Outcome, json.dumps({**json.loads(encode(MESSAGES[-1])), "kind": None}))
    with pytest.raises(ContractError, match="null is no int"):
        decode(Step, json.dumps({**json.loads(encode(MESSAGES[2])), "tokens": None}))


@pytest.mark.parametrize("text", ["", "{", "null", "3", '"text"', "[]", "[1]", "{}", '{"kind": "failed"}', "\x00"])
def test_what_is_no_message_is_refused(text: str) -> None:
    with pytest.raises(ContractError, match="no Outcome"):
        decode(Outcome, text)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_torn_line_is_refused(message: Any) -> None:
    line = encode(message)
    for end in range(len(line)):
        with pytest.raises(ContractError):
            decode(type(message), line[:end])


def test_from_plain_reads_without_a_version() -> None:
    assert from_plain(Guard, {"loss_ratio": "inf", "other": 1}) == Guard(math.inf)


@pytest.mark.parametrize(
    ("cause", "resumable"),
    [
        (StopCause.PRUNED, False),
        (StopCause.CANCELLED, False),
        (StopCause.INTERRUPTED, True),
        (StopCause.PREEMPTED, True),
    ],
)
def test_which_stops_keep_a_trial_open(cause: StopCause, resumable: bool) -> None:
    assert cause.resumable is resumable


def assert_same(left: Any, right: Any) -> None:
    """Equal, and NaN where the other is NaN."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert_same(value, right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, float) and math.isnan(left):
        assert math.isnan(right)
    else:
        assert left == right
        assert type(left) is type(right)


@pytest.mark.parametrize(
    ("field", "value"),
    [("milestone", "3"), ("milestone", 3.0), ("milestone", True), ("final", 1), ("final", "no"), ("loss", "high")],
)
def test_a_field_of_the_wrong_type_makes_the_message_unreadable(field: str, value: object) -> None:
    raw = {**json.loads(encode(Report(3, 3, 30, 0, 2.5, 1.0, 1e-3, 1.0, 0.1))), field: value}
    with pytest.raises(ContractError, match="no Report"):
        decode(Report, json.dumps(raw))


def test_a_configuration_s_texts_may_be_numbers_but_a_reason_is_a_text() -> None:
    raw = {**json.loads(encode(Outcome(OutcomeKind.COMPLETED))), "reason": 7}
    with pytest.raises(ContractError, match="no Outcome"):
        decode(Outcome, json.dumps(raw))
