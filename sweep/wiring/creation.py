"""Creates the room of a new sweep: frozen settings, study and warm start.

Invariant: `sweep.json` is written last, so that a room that has it is complete.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from sweep.config.settings import Settings
from sweep.errors import ConfigError
from sweep.wiring.backends import backend_of
from sweep.wiring.rooms import find_room, load_settings, rooms_dir, save_settings
from sweep.wiring.session import CREATION_NOTE, open_study, reading_storage
from trainer.room import Room, write_atomic

if TYPE_CHECKING:
    from sweep.search.study import OptunaStudy
    from sweep.wiring.compose import Composed


def create_room(composed: Composed, trial_tokens: int) -> Room:
    """A new room with frozen settings, its study and its warm start.

    Args:
        trial_tokens: label tokens of a whole trial.

    Raises:
        ConfigError: a warm start does not fit, the storage holds a study of this name, or the queue's service refuses.
        RetryLater: the queue's service does not answer.
    """
    from sweep.search.storage import absolute_url

    settings = replace(composed.settings, trial_tokens=trial_tokens, created=time.time())
    settings = backend_of(settings).freeze(settings)
    if settings.storage is not None:
        settings = replace(settings, storage=absolute_url(settings.storage))
    room = Room((rooms_dir() / settings.name).resolve())
    study = open_study(room, settings, new=True)
    write_atomic(room.root / "recipe.yaml", composed.recipe_text)
    for params in settings.warm_start.enqueue:
        study.enqueue(params)
    for source in settings.warm_start.import_from:
        _import(study, settings, source)
    save_settings(room, settings)
    (room.root / CREATION_NOTE).unlink(missing_ok=True)
    return room


def _import(study: OptunaStudy, settings: Settings, source: str) -> None:
    """Copy the ended trials of another sweep into a study.

    Raises:
        ConfigError: that sweep minimised another number, or searched another space.
    """
    from sweep.search.distributions import same_space
    from sweep.search.storage import load_study

    room = find_room(source)
    other = load_settings(room)
    if other.metric != settings.metric:
        raise ConfigError(
            f"warm_start.import_from: {source} minimised {other.metric}, this sweep minimises {settings.metric}"
        )
    loaded = load_study(reading_storage(room, other), other.name)
    if not same_space(loaded, settings.space):
        raise ConfigError(f"warm_start.import_from: {source} has another space; its trials cannot be taken over")
    study.import_trials(other.name, loaded.get_trials(deepcopy=False))
