"""The metrics of a composition: each name gets the file of the group `metric`, and what is given is laid over it.

Invariants: nothing is written, and no code of the user's is imported. What can be known of a metric before a trial runs
is checked here; what depends on the model is the trial's to say.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sweep.config.executables import check_executable
from sweep.config.metrics import (
    SCORES,
    Command,
    Generate,
    LmEval,
    Logged,
    MetricSection,
    Validation,
    check_metric_name,
    constraints_of,
    directions_of,
    dotted_path,
    frozen_metric,
    is_trusted,
    metric_of,
    user_function,
)
from sweep.config.overrides import section_of
from sweep.config.resolvers import environment_stays
from sweep.config.settings import Settings, read_metrics
from sweep.config.torchtune import check_trusted
from sweep.config.yaml_files import load_yaml
from sweep.errors import ConfigError
from sweep.evaluation import jobs
from sweep.resources import conf_dir
from trainer.contract import LOSSES
from trainer.shortening import short_text

GROUP = "metric"
LONGEST_LINE = 10_000_000
# Scores that judge an answer by itself.
WITHOUT_REFERENCE = ("regex", "json_valid")


def metric_names(config_dir: Path | None = None) -> list[str]:
    """The names of the group's files, a person's own among them."""
    places = filter(None, (config_dir, conf_dir()))
    return sorted({path.stem for place in places for path in (place / GROUP).glob("*.yaml")})


def compose_metrics(cfg: DictConfig, config_dir: Path | None) -> dict[str, MetricSection]:
    """The definitions of all metrics that a composition names, in the order in which it names them.

    Raises:
        ConfigError: a name without a definition, a file that is none, or what a definition refuses.
    """
    objective = section_of(cfg, "objective", resolve=False)
    asked = [*_mapping(objective, "metrics"), *_mapping(objective, "constraints")]
    given = section_of(cfg, GROUP, resolve=False)
    names = list(dict.fromkeys([*asked, *given]))
    for name in names:
        check_metric_name(name, f"objective.metrics or {GROUP}")
    composed = copy.deepcopy(cfg)
    for name in names:
        if (name in LOSSES and name not in given) or name == "auto":
            continue
        _lay_over_its_file(composed, name, given.get(name), config_dir)
    with environment_stays():
        raw = section_of(composed, GROUP)
    return {name: frozen_metric(name, section) for name, section in read_metrics(raw).items()}


def check_metrics(settings: Settings) -> None:
    """Refuse metrics that this sweep cannot measure, as far as that can be known before a trial runs.

    Raises:
        ConfigError: with the key, its value and what is allowed.
    """
    directions, constraints = directions_of(settings.objective.metrics), constraints_of(settings.objective.constraints)
    if directions and settings.objective.metric != "auto":
        raise ConfigError(
            f"objective.metric={settings.objective.metric} is not allowed beside objective.metrics; leave it at auto, "
            f"or add objective.metrics.{settings.objective.metric}.direction=minimize instead"
        )
    if len(directions) > 1:
        raise ConfigError(
            f"objective.metrics has {len(directions)} metrics ({', '.join(directions)}), and this version searches for "
            "one; keep one there, and let metric.NAME measure the others"
        )
    for name in LOSSES:
        if name in settings.metrics:
            raise ConfigError(f"metric.{name} needs no definition: each report has it; define another name")
    known = {*settings.metrics, *LOSSES}
    for where, names in (("metrics", list(directions)), ("constraints", [c.metric for c in constraints])):
        if unknown := [name for name in names if name not in known]:
            raise _undefined(f"objective.{where}.{unknown[0]}", unknown[0], metric_names())
    for name, section in settings.metrics.items():
        _check_times(settings, name, section)
        _check_source(settings, name, section)


def _lay_over_its_file(cfg: DictConfig, name: str, given: Any, config_dir: Path | None) -> None:
    """Put a metric's definition into a composition: its file, and over that what was given."""
    path = next((p for d in (config_dir, conf_dir()) if d and os.path.isfile(p := d / GROUP / f"{name}.yaml")), None)  # noqa: PTH113
    if path is None and not (isinstance(given, Mapping) and given.get("source") is not None):
        raise _undefined(f"{GROUP}.{name}" if given else f"objective.metrics.{name}", name, metric_names(config_dir))
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(
            f"{GROUP}.{name}={short_text(str(given))} is no definition; name its keys: {GROUP}.{name}.KEY=VALUE"
        )
    file = OmegaConf.create({}) if path is None else load_yaml(path)
    if not isinstance(file, DictConfig) or "defaults" in file:
        raise ConfigError(f"{path} is no metric; it must map keys to values, source first, without a list of defaults")
    if isinstance(given, Mapping) and given.get("source") not in (None, file.get("source")):
        file = OmegaConf.create({})  # another source has other keys
    OmegaConf.update(cfg, f"{GROUP}.{name}", OmegaConf.merge(file, given or {}), merge=False, force_add=True)


