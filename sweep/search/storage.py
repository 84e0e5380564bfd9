"""The Optuna storage of a sweep: its URL or file, and the names of its trials' attributes.

Invariant: nothing here writes a trial; only `study.OptunaStudy` does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.exceptions import DuplicatedStudyError, OptunaError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from sweep.errors import ConfigError, GiveUp
from sweep.model.objectives import Objective
from sweep.search.attributes import (
    FINAL,
    IMPORTED,
)

optuna.logging.set_verbosity(optuna.logging.ERROR)

# A database file with a path relative to the current directory; a database without a file.
_RELATIVE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!/|:memory:)(.+)")
_NOWHERE = re.compile(r"sqlite(?:\+\w+)?://(?:/(?::memory:)?)?$")
# Parameters of a URL's query that drivers take as a password.
_PASSWORD_KEYS = ("password", "passwd", "pwd", "sslpassword", "token", "access_token")


def check_url(url: object) -> None:
    """Check that a room can name this storage.

    Raises:
        ConfigError: it is no URL, is not kept on disk, or has a password, which would be written into the room.
    """
    if not isinstance(url, str) or "://" not in url:
        raise ConfigError(f"storage={shown_url(url)} must be an Optuna URL such as sqlite:///sweeps.db, or null")
    if _has_password(url):
        raise ConfigError(
            f"storage={shown_url(url)} has a password, which would be written into the room; leave it to the driver: "
            "~/.pgpass or PGPASSWORD for PostgreSQL, ?read_default_file=~/.my.cnf for MySQL"
        )
    if _NOWHERE.fullmatch(url):
        raise ConfigError(f"storage={url} ends with the process; name a file, such as sqlite:///sweeps.db, or null")


def shown_url(url: object) -> str:
    """A storage's URL for texts; only its beginning if it has a password."""
    text = str(url)
    return f"{text.partition('://')[0]}://…" if _has_password(text) else text


def _has_password(url: str) -> bool:
    """Whether SQLAlchemy reads a password from a URL, or a person would, where SQLAlchemy reads a path."""
    if url.startswith("sqlite"):
        return False
    from sqlalchemy.engine import make_url  # a room's own journal needs none of it, and its import takes long
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is not None and (parsed.password is not None or any(map(_is_password, parsed.query))):
        return True
    return re.search(r"://[^@]*:[^@]*@", url) is not None


def _is_password(key: str) -> bool:
    return key.lower() in _PASSWORD_KEYS


@contextmanager
def opening(url: str, name: str) -> Iterator[None]:
    """Turn the errors of opening or creating a study in the storage at a URL into one sentence.

    Raises:
        ConfigError: the block raised an error of Optuna or of the database.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except DuplicatedStudyError:
        raise ConfigError(
            f"storage={shown_url(url)} holds a study named {name} already, perhaps of another sweep; choose another "
            "name=, or delete that one with `optuna delete-study`"
        ) from None
    except (OptunaError, SQLAlchemyError, ImportError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"storage={shown_url(url)} cannot be opened ({type(error).__name__}: {said}); it must be an Optuna URL "
            "that this machine reaches, such as sqlite:///sweeps.db, or null"
        ) from error


def absolute_url(url: str) -> str:
    """The URL with an absolute path, which does not depend on the current directory."""
    relative = _RELATIVE.fullmatch(url)
    return f"{relative[1]}{Path(relative[2]).absolute()}" if relative else url


def memory_storage() -> BaseStorage:
    """A storage in memory, which ends with the process."""
    return InMemoryStorage()


def own_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that a sweep asked: neither imported nor still enqueued."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if IMPORTED not in trial.user_attrs and trial.state is not TrialState.WAITING
    ]


def winners(trials: Sequence[FrozenTrial], objective: Objective) -> list[int]:
    """The numbers of the trials that were the best when they ended, in that order; finals are left out."""
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE and FINAL not in trial.user_attrs]
    best, numbers = math.inf, []
    for trial in sorted(complete, key=lambda trial: (str(trial.datetime_complete), trial.number)):
        if trial.value is not None and objective.minimised(trial.value) < best:
            best = objective.minimised(trial.value)
            numbers.append(trial.number)
    return numbers


def check_no_study(url: str, name: str) -> None:
    """Check that the storage at a URL holds no study of this name.

    Raises:
        DuplicatedStudyError: it does.
    """
    if name in optuna.get_all_study_names(url):
        raise DuplicatedStudyError(name)


def load_study(storage: BaseStorage | str, name: str) -> optuna.Study:
    """An existing study, for reading.

    Raises:
        GiveUp: the storage holds no study of this name.
    """
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        raise GiveUp(
            f"the storage holds no study named {name}; `sweep doctor --room {name}` says what the room's files still "
            "tell of it"
        ) from error


def final_of(trial: FrozenTrial) -> tuple[int, int] | None:
    """The number of the trial that a final repeats, and the index of its seed; None if it is no final."""
    match trial.user_attrs.get(FINAL):
        case [int(number), int(seed)]:
            return number, seed
    return None
