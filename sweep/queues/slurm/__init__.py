"""Workers as jobs of a SLURM cluster.

Invariant: nothing heavy is imported before a queue is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.queues.backend import Backend, NamedCheck, OpenQueue
from sweep.queues.slurm.section import SlurmQueue

if TYPE_CHECKING:
    from sweep.config.settings import Settings
    from sweep.model.facts import Job
    from sweep.processes import PreforkServer
    from sweep.queues.controller_job import ControllerJob, RunController
    from sweep.queues.slurm.dispatcher import SlurmDispatcher
    from trainer.room import Room


class SlurmBackend(Backend):
    """A SLURM cluster, reached through submitit from a machine that has its commands."""

    section = SlurmQueue

    def open(self, room: Room, settings: Settings, prefork: PreforkServer | None = None) -> OpenQueue:
        from sweep.controller.room_channel import RoomChannel

        return OpenQueue(self._dispatcher(room, settings), RoomChannel(room))

    def viewer(self, room: Room, settings: Settings) -> Callable[[], Mapping[str, Job]]:
        return self._dispatcher(room, settings, reads=True).poll

    def check(self, settings: Settings) -> None:
        _section(settings).check_for(str(settings.torchtune.get("device")))

    def check_room(self, room: Room) -> None:
        from sweep.queues.slurm.submit import check_path

        check_path(room.root)

    def doctor(self, settings: Settings, rooms_dir: Path) -> Sequence[NamedCheck]:
        from sweep.queues.slurm.doctor import cluster_checks

        return cluster_checks(_section(settings), self.on_gpu(settings), rooms_dir)

    def controller_job(self, room: Room, settings: Settings, run: RunController) -> ControllerJob:
        from sweep.queues.slurm.controller_job import SlurmControllerJob

        return SlurmControllerJob(room, settings.name, _section(settings), run, settings.token)

    def _dispatcher(self, room: Room, settings: Settings, reads: bool = False) -> SlurmDispatcher:
        from sweep.queues.slurm.dispatcher import SlurmDispatcher
        from sweep.queues.slurm.submit import Submission

        queue = _section(settings)
        threads = str(queue.threads or queue.cpus_per_task or 1)
        options = {
            "trials": queue.trials_per_worker or 0,
            "idle_seconds": queue.idle_seconds,
            "slots": queue.worker_slots,
            "seconds": queue.timeout_min * 60 - queue.slurm_signal_delay_s,
            "gpu": self.on_gpu(settings),
            "env": {"OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1", **queue.worker_env},
        }
        submission = Submission(room, settings.name, queue.job, options, queue.python, token=settings.token)
        return SlurmDispatcher(room, submission, queue.query_seconds, reads)


def _section(settings: Settings) -> SlurmQueue:
    assert isinstance(settings.queue, SlurmQueue)
    return settings.queue


BACKEND = SlurmBackend()
