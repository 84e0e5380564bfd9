"""What evaluations are: their section of the configuration, the sweep that runs them, and their specifications.

Evaluations are a second, small sweep whose room is part of the first one's. It has one worker and no budget, and each
of its trials has the number of the trial that it judges.

Invariant: pure, except that freezing reads files, and a specification is made from that of the judged trial.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sweep.config.evaluate import PLACEHOLDERS, Command, Evaluator, Heldout, LmEval, NoEvaluation, Torchtune
from sweep.config.executables import check_executable
from sweep.config.paths import anchored
from sweep.config.settings import Settings
from sweep.config.torchtune import check_trusted, find_torchtune_config, with_overrides
from sweep.config.yaml_files import load_yaml
from sweep.errors import ConfigError, GiveUp
from sweep.model.identifiers import AttemptId
from sweep.tracking.runs import adapter_name, tracking_of, wandb_location
from trainer.contract import Evaluation, TrialSpec, read_message
from trainer.room import Room

DIRECTORY = "evaluations"


def evaluations_room(room: Room) -> Room:
    """The room of a sweep's evaluations, which is part of the sweep's room."""
    return Room(room.root / DIRECTORY)


def freeze_evaluator(evaluator: Evaluator) -> Evaluator:
    """An evaluator that needs no file of this machine: a command line becomes its words, a YAML file its content.

    Raises:
        ConfigError: a command line that cannot be parsed, a file that does not exist or is no YAML mapping.
    """
    match evaluator:
        case Command(command=str() as text):
            try:
                return replace(evaluator, command=shlex.split(text))
            except ValueError as error:
                raise ConfigError(f"evaluate.command={text} cannot be split into words: {error}") from error
        case Torchtune(config=str() as name, recipe=recipe):
            path = Path(recipe).expanduser()
            return replace(evaluator, config=_yaml(name), recipe=str(path.resolve()) if path.is_file() else recipe)
    return evaluator


def check(settings: Settings) -> None:
    """Check that this sweep can evaluate its trials.

    Raises:
        ConfigError: it cannot; names the key, its value and what is allowed.
    """
    if is_enabled(settings.evaluate) and settings.queue.simulated:
        raise ConfigError("evaluate: a simulated queue trains no adapter that could be judged; set evaluate=none")
    match settings.evaluate:
        case Heldout(dataset=None) if not settings.torchtune.get("dataset_val"):
            raise ConfigError(
                "evaluate=heldout needs held-out data: set evaluate.dataset, or add +dataset_val to recipe.overrides"
            )
        case Heldout(dataset=dataset) if dataset is not None:
            if not isinstance(dataset, dict) or "_component_" not in dataset:
                raise ConfigError(f"evaluate.dataset={dataset} is no data set; it must have a _component_")
            check_trusted({"evaluate": {"dataset": dataset}}, settings.recipe.components)
        case Torchtune(config=config, overrides=overrides):
            if not isinstance(config, dict):
                raise ConfigError("evaluate.config is not set; name the YAML of the evaluation: evaluate.config=PATH")
            check_trusted(with_overrides(config, overrides, "evaluate.overrides"), settings.recipe.components)
            check_placeholders("evaluate.overrides", map(str, overrides.values()))
        case Command(command=words):
            if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
                raise ConfigError(
                    f"evaluate.command={words} is no command; write its words, e.g. "
                    "[python, score.py, --adapter, '{adapter}', --to, '{output}']"
                )
            check_placeholders("evaluate.command", words)
            check_executable("evaluate.command", shlex.join(words[:1]))
        case LmEval() as asked:
            _check_lm_eval(settings, asked)


def evaluation_settings(settings: Settings) -> Settings:
    """The settings of the sweep that runs the evaluations: the same queue with one worker, and no budget."""
    queue, search = settings.queue.for_evaluations(settings.name), settings.search
    search = replace(search, trials=None, tokens=None, seconds=None, target=None, max_failure_share=1.0)
    wandb = replace(
        settings.wandb, group=wandb_location(settings).group, job_type="evaluation", artifacts="none", hook=None
    )
    return replace(settings, name=f"{settings.name}-{DIRECTORY}", queue=queue, search=search, wandb=wandb)


def evaluation_spec(settings: Settings, room: Room, identity: AttemptId, stopped: Collection[str] = ()) -> TrialSpec:
    """The specification of an attempt of an evaluation.

    Args:
        settings, room: of the sweep whose trials are judged.
        stopped: W&B runs of evaluations that were asked to stop, so that no attempt continues in them.
    """
    trial = identity.trial
    judged = room.attempts(trial)[-1]
    done = _judged_spec(room, trial, judged)
    is_run = settings.queue.jobs_are_runs
    options = {key: value for key, value in dataclasses.asdict(settings.evaluate).items() if key != "kind"}
    if not isinstance(settings.evaluate, Torchtune):  # whose program runs in that directory
        options = anchored(options, settings.directory)
    carried = settings.queue.reports_over_wandb
    return TrialSpec(
        sweep=settings.name,
        trial=trial,
        attempt=identity.attempt,
        worker=identity.worker,
        config=done.config,
        milestone_tokens=done.milestone_tokens,
        components=done.components,
        tracking=tracking_of(evaluation_settings(settings), trial, done.config, stopped) if is_run else None,
        evaluate=Evaluation(
            kind=settings.evaluate.kind,
            options=options,
            adapter="" if carried else _adapter(settings, room, trial, judged),
            artifact=f"{wandb_location(settings).path}/{adapter_name(settings)}:trial-{trial}" if carried else "",
            tracking=done.tracking,
        ),
        token=settings.token,
        directory=done.directory,
    )


def _judged_spec(room: Room, trial: int, attempt: int) -> TrialSpec:
    """The specification by which the adapter was trained that is to be judged.

    Raises:
        GiveUp: it is lost.
    """
    spec = read_message(TrialSpec, room.attempt(trial, attempt).spec)
    if not isinstance(spec, TrialSpec):
        raise GiveUp(f"trial {trial} cannot be evaluated: {spec or 'its spec.json is gone'}")
    return spec


def is_enabled(evaluator: Evaluator) -> bool:
    """Whether the configuration asks for evaluations."""
    return not isinstance(evaluator, NoEvaluation)


def _adapter(settings: Settings, room: Room, trial: int, attempt: int) -> str:
    """The path of an attempt's adapter on the host of the job, where the room may have another path than here."""
    path = room.attempt(trial, attempt).adapter
    return f"{settings.queue.room_in_jobs(room.root)}/{path.relative_to(room.root)}"


