"""What a sweep's Optuna storage holds: where it lies, and what its trials' attributes are called.

Invariant: nothing here writes a trial; `study.OptunaStudy` does.
"""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from sweep.errors import GiveUp
from trainer.room import cut_torn_line

optuna.logging.set_verbosity(optuna.logging.ERROR)

# User attributes of a trial.
IMPORTED = "imported_from"
REASON = "reason"
CANCELLED = "cancelled"
TOKENS = "tokens"
SECONDS = "seconds"
FINAL = "final"
PROMOTED = "promoted_at"
STOPPED = "stopped"


def journal_storage(path: Path) -> BaseStorage:
    """The journal file of a room, for its one writer: a line that a crash left torn is cut off first."""
    cut_torn_line(path)
    if path.exists():
        Path(f"{path}.lock").unlink(missing_ok=True)  # left by a killed writer; the room's lock says there is no other
    return JournalStorage(JournalFileBackend(str(path)))


def reading_storage(path: Path) -> BaseStorage:
    """The same for a reader beside a running controller: nothing is repaired."""
    return JournalStorage(JournalFileBackend(str(path)))


def memory_storage() -> BaseStorage:
    """A storage that ends with the process."""
    return InMemoryStorage()


def own_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that a sweep asked for: neither imported nor still enqueued."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if IMPORTED not in trial.user_attrs and trial.state is not TrialState.WAITING
    ]


def load_study(storage: BaseStorage | str, name: str) -> optuna.Study:
    """An existing study, for reading.

    Raises:
        GiveUp: the storage holds no study of this name.
    """
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        raise GiveUp(f"the storage holds no study named {name}") from error


def final_of(trial: FrozenTrial) -> tuple[int, int]:
    """The trial that a final repeats, and with which of the seeds."""
    number, seed = trial.user_attrs[FINAL]
    return int(number), int(seed)
