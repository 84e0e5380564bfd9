"""When a running trial reports, and when it counts as diverged."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.contract import Guard, Step
from trainer.progress import MAX_REFERENCE_STEPS, DivergenceGuard, MicroBatch, Milestones

FAST = settings(deadline=None, max_examples=40)
NAN, INF = math.nan, math.inf

batches_of_tokens = st.lists(st.integers(0, 60), min_size=1, max_size=40).filter(lambda tokens: sum(tokens) > 0)


def micro_batches(tokens: list[int], accumulation: int = 1) -> list[MicroBatch]:
    """A trial of micro-batches with so many label tokens each; the grad_norm of a step is its number."""
    made = []
    for index in range(len(tokens)):
        seen, position = sum(tokens[: index + 1]), index + 1
        number = position // accumulation
        step = Step(number, seen, 1.0, float(number), 1e-3) if position % accumulation == 0 else None
        made.append(MicroBatch(position, len(tokens), 0, seen, step))
    return made


def reports(milestones: Milestones, batches: list[MicroBatch]) -> list[tuple[int, int, float]]:
    """(milestone, tokens, mean grad_norm) of every report."""
    made = []
    for batch in batches:
        if milestones.add(batch):
            number, norm = milestones.take(batch.tokens)
            made.append((number, batch.tokens, norm))
    return made


def places(every: int, tokens: list[int], accumulation: int = 1) -> list[tuple[int, int]]:
    return [(number, at) for number, at, _ in reports(Milestones(every), micro_batches(tokens, accumulation))]


@pytest.mark.parametrize(
    ("every", "tokens", "expected"),
    [
        (100, [50] * 8, [(1, 100), (2, 200), (3, 300), (4, 400)]),
        (100, [30] * 10, [(1, 120), (2, 210), (3, 300)]),  # the first micro-batch at or after each milestone
        (100, [250, 250], [(2, 250), (5, 500)]),  # a micro-batch that passes several milestones is the last of them
        (100, [50] * 5, [(1, 100), (2, 200), (3, 250)]),  # just half an interval is left after 200
        (100, [20] * 12, [(1, 100), (2, 240)]),  # 200 lies closer than half an interval to 240
        (100, [10], [(1, 10)]),
        (100, [0, 0, 10], [(1, 10)]),
        (1, [5, 5], [(5, 5), (10, 10)]),
    ],
)
def test_where_reports_fall(every: int, tokens: list[int], expected: list[tuple[int, int]]) -> None:
    assert places(every, tokens) == expected


@FAST
@given(every=st.integers(1, 300), tokens=batches_of_tokens)
def test_reports_fall_at_equal_tokens_for_every_accumulation(every: int, tokens: list[int]) -> None:
    tokens = tokens * 4  # so that 1, 2 and 4 leave no micro-batch over
    assert places(every, tokens, 2) == places(every, tokens, 1)
    assert places(every, tokens, 4) == places(every, tokens, 1)


@FAST
@given(every=st.integers(1, 3000), tokens=batches_of_tokens, accumulation=st.integers(1, 5))
def test_the_last_report_and_no_other_lies_at_the_end(every: int, tokens: list[int], accumulation: int) -> None:
    batches = micro_batches(tokens, accumulation)
    milestones = Milestones(every)
    due = []
    for batch in batches:
        if milestones.add(batch):
            due.append(batch.position)
            milestones.take(batch.tokens)
    assert due[-1] == len(tokens)
    assert due.count(len(tokens)) == 1


@FAST
@given(every=st.integers(1, 3000), tokens=batches_of_tokens)
def test_milestones_ascend_and_are_no_further_than_the_data(every: int, tokens: list[int]) -> None:
    found = places(every, tokens)
    numbers = [number for number, _ in found]
    assert numbers == sorted(set(numbers))
    for number, at in found[:-1]:
        assert number == at // every  # so that equal numbers of different trials lie at equal tokens
    assert found[-1][0] >= sum(tokens) // every


@FAST
@given(every=st.integers(1, 3000), size=st.integers(1, 60), count=st.integers(1, 60))
def test_no_milestone_is_closer_than_half_an_interval_to_the_end(every: int, size: int, count: int) -> None:
    *earlier, end = [at for _, at in places(every, [size] * count)]
    assert end == size * count
    assert all(end - at >= every / 2 for at in earlier)


def test_grad_norm_is_the_mean_since_the_last_report_and_nan_without_a_step() -> None:
    batches = micro_batches([50] * 8, accumulation=4)
    found = reports(Milestones(100), batches)
    assert [number for number, _, _ in found] == [1, 2, 3, 4]
    assert math.isnan(found[0][2])
    assert found[1][2] == 1.0
    assert math.isnan(found[2][2])
    assert found[3][2] == 2.0
    assert [norm for _, _, norm in reports(Milestones(200), micro_batches([50] * 8))] == [2.5, 6.5]


@FAST
@given(every=st.integers(1, 300), tokens=batches_of_tokens, accumulation=st.integers(1, 3), data=st.data())
def test_a_restored_trial_reports_as_an_undisturbed_one(
    every: int, tokens: list[int], accumulation: int, data: st.DataObject
) -> None:
    batches = micro_batches(tokens, accumulation)
    cut = data.draw(st.integers(0, len(batches)))
    milestones = Milestones(every)
    found = reports(milestones, batches[:cut])
    kept = json.loads(json.dumps(milestones.state()))
    milestones.add(batches[0])  # what the dead attempt does later is none of the new one's business
    restored = Milestones(every)
    restored.restore(kept)
    found += reports(restored, batches[cut:])
    assert repr(found) == repr(reports(Milestones(every), batches))  # repr: NaN is equal to NaN


# --- divergence ---------------------------------------------------------------------------------------------------


def guard(losses: list[float], norms: list[float], rules: Guard | None = None) -> list[str | None]:
    """What a guard says after each step."""
    watch = DivergenceGuard(rules or Guard())
    numbered = enumerate(zip(losses, norms, strict=True), start=1)
    return [watch.after_step(Step(step, 0, loss, norm, 1e-3)) for step, (loss, norm) in numbered]


CALM = [1.0] * MAX_REFERENCE_STEPS


@pytest.mark.parametrize(
    ("losses", "norms", "rules", "complaint"),
    [
        ([3.0, 2.5], [1.0, 1.0], Guard(), None),
        ([3.0, 3000.0], [1.0, 1.0], Guard(), None),  # one step's loss is noise: milestones judge it
        ([NAN], [1.0], Guard(), "loss is nan at step 1"),
        ([3.0, INF], [1.0, 1.0], Guard(), "loss is inf at step 2"),
        ([3.0, -INF], [1.0, 1.0], Guard(), "loss is -inf at step 2"),
        ([3.0, 3.0], [1.0, INF], Guard(), "grad_norm is inf at step 2"),
        ([3.0], [NAN], Guard(), "grad_norm is nan at step 1"),
        ([NAN], [1.0], Guard(INF, INF), "loss is nan at step 1"),  # no number switches this rule off
        ([3.0] * 6, [*CALM, 1000.0], Guard(), None),  # just at the ratio
        ([3.0] * 6, [*CALM, 1001.0], Guard(), "grad_norm 1e+03 at step 6 is over 1000 times its usual 1"),
        ([3.0] * 6, [*CALM, 12.0], Guard(2.0, 10.0), "grad_norm 12 at step 6 is over 10 times its usual 1"),
        ([3.0] * 6, [*CALM, 1e30], Guard(2.0, INF), None),
        ([3.0] * 2, [1.0, 1e9], Guard(), None),  # two steps make a usual one
        ([3.0] * 3, [1.0, 1.0, 1001.0], Guard(), "grad_norm 1e+03 at step 3 is over 1000 times its usual 1"),
        ([3.0] * 6, [1.0, 1e9, 1.0, 1.0, 1.0, 999.0], Guard(), None),
        ([3.0] * 6, [*[0.0] * 5, 1e9], Guard(), None),  # LoRA's B starts at zero: no ratio to nothing
    ],
)
def test_after_step(losses: list[float], norms: list[float], rules: Guard, complaint: str | None) -> None:
    said = guard(losses, norms, rules)
    assert said == [None] * (len(losses) - 1) + [complaint]


def test_usual_is_the_median_of_the_first_steps_only() -> None:
    said = guard([3.0] * 8, [2.0, 1.0, 50.0, 4.0, 3.0, 2000.0, 2000.0, 3001.0])
    assert [text is None for text in said] == [True] * 7 + [False]


@pytest.mark.parametrize(
    ("first", "loss", "val_loss", "rules", "complaint"),
    [
        (3.0, 2.0, None, Guard(), None),
        (3.0, 6.0, 9.0, Guard(), None),  # just at the ratio; validation has a start of its own
        (3.0, 6.5, 2.0, Guard(), "loss 6.5 is over 2 times its start of 3"),
        (3.0, 4.0, None, Guard(loss_ratio=1.2), "loss 4 is over 1.2 times its start of 3"),
        (3.0, 1e9, None, Guard(loss_ratio=INF), None),
        (3.0, 2.0, NAN, Guard(), "val_loss is nan"),
        (3.0, 2.0, INF, Guard(INF, INF), "val_loss is inf"),
        (None, 1e9, None, Guard(), None),  # a milestone before the first optimizer step
        (None, 1e9, NAN, Guard(), "val_loss is nan"),
    ],
)
def test_at_milestone(
    first: float | None, loss: float, val_loss: float | None, rules: Guard, complaint: str | None
) -> None:
    watch = DivergenceGuard(rules)
    if first is not None:
        assert watch.after_step(Step(1, 10, first, 1.0, 1e-3)) is None
    assert watch.at_milestone(loss, val_loss) == complaint


@pytest.mark.parametrize("loss", [NAN, INF])
def test_a_milestone_with_a_loss_that_is_no_number_has_diverged(loss: float) -> None:
    watch = DivergenceGuard(Guard())
    watch.after_step(Step(1, 10, 3.0, 1.0, 1e-3))
    assert "loss" in (watch.at_milestone(loss, None) or "")


@FAST
@given(
    numbers=st.lists(st.tuples(st.floats(0.1, 9.0), st.floats(0.0, 40.0)), min_size=1, max_size=20),
    data=st.data(),
)
def test_a_restored_guard_says_what_an_undisturbed_one_does(
    numbers: list[tuple[float, float]], data: st.DataObject
) -> None:
    rules = Guard(loss_ratio=1.5, grad_norm_ratio=3.0)
    steps = [Step(index + 1, 0, loss, norm, 1e-3) for index, (loss, norm) in enumerate(numbers)]

    def judged(watch: DivergenceGuard, some: list[Step]) -> list[Any]:
        return [(watch.after_step(step), watch.at_milestone(step.loss, None)) for step in some]

    cut = data.draw(st.integers(0, len(steps)))
    before = DivergenceGuard(rules)
    said = judged(before, steps[:cut])
    kept = json.loads(json.dumps(before.state()))
    judged(before, steps[cut:])
    after = DivergenceGuard(rules)
    after.restore(kept)
    assert said + judged(after, steps[cut:]) == judged(DivergenceGuard(rules), steps)
