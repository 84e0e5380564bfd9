"""Measures the data of a torchtune configuration, and finds its base.

Invariant: the trainer counts in a process of its own, so that the controller's process never imports torch.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweep.config.recipe_values import corners
from sweep.config.settings import Settings
from sweep.config.torchtune import resolve, resolve_here
from sweep.errors import ConfigError, UntrustedCodeError
from sweep.processes import OWN_ENV, PreforkServer, clean_env, ended_unexpectedly, python_command

# Of these many trials at the corners of the space and of these many first ones it is checked that they can be built.
CORNERS = 24
FIRST_TRIALS = 4


@dataclass(frozen=True, slots=True)
class DataProbe:
    """What `trainer.entry.probe` has counted; see there."""

    rows: int
    validation_rows: int
    trial_rows: int
    trial_tokens: int
    tokens_per_second: float = 0.0
    notes: tuple[str, ...] = ()
    base_elsewhere: bool = False


def probe_data(settings: Settings, prefork: PreforkServer | None = None, speed: bool = False) -> DataProbe:
    """Rows and label tokens of the base configuration of a sweep, after a check that its trials can be built.

    The base, the corners of the space and the first trials that the sampler proposes are checked.

    Args:
        prefork: the server that counts; None: a process that ends afterwards.
        speed: also train a few micro-batches on the device of the configuration, never in the prefork server.

    Raises:
        UntrustedCodeError: it names code that is not on the allow-list.
        ConfigError: a trial cannot be built or measured, or there is no step to train.
        GiveUp: the process that counts ended without an answer.
    """
    request: dict[str, Any] = {
        "verb": "probe",
        "config": resolve(settings.torchtune, {}, {}, settings.directory),
        "directory": settings.directory,
        "components": settings.recipe.components,
        "cases": _cases(settings),
        "metrics": [asdict(metric) for metric in settings.measured],
        "device_here": settings.queue.on_this_machine,
        "speed": speed,
    }
    answer = prefork.ask(request) if prefork and not speed else _ask_once(request, settings.queue.worker_env)
    if answer.get("untrusted"):
        raise UntrustedCodeError(answer["error"])
    if answer.get("metric"):
        elsewhere = not settings.queue.on_this_machine and settings.objective.milestone_tokens is None
        hint = "; set objective.milestone_tokens if its data are on other machines only" if elsewhere else ""
        raise ConfigError(f"trials cannot be measured: {answer['error']}{hint}")
    if "error" in answer:
        how = "correct recipe.config or recipe.overrides"
        if settings.queue.offline:  # the workers have no more than this machine
            how += ", or download what is missing first, since queue.offline=true"
        elif settings.objective.milestone_tokens is None:
            how += ", or set objective.milestone_tokens if the data are on other machines only"
        raise ConfigError(f"the torchtune configuration cannot train here: {answer['error']}; {how}")
    return DataProbe(**{**answer, "notes": tuple(answer["notes"])})


def _cases(settings: Settings) -> list[dict[str, Any]]:
    """Trials that the search may propose, with their resolved configurations."""
    from sweep.wiring.session import first_params

    cases: dict[str, dict[str, Any]] = {}
    for params in [*corners(settings.space, CORNERS), *first_params(settings, FIRST_TRIALS)]:
        config = resolve(settings.torchtune, params, settings.derive, settings.directory)
        cases.setdefault(json.dumps(config, sort_keys=True), {"params": dict(params), "config": config})
    return list(cases.values())


def check_base(settings: Settings) -> str:
    """The directory of the base.

    Raises:
        ConfigError: the directory or one of its files does not exist on this machine.
    """
    checkpointer = resolve_here(settings.torchtune, settings.directory)["checkpointer"]
    directory = Path(str(checkpointer["checkpoint_dir"]))
    files = checkpointer.get("checkpoint_files")
    missing = [name for name in (files if isinstance(files, list) else []) if not (directory / str(name)).exists()]
    if not directory.is_dir() or missing:
        lacks = f" lacks {', '.join(missing)}" if directory.is_dir() else " does not exist"
        raise ConfigError(f"checkpointer.checkpoint_dir={directory}{lacks}; download the base with `tune download`")
    return str(directory)


def _ask_once(request: dict[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    command = python_command("-m", "trainer", "probe", *(["--speed"] if request["speed"] else []))
    result = subprocess.run(
        command,
        input=json.dumps(request),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=OWN_ENV | clean_env() | dict(env),
        check=False,
    )
    lines = result.stdout.strip().splitlines()
    if lines and lines[-1].startswith("{"):
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer
    raise ended_unexpectedly("the process that reads the data", result.returncode, result.stderr)
