"""The section `queue` for this machine: what all queues share, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from sweep.config.queues import Queue


@dataclass
class LocalQueue(Queue):
    """Workers that are processes of this machine, one per GPU or per core unless `workers` is set."""
