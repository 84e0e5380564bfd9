"""Queues: a folder for each kind, with its section of the configuration and its `Backend` (docs/queues.md).

Invariants: the folders are found by their names, so that a new one needs no line in any other module. The folders that
the environment variable SWEEP_QUEUES names are searched too, after this one. No kind of queue imports another.
"""

from __future__ import annotations

import os

from sweep.config.queues import queue_package
from sweep.queues.backend import Backend

__all__ = ["Backend", "backend"]

__path__.extend(path for path in os.environ.get("SWEEP_QUEUES", "").split(os.pathsep) if path)


def backend(kind: str) -> Backend:
    """The implementation of a kind of queue.

    Raises:
        ConfigError: no queue of this kind is installed.
    """
    implementation: Backend = queue_package(kind).BACKEND
    return implementation
