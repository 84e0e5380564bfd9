"""Reads the ports and makes the `View` on which the controller decides.

Observing has one effect: new reports are handed to the study, whose verdicts are part of the view.

What an `Observer` keeps, and what it costs to lose it when a controller dies:

- `FirstSeen`, since when a stop, a beat or a job's state is what it is: no port can say that again. A new controller
  counts from its own start, so every grace period begins anew. The same holds if this controller has not observed for
  long: it was held up, the machine was suspended, or a port did not answer. Its workers may have been suspended too.
- `_last_earlier_worker`, the last worker that an earlier controller started: a new controller does not count that
  controller's failed starts.
- Everything else is a cache of what the ports show. A channel shows all reports again to a new controller, so usage,
  verdicts and facts come out the same.

Invariants: jobs are polled before the channel is observed, so that everything that an ended job has written is seen
together with its end. An observation has one time, on which all its facts and the decision on them depend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sweep.controller.budget import trials_left
from sweep.controller.first_seen import FirstSeen
from sweep.controller.ports import Ledger, Listener, ObservedAttempt, ObservedWorker, Ports
from sweep.controller.report_buffer import ReportBuffer
from sweep.controller.trial_observer import TrialObserver
from sweep.model.facts import Job, View, WorkerFacts
from sweep.model.limits import Limits
from sweep.model.states import JobState, Mode
from trainer.room import worker_number

# An observation that comes later after the last one than this share of `Limits.silence` is late.
LATE_SHARE = 0.25
# Workers that have ended of which something is kept: looking for them costs more than they do.
KEPT_WORKERS = 32


@dataclass
class Observer:
    """Observes one sweep for its controller.

    Args:
        mode: returns what the user wants now.
        created: when the sweep was created, on the clock of the ports.
        observed_at: when the last observation was made, on the same clock; None before the first.
        _late: that observation came late, as only the first of several in a row may do without consequences.
        _no_space: the same as in its view.
        _excused: workers that ended before they were ready while no space was left.
    """

    ports: Ports
    limits: Limits
    mode: Callable[[], Mode]
    created: float
    listener: Listener
    ledger: Ledger
    trials: TrialObserver = field(init=False)
    observed_at: float | None = None
    _late: bool = False
    _no_space: str = ""
    _excused: set[str] = field(default_factory=set)
    _first_seen: FirstSeen = field(default_factory=FirstSeen)
    _reports: ReportBuffer = field(init=False)
    _restored: bool = False
    _jobs: Mapping[str, Job] = field(default_factory=dict)
    _last_earlier_worker: int | None = None
    _last_worker: int = 0
    _workers: dict[str, tuple[ObservedWorker, Job, WorkerFacts]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reports = ReportBuffer(self.ports.channel)
        self.trials = TrialObserver(
            self.ports.study,
            self.ports.pausing,
            self.listener,
            self.ledger,
            self.limits,
            self._first_seen,
            self.ports.disk,
        )

    def observe(self) -> View:
        """All facts of this moment.

        Raises:
            RetryLater, OSError: a port cannot answer now. Reports that were read are processed in the next round.
        """
        study = self.ports.study
        self._restore_reports()
        before = study.facts()
        self.trials.new_trials_allowed = trials_left(before, self.limits) > 0
        self._poll_jobs()
        observed, observed_workers = self._reports.observe(before.open, self._watched_workers())
        now = self._begin_observation()
        trials = tuple(self._reports.process(observed, self.trials.facts))
        no_space = self._no_space = self._ask_disk()  # anew: a trial may have ended because no space was left
        workers = tuple([self._worker(worker, self._jobs[name]) for name, worker in observed_workers.items()])
        self._forget_workers(observed_workers)
        failed = _failed_starts([worker for worker in workers if worker.name not in self._excused])
        if no_space:
            self._excused |= {worker.name for worker in failed}
            failed = []
        facts = study.facts()  # anew: the reports have changed it
        return View(
            study=facts,
            trials=trials,
            workers=workers,
            mode=self.mode(),
            tokens=facts.tokens + self.trials.usage.tokens,
            seconds=now - self.created,
            trained=facts.seconds + self.trials.usage.seconds,
            start_failures=len(failed),
            start_failure=failed[0].reason if failed else "",
            no_space=no_space,
        )

    def new_worker_names(self, count: int) -> list[str]:
        """The names that the next workers get: those of the last poll counted on."""
        return [f"w{self._last_worker + 1 + index:04d}" for index in range(count)]

    def place_of(self, worker: str) -> int:
        """The position of a worker among the queue's workers, as of the last poll."""
        return self._jobs[worker].place

    def _restore_reports(self) -> None:
        """Once: hand the study the reports of trials that ended under an earlier controller, if it judges by them."""
        pausing = self.ports.pausing
        if pausing is None or self._restored:
            return

        def restore(number: int, attempts: Sequence[ObservedAttempt]) -> None:
            pausing.restore_reports(number, [report for attempt in attempts for report in attempt.reports])

        ended = pausing.trials_without_reports()
        observed, _ = self._reports.observe(ended, [])
        self._reports.process(observed, restore)
        for number in ended:
            self.ports.channel.forget(number)
        self._restored = True

    def _ask_disk(self) -> str:
        return self.ports.disk.no_space() if self.ports.disk is not None else ""

    def _begin_observation(self) -> float:
        """The time of an observation whose facts have just been read, in seconds.

        If the last one is long ago, all grace periods begin anew. If several in a row are late, the ports are slow, and
        only the first of them counts as late: else a worker that died would be waited for without end. They also begin
        anew once there is space: before, workers could not write that they live.
        """
        now, before = self.ports.clock.now(), self.observed_at
        late = before is not None and now - before > self.limits.silence * LATE_SHARE
        if (late and not self._late) or (self._no_space and not self._ask_disk()):
            self._first_seen.restart()
            self._workers.clear()
            self.trials.forget_all()
        self.observed_at = self._first_seen.now = now
        self._late = late
        return now

    def _poll_jobs(self) -> None:
        self._jobs = self.ports.dispatcher.poll()
        self._last_worker = max([self._last_worker, *map(worker_number, self._jobs)])
        if self._last_earlier_worker is None:
            self._last_earlier_worker = self._last_worker

    def _watched_workers(self) -> list[str]:
        """Workers whose jobs are not gone, and the last ones that this controller started: they may have failed."""
        recent = self._last_worker - self.limits.max_start_failures - self.limits.workers
        oldest = max(self._last_earlier_worker or 0, recent)
        return [n for n, job in self._jobs.items() if job.state is not JobState.GONE or worker_number(n) > oldest]

    def _worker(self, worker: ObservedWorker, job: Job) -> WorkerFacts:
        """A worker's facts; those of the last round if channel and dispatcher show the very same objects again."""
        cached = self._workers.get(worker.name)
        if cached is None or cached[0] is not worker or cached[1] is not job:
            cached = self._workers[worker.name] = (worker, job, self._worker_facts(worker, job))
        return cached[2]

    def _forget_workers(self, observed: Mapping[str, ObservedWorker]) -> None:
        """Drop what is kept of workers that are not watched any more, once they are as many as the others."""
        if len(self._workers) <= 2 * len(observed) + KEPT_WORKERS:
            return
        for name in [name for name in self._workers if name not in observed]:
            del self._workers[name]
            for kind in ("job", "beat"):
                self._first_seen.forget(kind, name)

    def _worker_facts(self, worker: ObservedWorker, job: Job) -> WorkerFacts:
        return WorkerFacts(
            name=worker.name,
            place=job.place,
            job=job.state,
            ready=worker.beat is not None,
            started=self._first_seen.since("job", worker.name, job.state),
            beat=self._first_seen.since("beat", worker.name, worker.beat),
            assigned=worker.assigned,
            draining=worker.draining,
            slots=worker.slots,
            handle=job.handle,
            node=job.node,
            reason=job.reason,
        )


def _failed_starts(workers: Sequence[WorkerFacts]) -> list[WorkerFacts]:
    """The last workers in a row that ended before they were ready, newest first; drained ones do not count."""
    failed: list[WorkerFacts] = []
    if not any(worker.job is JobState.GONE and not worker.ready for worker in workers):
        return failed
    for worker in sorted(workers, key=lambda worker: worker.name, reverse=True):
        if worker.ready:
            break
        if worker.job is JobState.GONE and not worker.draining:
            failed.append(worker)
    return failed