def _yaml(name: str) -> dict[str, Any]:
    try:
        path = find_torchtune_config(name)
    except ConfigError as error:
        raise ConfigError(f"evaluate.config={name} is no file and no name that `tune ls` prints") from error
    raw = OmegaConf.to_container(load_yaml(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no YAML mapping; evaluate.config must name a torchtune configuration")
    return {str(key): value for key, value in raw.items()}


def check_placeholders(key: str, words: Iterable[str]) -> None:
    """Refuse a text with a placeholder that is none.

    Raises:
        ConfigError: with the key and the allowed ones.
    """
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    for word in words:
        if unknown := [name for name in re.findall(r"\{(\w+)\}", word) if name not in PLACEHOLDERS]:
            raise ConfigError(f"{key}: {{{unknown[0]}}} is no placeholder; allowed: {known}")


def _check_lm_eval(settings: Settings, asked: LmEval) -> None:
    if not asked.tasks:
        raise ConfigError("evaluate.tasks is empty; name tasks of lm-eval, e.g. evaluate.tasks=[hellaswag]")
    check_lm_eval_installed(settings, "evaluate=lm_eval", "choose evaluate=heldout")


def check_lm_eval_installed(settings: Settings, where: str, instead: str) -> None:
    """Refuse lm-eval's tasks where workers use this interpreter, and it lacks lm-eval.

    Args:
        instead: what else may be done.

    Raises:
        ConfigError: it says how to install it.
    """
    if not settings.queue.own_interpreter and importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            f"{where} needs lm-eval, which is not installed here; pip install 'sweeps-on-launch[lm-eval]', or {instead}"
        )
