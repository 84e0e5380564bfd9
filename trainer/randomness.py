"""A trial's own random generators in a process that trains several trials.

Invariant: numbers drawn within `own` come from this trial's generators, and change no other trial's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from trainer.checkpoint import random_state


class Randomness:
    """The process's generators at the time of construction; `own` continues with them each time it is entered."""

    def __init__(self) -> None:
        self._state = _read()
        self.resumed = False

    def resume(self) -> None:
        """Make them the generators of the process, for the rest of the trial."""
        _write(self._state)
        self.resumed = True

    @contextmanager
    def own(self) -> Iterator[None]:
        """Draw from this trial's generators while the block runs."""
        others = _read()
        _write(self._state)
        try:
            yield
        finally:
            self._state = _read()
            _write(others)

    def rewind(self, state: Any) -> None:
        """Return to a state that `now` returned."""
        self._state = state

    @property
    def now(self) -> Any:
        """The state of the generators, for `rewind` and `to_checkpoint`."""
        return self._state

    def to_checkpoint(self, state: Any) -> dict[str, Any]:
        """A state that `now` returned, in the form of `checkpoint.random_state`."""
        others = _read()
        _write(state)
        try:
            return random_state()
        finally:
            _write(others)


def _read() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), cuda, random.getstate(), np.random.get_state(legacy=True)


def _write(state: tuple[Any, ...]) -> None:
    cpu, cuda, python, numpy = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
    random.setstate(python)
    np.random.set_state(numpy)
