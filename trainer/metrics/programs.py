"""The metrics that a program gives: the user's own, or lm-eval, run on the adapter of a milestone.

Invariant: the adapter, and what else the program is given, lie in a scratch directory, which is deleted afterwards.
What the program printed last stays. The trial's model is not changed, and stays in memory beside the program.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress

import torch

from trainer.base import Cache
from trainer.contract import Evaluation, Metric, StopSignal, TrialSpec
from trainer.environment import reveal
from trainer.evaluation.evaluate import NO_LM_EVAL, EvaluationRun
from trainer.evaluation.external import EvaluationError
from trainer.metrics.errors import MeasurementError, MetricError
from trainer.recipe import LoraRecipe
from trainer.room import AttemptDir
from trainer.shortening import short_list


def program_value(
    metric: Metric, recipe: LoraRecipe, spec: TrialSpec, files: AttemptDir, cache: Cache, should_stop: StopSignal
) -> float:
    """Run the program of a metric on the trial's present adapter; returns the number that it gives.

    Raises:
        MeasurementError: it failed, or took too long. MetricError: it gave no such number.
        StoppedError: the trial was asked to stop. ValueError: lm-eval is not installed.
    """
    place = AttemptDir(files.path / "scratch" / "program")
    scratch = place.path / "scratch"
    options = dict(metric.options)
    if isinstance(options.get("command"), str):
        options["command"] = shlex.split(options["command"])
    evaluation = Evaluation(metric.source, options, adapter=str(scratch / "adapter"))
    run = EvaluationRun(spec, evaluation, place, cache, should_stop, recipe=recipe, key=f"metric.{metric.name}")
    try:
        (scratch / "out").mkdir(parents=True, exist_ok=True)
        recipe.save_adapter(scratch / "adapter")
        if recipe.device.type == "cuda":
            torch.cuda.empty_cache()  # the program gets what torch keeps
        scores = run.scores()
    except EvaluationError as error:
        raise MeasurementError(str(error)) from error
    finally:
        with suppress(FileNotFoundError):
            files.metric_log(metric.name).parent.mkdir(exist_ok=True)
            (place.path / "evaluation.log").replace(files.metric_log(metric.name))
        shutil.rmtree(place.path, ignore_errors=True)
    return choose_score(scores, str(options.get("score") or metric.name), f"metric.{metric.name}")


def check_program(metric: Metric) -> None:
    """Refuse a metric whose program this machine does not have.

    Raises:
        MetricError: with the key and the program.
    """
    key = f"metric.{metric.name}"
    if metric.source == "lm_eval":
        if importlib.util.find_spec("lm_eval") is None:
            raise MetricError(NO_LM_EVAL.format(key))
        return
    command = metric.options["command"]
    program = str(reveal(shlex.split(command) if isinstance(command, str) else list(command))[0])
    if "{" not in program and shutil.which(program) is None:
        raise MetricError(f"{key}.command={program} is no program on this machine; install it, or give its whole path")


def choose_score(scores: Mapping[str, float], name: str, key: str) -> float:
    """The number of this name, or the only one whose name ends with it.

    Args:
        scores: by name, in which parts are joined by `/`.
        key: of the metric in the configuration, for error texts.

    Raises:
        MetricError: there is none, or there are several.
    """
    if name in scores:
        return scores[name]
    alike = [score for score in scores if score.endswith(f"/{name}")]
    if len(alike) == 1:
        return scores[alike[0]]
    given = f"several: {short_list(alike, ', ')}" if alike else f"none, only {short_list(sorted(scores), ', ')}"
    raise MetricError(f"{key}.score={name} must name one of the program's numbers, which has {given}")
