"""Hooks of `wandb.hook`, as a user would write them."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.contract import Step


def doubled(step: Step) -> Mapping[str, float]:
    return {"doubled": step.step * 2}


def failing_at_two(step: Step) -> Mapping[str, float]:
    if step.step == 2:
        raise ValueError("two")
    return {"extra": step.step}
