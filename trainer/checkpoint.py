"""Saves and loads the whole state of a trial in training, in one file that loads with `weights_only=True`.

Invariants: a checkpoint holds tensors, numbers, strings, lists and dicts only, so that loading it runs no code. The
file appears whole or not at all. A resume is bit-exact, since the state includes adapter, optimizer, schedule, the
gradients of an unfinished accumulation, the data position, and every random generator from which training draws.
"""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.room import write_atomic
from trainer.space import with_space

VERSION = 1
PARTS = ("recipe", "milestones", "guard")


class CheckpointError(Exception):
    """The file is damaged, or has another version."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a trial's state. If the disk is full, wait for space for a while.

    Args:
        state: the parts by name: at least `PARTS`.

    Raises:
        OSError: the disk stays full. An earlier checkpoint at the same path stays.
    """
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **state}, buffer)
    with_space(lambda: write_atomic(path, buffer.getvalue(), root=path.parent), "the checkpoint")


def load(path: Path) -> dict[str, Any]:
    """Read a trial's state onto the CPU.

    Raises:
        CheckpointError: the file cannot be read as a checkpoint of this version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise RuntimeError, EOFError, UnpicklingError, OSError and others
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}") from error
    if not isinstance(state, dict) or state.get("version") != VERSION or any(part not in state for part in PARTS):
        raise CheckpointError(f"{path} is no checkpoint of version {VERSION}")
    return state


def compact(value: Any) -> Any:
    """A copy of a value with all its tensors contiguous and on the CPU, so that they keep no larger tensor alive."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, dict):
        return {key: compact(item) for key, item in value.items()}
    return [compact(item) for item in value] if isinstance(value, list) else value


def random_state() -> dict[str, Any]:
    """The state of every generator that torchtune seeds, as tensors and numbers."""
    _, python_state, python_gauss = random.getstate()
    name, numpy_state, position, has_gauss, gauss = np.random.get_state()
    assert name == "MT19937"
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [list(python_state), python_gauss],
        "numpy": [
            torch.from_numpy(np.asarray(numpy_state).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore a state that `random_state` returned; CUDA's only if the same number of devices is visible."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    python_state, gauss = state["python"]
    random.setstate((3, tuple(python_state), gauss))
    numpy_state, position, has_gauss, numpy_gauss = state["numpy"]
    np.random.set_state(("MT19937", numpy_state.numpy().astype(np.uint32), position, has_gauss, numpy_gauss))
