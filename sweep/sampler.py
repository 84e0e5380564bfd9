"""An Optuna sampler that learns from partial curves: it proposes what promises most by `strategy.forecast`.

Invariants: the proposal is a function of the study's trials and the seed. Trials that run or are paused count by
their reports, and are taken to end as forecast, so that workers do not all try the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from sweep.distributions import decode
from sweep.strategy.encoding import Axis, Floats, axis, encode
from sweep.strategy.forecast import Known, forecast

optuna.logging.set_verbosity(optuna.logging.ERROR)
