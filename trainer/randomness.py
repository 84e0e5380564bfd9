"""A trial's own random generators, beside those of other trials in the same process.

Invariant: what is drawn within `own` comes from this trial's generators, and leaves every other's untouched.
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
    """The generators as they stand when this is made, which go on from there whenever `own` is entered."""

    def __init__(self) -> None:
        self._state = _read()
        self.resumed = False

    def resume(self) -> None:
        """Make them the process's generators, for good."""
        _write(self._state)
        self.resumed = True

    @contextmanager
    def own(self) -> Iterator[None]:
        """Draw from this trial's generators while the block runs."""
        outside = _read()
        _write(self._state)
        try:
            yield
        finally:
            self._state = _read()
            _write(outside)

    def rewind(self, state: Any) -> None:
        """Go back to where `now` was."""
        self._state = state

    @property
    def now(self) -> Any:
        """Where the generators stand; for `rewind` and `to_checkpoint`."""
        return self._state

    def to_checkpoint(self, state: Any) -> dict[str, Any]:
        """What `checkpoint.random_state` gives of a trial alone, for generators at a `now`."""
        outside = _read()
        _write(state)
        try:
            return random_state()
        finally:
            _write(outside)


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
