"""What may follow on a command line: sweeps, trials, groups with their choices, and configuration keys.

Invariants: nothing but the names of files, the typed sections and at most one small YAML file is read, so that an
answer takes a fraction of a second; neither Hydra, OmegaConf nor torch is imported. Nothing is validated.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
# Values of a setting, if they are few.
CHOICES: Mapping[str, Sequence[str]] = {
    "controller": ("here", "launch"),
    "objective.metric": ("auto", "val_loss", "loss"),
    "wandb.mode": ("online", "offline", "disabled"),
    "wandb.artifacts": ("end", "milestones", "none"),
    "queue.channel": ("room", "wandb"),
    "queue.resource": ("kubernetes", "sagemaker", "gcp-vertex", "local-container", "local-process"),
    "queue.slots": ("auto", "1"),
}
TOP_KEYS = ("name", "controller", "storage")
# Sections whose keys stand in the chosen file of a group, and in no typed section.
FILED = ("space", "sampler", "pruner", "prior")


def complete_sweep(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of sweeps."""
    from sweep.errors import ConfigError
    from sweep.wiring.rooms import rooms_dir

    with suppress(ConfigError):
        return _matching((path.parent.name for path in rooms_dir().glob("*/sweep.json")), incomplete, "sweep")
    return []


def complete_trial(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Numbers of a sweep's trials."""
    from sweep.errors import SweepError
    from sweep.wiring.rooms import find_room

    name = ctx.params.get("name") or next(iter(ctx.args), None)  # `--trial` without its value ends click's parsing
    if name is not None and "://" in name:
        return []
    with suppress(SweepError):
        return _matching(map(str, find_room(name).trials()), incomplete)
    return []


def complete_override(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Groups, settings, and the values of either, for a new sweep."""
    config_dir = ctx.params.get("config_dir")
    groups = groups_in(_directories(config_dir))
    metrics = groups.pop("metric", {})  # no choice of one: a name of objective.metrics takes its file by itself
    chosen = {**_defaults(groups), **_chosen(ctx.params.get("overrides") or ())}
    sign = incomplete[: len(incomplete) - len(incomplete.lstrip("+~"))]
    key, equals, _ = incomplete.removeprefix(sign).partition("=")
    if key.startswith(("metric.", "objective.metrics.", "objective.constraints.")):
        return _matching((sign + word for word in _metric_words(metrics, key, incomplete)), incomplete)
    if equals:
        values = list(groups.get(key, {})) or _values(key, _sections(groups, chosen))
        return _matching((f"{sign}{key}={value}" for value in values), incomplete)
    section = key.rpartition(".")[0]
    if not section:
        names = {**{f"{name}=": "group" for name in groups}, **{f"{name}=": "setting" for name in TOP_KEYS}}
        names |= {f"{name}.": "settings" for name in (*_sections(groups, chosen), *FILED, "derive", "metric")}
        return [CompletionItem(sign + name, help=text) for name, text in names.items() if name.startswith(key)]
    if section.partition(".")[0] in FILED:
        return _matching((sign + name for name in _file_keys(groups, chosen, section)), incomplete)
    settings = _settings(_sections(groups, chosen), section)
    return [CompletionItem(sign + name, help=text) for name, text in settings.items() if name.startswith(key)]


def complete_change(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Settings of a sweep that exists: those that `sweep resume` can change."""
    sections = {"search": _typed_sections()["search"], "queue": _queue_section(_kind_in_room(ctx.params.get("name")))}
    key, equals, _ = incomplete.partition("=")
    if equals:
        return _matching((f"{key}={value}" for value in _values(key, sections)), incomplete)
    settings = {name: text for section in sections for name, text in _settings(sections, section).items()}
    names = settings if "." in key else {f"{section}.": "settings" for section in sections}
    return [CompletionItem(name, help=text) for name, text in names.items() if name.startswith(incomplete)]


def complete_sweep_or_change(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of sweeps, and settings of the newest."""
    return complete_sweep(ctx, param, incomplete) + complete_change(ctx, param, incomplete)


def complete_pruner(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Pruners and their settings."""
    groups = groups_in(_directories(None))
    overrides = [*(ctx.params.get("overrides") or ()), ctx.params.get("name") or ""]
    chosen = {**_defaults(groups), **_chosen(overrides)}
    candidates = [f"pruner={name}" for name in groups["pruner"]] if "=" in incomplete else ["pruner=", "pruner."]
    return _matching(candidates + (_file_keys(groups, chosen, "pruner") if "." in incomplete else []), incomplete)


def complete_sweep_or_pruner(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of sweeps, and pruners to replay the newest with."""
    return complete_sweep(ctx, param, incomplete) + complete_pruner(ctx, param, incomplete)


def complete_path(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and directories."""
    return [CompletionItem(text) for text in _paths(incomplete)]


def complete_directory(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Directories."""
    return [CompletionItem(text) for text in _paths(incomplete) if text.endswith("/")]


def groups_in(directories: Iterable[Path]) -> dict[str, dict[str, Path]]:
    """The groups of these configuration directories: for each its choices with their files."""
    from sweep.resources import launch_queues_dir

    files = [path for directory in directories for path in sorted(directory.glob("*/*.yaml"))]
    groups: dict[str, dict[str, Path]] = {"queue": {path.stem: path for path in launch_queues_dir().glob("*.yaml")}}
    for path in files:
        groups.setdefault(path.parent.name, {})[path.stem] = path
    return groups


def _directories(config_dir: Path | None) -> list[Path]:
    from sweep.resources import conf_dir

    return [conf_dir(), *([config_dir.expanduser()] if config_dir else [])]


def _matching(candidates: Iterable[str], incomplete: str, help: str | None = None) -> list[CompletionItem]:
    names = sorted({name for name in candidates if name.startswith(incomplete)})
    return [CompletionItem(name, help=help) for name in names]


def _chosen(words: Sequence[str]) -> dict[str, str]:
    """Group to choice, and `queue.kind` to its value, as these words say."""
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def _defaults(groups: Mapping[str, Mapping[str, Path]]) -> dict[str, str]:
    """Group to the choice of the shipped configuration, read from the lines of its list of defaults."""
    from sweep.resources import conf_dir

    lines = re.findall(r"^ +- (\w+): (\w+)$", (conf_dir() / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    return {group: choice for group, choice in lines if group in groups}


def _typed_sections() -> dict[str, type]:
    from sweep.config.sections import SECTIONS

    return dict(SECTIONS)


def _sections(groups: Mapping[str, Mapping[str, Path]], chosen: Mapping[str, str]) -> dict[str, type]:
    """Section to its class; those of `queue` and `evaluate` depend on the kind in the chosen file."""
    from sweep.config.evaluate import EVALUATORS

    kinds = {group: chosen.get(f"{group}.kind") or _kind(groups, chosen, group) for group in ("queue", "evaluate")}
    evaluator = EVALUATORS.get(kinds["evaluate"], EVALUATORS["none"])
    return {**_typed_sections(), "queue": _queue_section(kinds["queue"]), "evaluate": evaluator}


def _queue_section(kind: str) -> type:
    from sweep.config.queues import queue_kinds, section_class

    return section_class(kind if kind in queue_kinds() else "local")


def _kind(groups: Mapping[str, Mapping[str, Path]], chosen: Mapping[str, str], group: str) -> str:
    path = groups.get(group, {}).get(chosen.get(group, ""))
    kind = re.search(r"^kind: *(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE) if path else None
    return kind[1] if kind else ""


def _kind_in_room(name: str | None) -> str:
    """The kind of a sweep's queue; empty if the sweep is not on this machine."""
    from sweep.errors import SweepError
    from sweep.wiring.rooms import find_room

    if name is not None and ("://" in name or "=" in name):
        name = None
    with suppress(SweepError, OSError, ValueError, KeyError, TypeError):
        return str(json.loads(find_room(name).sweep.read_text(encoding="utf-8"))["queue"]["kind"])
    return ""


def _settings(sections: Mapping[str, type], section: str) -> dict[str, str]:
    """Dotted keys of a section with the `=`, or the `.` before torchtune's keys, that follows; and what they mean."""
    kind = sections.get(section)
    if kind is None:
        return {}
    docs = "\n".join(base.__doc__ or "" for base in kind.__mro__)
    lines = dict(re.findall(r"^ {8}(\w+): (.+)$", docs, re.MULTILINE))
    ends = {"recipe.overrides": ".", "objective.metrics": ".", "objective.constraints": "."}
    keys = {f"{section}.{field.name}": lines.get(field.name, "") for field in dataclasses.fields(kind)}
    return {f"{key}{ends.get(key, '=')}": text for key, text in keys.items()}


def _file_keys(groups: Mapping[str, Mapping[str, Path]], chosen: Mapping[str, str], section: str) -> list[str]:
    """The keys of a group's chosen file, e.g. those of `pruner.` with `pruner=asha`."""
    import yaml

    group = section.partition(".")[0]
    path = groups.get(group, {}).get(chosen.get(group, ""))
    with suppress(OSError, yaml.YAMLError, ValueError, RecursionError):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
        keys = content.get(group, content) if isinstance(content, dict) else {}  # a file may hold the group as a key
        return [f"{group}.{str(key).removeprefix('+')}=" for key in keys if not str(key).startswith("_")]
    return []


def _metric_words(metrics: Mapping[str, Path], key: str, incomplete: str) -> list[str]:
    """What may follow `objective.metrics.`, `objective.constraints.` or `metric.`, with the key that is typed.

    Args:
        metrics: the files of the group, by the names of the metrics.
    """
    from sweep.config.metrics import SOURCES
    from sweep.model.objectives import Direction
    from trainer.contract import LOSSES

    if key.startswith("objective.metrics."):
        if "=" in incomplete:
            return [f"{key}={direction}" for direction in Direction]
        return [f"objective.metrics.{name}.direction=" for name in (*LOSSES, *metrics)]
    if key.startswith("objective.constraints."):
        return [] if "=" in incomplete else [f"objective.constraints.{name}=" for name in (*LOSSES, *metrics)]
    name, dot, _ = key.removeprefix("metric.").partition(".")
    if not dot:
        return [f"metric.{name}." for name in metrics]
    path = metrics.get(name)
    source = re.search(r"^source: *(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE) if path else None
    section = SOURCES.get(source[1]) if source else None
    if section is None or "=" in incomplete:
        return []
    return [f"metric.{name}.{field.name}=" for field in dataclasses.fields(section)]


def _values(key: str, sections: Mapping[str, type]) -> list[str]:
    """The values of a setting, if they are few."""
    section, _, name = key.rpartition(".")
    kind: Any = sections.get(section)
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)} if kind else {}
    if types.get(name, "").startswith("bool"):
        return ["true", "false"]
    return list(CHOICES.get(key, ()))


def _paths(incomplete: str) -> Iterator[str]:
    """Paths that continue a text, directories with a slash at their end; hidden ones only if the text asks for them."""
    head, slash, start = incomplete.rpartition("/")
    with suppress(OSError, RuntimeError):
        for path in sorted(Path(head + slash or ".").expanduser().iterdir()):
            if path.name.startswith(start) and (start or not path.name.startswith(".")):
                yield f"{head}{slash}{path.name}{'/' if path.is_dir() else ''}"