def _mapping(objective: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A mapping of the section `objective`; empty if it is absent."""
    value = objective.get(key) or {}
    if not isinstance(value, Mapping):
        example = "{exact_match: {direction: maximize}}" if key == "metrics" else "{peak_memory_gib: '<= 20'}"
        raise ConfigError(f"objective.{key}={short_text(str(value))} must map names of metrics, such as {example}")
    return value


def _undefined(where: str, name: str, known: list[str]) -> ConfigError:
    names = [*LOSSES, *known]
    close = get_close_matches(name, names, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return ConfigError(
        f"{where}: there is no metric {short_text(name)}{meant}; it must be one of {', '.join(names)}, or have a "
        f"definition of its own, which begins with {GROUP}.{name}.source"
    )


def _check_times(settings: Settings, name: str, section: MetricSection) -> None:
    """Refuse milestones that no trial reaches."""
    milestones = settings.objective.milestones
    if settings.objective.milestone_tokens is not None:
        return
    if late := [at for at in section.at if at > milestones]:
        raise ConfigError(
            f"metric.{name}.at={section.at} names milestone {late[0]}; a trial has objective.milestones={milestones}"
        )


def _check_source(settings: Settings, name: str, section: MetricSection) -> None:
    where = f"metric.{name}"
    match section:
        case Validation(measure=measure) if not settings.torchtune.get("dataset_val"):
            raise ConfigError(f"{where}.measure={measure} needs validation data: add +dataset_val to recipe.overrides")
        case Generate():
            _check_generate(settings, where, name, section)
        case Command(command=words):
            if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
                raise ConfigError(
                    f"{where}.command={short_text(str(words))} is no command; write its words, e.g. "
                    "[python, score.py, --adapter, '{adapter}', --to, '{output}']"
                )
            jobs.check_placeholders(f"{where}.command", words)
            check_executable(f"{where}.command", shlex.join(words[:1]))
        case LmEval(tasks=[]):
            raise ConfigError(f"{where}.tasks is empty; name tasks of lm-eval, such as {where}.tasks=[gsm8k]")
        case LmEval():
            jobs.check_lm_eval_installed(settings, f"{where}.source=lm_eval", "choose another metric")
        case Logged() if not settings.wandb.hook:
            raise ConfigError(
                f"{where}.source=logged needs a function that returns the number: set wandb.hook to its dotted path"
            )


def _check_generate(settings: Settings, where: str, name: str, section: Generate) -> None:
    function = user_function(section)
    if function is not None and not is_trusted(function, settings.recipe.components):
        raise ConfigError(
            f"{where}.score={section.score} is code of your own; add {dotted_path(function).rpartition('.')[0]} to "
            "recipe.components if you trust it"
        )
    if section.score == "regex" and section.pattern is None:
        raise ConfigError(f"{where}.pattern is not set, which score=regex needs; set it to a regular expression")
    if section.data is None:
        if not settings.torchtune.get("dataset_val"):
            raise ConfigError(
                f"{where} needs prompts with references: set {where}.data to a JSON-lines file, or add +dataset_val to "
                "recipe.overrides"
            )
        return
    if isinstance(section.data, dict):
        if "_component_" not in section.data:
            raise ConfigError(
                f"{where}.data={short_text(str(section.data))} is no data set; it must have a _component_"
            )
        check_trusted({GROUP: {name: section.data}}, settings.recipe.components)
        return
    if not isinstance(section.data, str):
        raise ConfigError(
            f"{where}.data={short_text(str(section.data))} must be the path of a JSON-lines file, or a data set"
        )
    options = metric_of(name, section, settings.directory).options
    path = Path(str(options["data"]))
    if "://" in section.data or "${" in section.data:
        return
    if not os.path.isfile(path):  # noqa: PTH113 - that of pathlib raises for a name that no file can have
        if settings.queue.on_this_machine and not settings.queue.simulated:
            raise ConfigError(f"{where}.data={section.data} is no file; name a JSON-lines file ({path} does not exist)")
        return
    _check_rows(where, path, section)


def _check_rows(where: str, path: Path, section: Generate) -> None:
    """Refuse a file whose first rows have no prompt, or no reference where the score compares with one.

    Raises:
        ConfigError: with the line, and the keys that it has.
    """
    needs_reference = section.score in SCORES and section.score not in WITHOUT_REFERENCE
    keys = {"prompt": section.prompt, **({"reference": section.reference} if needs_reference else {})}
    count = 0
    for number, line in islice(_lines(where, path), section.rows):
        count += 1
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ConfigError(f"{where}.data={path}, line {number} is no JSON object; each line must be one")
        for field, key in keys.items():
            if not isinstance(row.get(key), str | int | float | list):
                raise ConfigError(
                    f"{where}.data={path}, line {number} has no {field} under {key!r}; it has "
                    f"{short_text(', '.join(map(str, row)) or 'no keys')}: set {where}.{field} to the key"
                )
    if not count:
        raise ConfigError(f"{where}.data={path} has no rows; it must be a JSON-lines file with prompts")


def _lines(where: str, path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers from 1."""
    try:
        with path.open(encoding="utf-8") as file:
            number = 0
            while line := file.readline(LONGEST_LINE):
                number += 1
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        reason = str(error.strerror or error).lower() if isinstance(error, OSError) else "it is no UTF-8"
        raise ConfigError(f"{where}.data={path} cannot be read: {reason}") from error
