"""The forecast of a sweep at one moment, with the curves that it is made from.

Invariants: pure; all running trials are assumed to end as expected. A forecast is computed once for the same reports
and ends: a report is followed by a verdict and a promotion on the same numbers.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import numpy as np

from sweep.search.strategy.acquisition import Acquisition, acquisition
from sweep.search.strategy.encoding import Floats, axes_of, encode
from sweep.search.strategy.forecast import forecast
from sweep.search.strategy.measure import Measure
from sweep.search.strategy.observations import TrialData
from sweep.search.strategy.protocol import Curve, CurveStatus
from sweep.search.strategy.trial_data import CurveNumbers, trial_data
from sweep.search.strategy.worker_speed import WorkerSpeeds, relative_speeds, worker_speeds

ENDED = (CurveStatus.COMPLETE, CurveStatus.FAILED)


@dataclass(frozen=True)
class SweepForecast:
    """What the next steps of a sweep are worth.

    Args:
        milestones: the number of measurements of a trial that runs to its end.
        trials: the data of all trials that have not failed, by number.
    """

    curves: Mapping[int, Curve]
    milestones: int
    trials: Mapping[int, TrialData]
    acquisition: Acquisition

    def end(self, number: int) -> tuple[float, float]:
        """Mean of y at the end of a trial, and the standard deviation of its difference to the incumbent's."""
        seen = self.acquisition.forecast
        mean, sd = seen.ends(seen.observations.ends([self.trials[number]]))
        return float(mean[0]), float(sd[0])

    def loss(self, y: float) -> float:
        """The loss that a value of y at the end stands for."""
        return self.acquisition.forecast.loss(y)

    @property
    def target(self) -> float:
        """The log loss that an end must be below to count as better than the best."""
        return self.acquisition.forecast.incumbent.target

    def value(self, number: int) -> float:
        """The value of continuing a trial."""
        return float(self.acquisition.value_of_trials([self.trials[number]])[0])

    def value_of_new(self, candidates: int) -> float:
        """The value of the best new trial among a fixed sample of configurations.

        Args:
            candidates: the size of the sample.
        """
        params = [curve.params for _, curve in sorted(self.curves.items())]
        x = sample_points(encode(self.acquisition.observations.axes, params), candidates)
        return float(self.acquisition.value_of_new(x).max())

    def best_paused(self, excluded: Container[int] = ()) -> tuple[int | None, float]:
        """The paused trial that is worth most, with its value; None and -infinity if there is none.

        Args:
            excluded: trials that are left out.
        """
        paused = [
            self.trials[number]
            for number, curve in sorted(self.curves.items())
            if curve.status is CurveStatus.PAUSED and number not in excluded and curve.reports
        ]
        if not paused:
            return None, -np.inf
        values = self.acquisition.value_of_trials(paused)
        best = int(values.argmax())
        return paused[best].number, float(values[best])

    def should_move(self, number: int) -> bool:
        """Whether a running trial should be paused, so that it continues on a faster worker."""
        speeds = self._worker_speeds() if self.curves[number].worker else None
        if speeds is None or number not in speeds.contenders:
            return False
        others = sum(self.curves[other].status is CurveStatus.PAUSED for other in speeds.contenders)
        return speeds.faster(self.curves[number].worker, self._remaining(number), self.milestones) > others

    def waiting_for_faster(self, worker: str) -> list[int]:
        """The paused trials that should wait for a faster worker than this one."""
        speeds = self._worker_speeds()
        if speeds is None:
            return []
        waiting: list[int] = []
        for number in speeds.contenders:
            paused = self.curves[number].status is CurveStatus.PAUSED
            if paused and speeds.faster(worker, self._remaining(number), self.milestones) > len(waiting):
                waiting.append(number)
        return waiting

    def _remaining(self, number: int) -> int:
        return self.milestones - len(self.trials[number].losses)

    def _worker_speeds(self) -> WorkerSpeeds | None:
        """None if no worker is known to be faster than another."""
        speeds = relative_speeds(self.curves.values())
        if not speeds:
            return None
        trials = [
            self.trials[number]
            for number, curve in sorted(self.curves.items())
            if curve.reports and curve.status in (CurveStatus.RUNNING, CurveStatus.PAUSED)
        ]
        order = np.argsort(-self.acquisition.value_of_trials(trials, guarantee=False), kind="stable")
        guaranteed = {trial.number for trial in trials if self.acquisition.is_guaranteed(trial)}
        return worker_speeds(self.curves, speeds, [trials[at].number for at in order], guaranteed)


@dataclass
class ForecastCache:
    """The last forecast, kept until a trial reports or ends.

    Args:
        measure: how the objective is read.
        with_features: whether features are used.
    """

    measure: Measure
    with_features: bool
    _key: object = None
    _trials: dict[int, TrialData] = field(default_factory=dict)
    _acquisition: Acquisition | None = None
    _numbers: CurveNumbers = field(init=False)

    def __post_init__(self) -> None:
        self._numbers = CurveNumbers(self.measure)

    def losses(self, curve: Curve, milestones: int) -> tuple[float, ...]:
        """The losses of a curve's measurements."""
        return self._numbers.read(curve, milestones)[0]

    def get(self, curves: Mapping[int, Curve], milestones: int, judged: int | None = None) -> SweepForecast | None:
        """The forecast of a sweep; None if too little is observed.

        Args:
            judged: a running trial that is not assumed to end as expected, since it is judged.
        """
        ends = [(n, len(c.reports), c.status if c.status in ENDED else None) for n, c in sorted(curves.items())]
        if self._key != (milestones, ends):
            self._trials = trial_data(curves, milestones, self.with_features, self._numbers)
            axes = axes_of([trial.params for trial in self._trials.values()])
            fitted = forecast(list(self._trials.values()), axes, self.measure.positions(milestones))
            self._acquisition = acquisition(fitted) if fitted is not None else None
            self._key = (milestones, ends)
        if self._acquisition is None:
            return None
        running = [self._trials[n] for n, c in curves.items() if c.status is CurveStatus.RUNNING and n != judged]
        positions = self.measure.positions(milestones)
        return SweepForecast(curves, positions, self._trials, self._acquisition.assuming(running))


def sample_points(existing: Floats, count: int) -> Floats:
    """A fixed sample of points in the unit cube, shape (count, coordinates).

    Args:
        existing: the points of the trials. A coordinate of few different values takes only those.
    """
    rng = np.random.default_rng(0)  # the same sample each time
    columns = []
    for k in range(existing.shape[1]):
        values = np.unique(existing[:, k])
        columns.append(rng.choice(values, count) if len(values) <= 8 and len(existing) > 10 else rng.random(count))
    return np.array(columns).T.reshape(count, existing.shape[1])
