"""The simulated queue's settings and the world that they describe."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from sweep.queues.simulated.section import SimulatedQueue, SimulationModel

SHIPPED = Path(__file__).resolve().parents[3] / "launch_queues" / "simulated.yaml"


def test_what_the_file_ships_are_the_fates_that_the_code_has() -> None:
    shipped = yaml.safe_load(SHIPPED.read_text())
    defaults = dataclasses.asdict(SimulationModel())
    assert {name: shipped[name] for name in defaults} == defaults


def test_a_queue_says_what_happens_to_its_world() -> None:
    queue = SimulatedQueue(crashes=0.25, trial_seconds=7.0)
    assert queue.simulation_model == dataclasses.replace(SimulationModel(), crashes=0.25, trial_seconds=7.0)
