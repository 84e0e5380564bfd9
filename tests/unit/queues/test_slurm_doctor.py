"""What `sweep doctor` says of the configured SLURM partition, by what `sinfo` lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweep.errors import SweepError
from sweep.queues.slurm import commands
from sweep.queues.slurm.doctor import cluster_checks
from sweep.queues.slurm.section import SlurmQueue

LISTING = """\
cpu|cpu*|up|1:00:00|(null)
gpu|gpu|up|2-00:00:00|gpu:4
gpu|gpu|up|2-00:00:00|gpu:8
old|old|down|infinite|gpu:2
"""


def say(monkeypatch: pytest.MonkeyPatch, listing: str, queue: SlurmQueue) -> str:
    """What the check of the partition returns."""
    monkeypatch.setattr(commands, "command", lambda words: listing)
    return dict(cluster_checks(queue, gpu=False, rooms_dir=Path("rooms")))["slurm partition"]()


@pytest.mark.parametrize(
    ("partition", "gpus", "answer"),
    [
        (None, None, "cpu: time limit 1:00:00, gres none"),
        ("cpu", None, "cpu: time limit 1:00:00, gres none"),
        ("gpu", 1, "gpu: time limit 2-00:00:00, gres gpu:4, gpu:8"),
        ("old,gpu", 1, "gpu: time limit 2-00:00:00, gres gpu:4, gpu:8"),
        ("cpu,gpu", 1, "cpu: time limit 1:00:00, gres gpu:4, gpu:8"),
    ],
)
def test_a_usable_partition_is_described(
    monkeypatch: pytest.MonkeyPatch, partition: str | None, gpus: int | None, answer: str
) -> None:
    queue = SlurmQueue(slurm_partition=partition, gpus_per_node=gpus)
    assert say(monkeypatch, LISTING, queue) == answer


@pytest.mark.parametrize(
    ("partition", "gpus", "error"),
    [
        ("nope,gpu", None, "queue.slurm_partition=nope,gpu: there is no nope; allowed: cpu, gpu, old"),
        ("old", None, "the partition old is down; jobs would wait until it is up"),
        ("cpu", 1, "the partition cpu has no GPUs (gres: none); choose another"),
        (None, 1, "the partition cpu has no GPUs (gres: none); choose another"),
    ],
)
def test_an_unusable_partition_is_refused(
    monkeypatch: pytest.MonkeyPatch, partition: str | None, gpus: int | None, error: str
) -> None:
    with pytest.raises(SweepError) as raised:
        say(monkeypatch, LISTING, SlurmQueue(slurm_partition=partition, gpus_per_node=gpus))
    assert str(raised.value) == error


def test_a_cluster_without_a_default_partition_needs_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SweepError, match=r"no default partition; set queue\.slurm_partition to one of cpu, gpu, old"):
        say(monkeypatch, LISTING.replace("*", ""), SlurmQueue(gpus_per_node=None))
