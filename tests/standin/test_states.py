"""How runs end, and what their state says: exit codes, stops, preemption, silence, deletion."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.standin.plugin import environment
from tests.standin.server import StandIn

pytestmark = pytest.mark.slow

TRIAL = """
import signal, sys, time, wandb
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have had it ignored
run = wandb.init(project="p", id=sys.argv[1], settings=wandb.Settings(finish_timeout=60))
print("ready", flush=True)
for step in range(6000):
    run.log({"loss": 1.0 / (step + 1)})
    time.sleep(0.1)
"""


def process(standin: StandIn, name: str, **more: str) -> subprocess.Popen[str]:
    """A trial of its own, without its parent's service; it hears of stops within a second."""
    env = environment(standin, WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL="1", **more)
    started = subprocess.Popen([sys.executable, "-c", TRIAL, name], env=env, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


@pytest.mark.parametrize(("code", "state"), [(0, "finished"), (1, "failed"), (255, "failed")])
def test_the_exit_code_is_the_state(standin: StandIn, wandb_here: Any, code: int, state: str) -> None:
    wandb_here.init(project="p", id="one").finish(exit_code=code)
    run = standin.runs["team/p/one"]
    assert (run.state, run.exit_code) == (state, code)
    assert wandb_here.Api().run("team/p/one").state == state


def test_a_stop_reaches_the_function_that_was_given(standin: StandIn, wandb_here: Any) -> None:
    """`stop_fn` instead of a signal: the trial ends by itself, at its next step, with its own exit code."""
    asked: list[float] = []
    settings = wandb_here.Settings(stop_fn=lambda: asked.append(time.time()), x_file_stream_transmit_interval=1)
    run = wandb_here.init(project="p", id="one", settings=settings)
    run.log({"loss": 1.0})
    wandb_here.Api().run("team/p/one").stop()
    end = time.monotonic() + 300
    while not asked and time.monotonic() < end:
        run.log({"loss": 1.0})
        time.sleep(0.1)
    assert asked
    run.finish(exit_code=0)
    told = standin.runs["team/p/one"]
    assert len(told.stop_requests) == 1
    assert told.stop_told[0] <= asked[0]
    assert told.state == "finished"


def test_a_stop_interrupts_a_trial_that_gave_no_function(standin: StandIn) -> None:
    trial = process(standin, "one")
    standin.stop_run("team/p/one")
    assert trial.wait(300) != 0
    assert standin.runs["team/p/one"].state == "killed"


def test_a_trial_that_is_killed_falls_silent_and_has_crashed(standin: StandIn, wandb_here: Any) -> None:
    standin.limits.crash_after = 5.0
    trial = process(standin, "one")
    api = wandb_here.Api()
    assert api.run("team/p/one").state == "running"
    trial.send_signal(signal.SIGKILL)
    trial.wait(60)
    standin.wait(lambda it: it.runs["team/p/one"].state == "crashed", 30)
    assert api.run("team/p/one").state == "running"  # what it was told before
    api.flush()
    assert api.run("team/p/one").state == "crashed"


def test_a_preempted_run(standin: StandIn, wandb_here: Any) -> None:
    run = wandb_here.init(project="p", id="one", settings=wandb_here.Settings(x_file_stream_transmit_interval=1))
    run.log({"loss": 1.0})
    run.mark_preempting()
    standin.wait(lambda it: it.runs["team/p/one"].state == "preempting")
    run.finish(exit_code=1)
    assert standin.runs["team/p/one"].state == "preempted"


def test_a_deleted_run_cannot_be_begun_again(standin: StandIn, wandb_here: Any) -> None:
    wandb_here.init(project="p", id="one").finish()
    wandb_here.Api().run("team/p/one").delete()
    assert "team/p/one" not in standin.runs
    with pytest.raises(wandb_here.errors.CommError, match="Could not find run"):
        wandb_here.Api().run("team/p/one")
    with pytest.raises(wandb_here.errors.CommError, match="previously created and deleted"):
        wandb_here.init(project="p", id="one")


def test_a_run_deleted_while_it_runs(standin: StandIn, wandb_here: Any, tmp_path: Path) -> None:
    """Its client goes on without a server, and the end is not told."""
    run = wandb_here.init(project="p", id="one", settings=wandb_here.Settings(x_file_stream_transmit_interval=1))
    run.log({"loss": 1.0})
    standin.wait(lambda it: it.counted("file_stream") > 0)
    standin.delete_run("team/p/one")
    run.log({"loss": 2.0})
    run.finish(exit_code=0)
    assert standin.runs == {}
