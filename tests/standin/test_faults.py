"""What the unmodified client does when the server fails: it repeats, nothing is lost, and nothing is there twice."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.standin.faults import Fault
from tests.standin.plugin import environment, here
from tests.standin.server import StandIn

pytestmark = pytest.mark.slow


def begin(wandb_here: Any, **more: Any) -> Any:
    settings = wandb_here.Settings(x_file_stream_transmit_interval=1, **more)
    return wandb_here.init(project="p", id="one", settings=settings)


def logged(standin: StandIn) -> list[float]:
    return [row["loss"] for row in standin.runs["team/p/one"].history]


STREAM: dict[str, Callable[[StandIn], Fault]] = {
    "429": lambda it: it.faults.answer(429, "file_stream", count=2),
    "429 with Retry-After": lambda it: it.faults.answer(429, "file_stream", count=1, retry_after=1),
    "500": lambda it: it.faults.answer(500, "file_stream", count=1),
    "dropped": lambda it: it.faults.drop("file_stream", count=1),
    "dropped, though it was taken": lambda it: it.faults.drop("file_stream", count=1, acted=True),
    "slow": lambda it: it.faults.slow(2.0, "file_stream", count=1),
}


@pytest.mark.parametrize("fault", STREAM.values(), ids=STREAM)
def test_a_failing_filestream_loses_and_doubles_nothing(
    standin: StandIn, wandb_here: Any, fault: Callable[[StandIn], Fault]
) -> None:
    run = begin(wandb_here)
    run.log({"loss": 3.0})
    standin.wait(lambda it: logged(it) == [3])
    told = fault(standin)
    run.log({"loss": 2.0})
    run.log({"loss": 1.0})
    run.finish(exit_code=0)
    assert told.hits == told.count
    assert logged(standin) == [3, 2, 1]
    assert standin.runs["team/p/one"].state == "finished"


@pytest.mark.parametrize("acted", [False, True], ids=["not taken", "taken, but the answer was lost"])
def test_a_run_begins_once_though_its_beginning_is_repeated(standin: StandIn, wandb_here: Any, acted: bool) -> None:
    fault = standin.faults.drop("UpsertBucket", count=1, acted=acted)
    begin(wandb_here).finish()
    assert (fault.hits, standin.runs["team/p/one"].starts) == (1, 1)


def test_a_failing_upload_is_repeated(standin: StandIn, wandb_here: Any, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"weights")
    fault = standin.faults.answer(500, "upload", count=1)
    with begin(wandb_here) as run:
        artifact = wandb_here.Artifact("adapters", type="model")
        artifact.add_file(str(tmp_path / "weights.bin"))
        run.log_artifact(artifact).wait()
    assert fault.hits == 1
    assert standin.content(standin.artifacts["team/p/adapters:v0"], "weights.bin") == b"weights"


READ: dict[str, Callable[[StandIn], Fault]] = {
    "429": lambda it: it.faults.answer(429, "Runs", count=1),
    "429 with Retry-After": lambda it: it.faults.answer(429, "Runs", count=1, retry_after=1),
    "500": lambda it: it.faults.answer(500, "Runs", count=1),
    "dropped": lambda it: it.faults.drop("Runs", count=1),
}


@pytest.mark.parametrize("fault", READ.values(), ids=READ)
def test_a_failing_question_is_asked_again(
    standin: StandIn, wandb_here: Any, fault: Callable[[StandIn], Fault]
) -> None:
    begin(wandb_here).finish()
    told = fault(standin)
    assert [run.id for run in wandb_here.Api().runs("team/p")] == ["one"]
    assert (told.hits, standin.counted("Runs")) == (1, 2)


def test_a_wrong_question_is_not_asked_again(standin: StandIn, wandb_here: Any) -> None:
    begin(wandb_here).finish()
    standin.faults.answer(400, "Runs")
    with pytest.raises(Exception, match="400"):
        len(wandb_here.Api().runs("team/p"))
    assert standin.counted("Runs") == 1


def test_a_stop_reaches_the_server_though_it_fails_once(standin: StandIn, wandb_here: Any) -> None:
    run = begin(wandb_here)
    standin.faults.answer(500, "StopRun", count=1)
    wandb_here.Api().run("team/p/one").stop()
    assert len(standin.runs["team/p/one"].stop_requests) == 1
    run.finish()


def test_a_stop_waits_for_a_server_that_is_down(standin: StandIn, wandb_here: Any) -> None:
    """The call has no time limit of its own: it returns when the stop has been carried out."""
    run = begin(wandb_here)
    found = wandb_here.Api().run("team/p/one")
    with standin.outage():
        stop = threading.Thread(target=found.stop)
        stop.start()
        threading.Event().wait(1.0)
        assert stop.is_alive()
    stop.join(300)
    assert len(standin.runs["team/p/one"].stop_requests) == 1
    run.finish()


def test_a_question_with_a_time_limit(standin: StandIn, wandb_here: Any) -> None:
    begin(wandb_here).finish()
    api = wandb_here.Api(timeout=2)
    with standin.outage(), pytest.raises(Exception, match="did not respond in time"):
        len(api.runs("team/p"))


def test_with_few_repetitions_every_call_gives_up(standin: StandIn) -> None:
    """For a controller that has other things to do: said in its environment, and it holds for stops and pushes, too."""
    few = {"WANDB_X_GRAPHQL_RETRY_MAX": "1", "WANDB_X_GRAPHQL_RETRY_WAIT_MIN_SECONDS": "1"}
    with here(standin, **few) as wandb_here:
        begin(wandb_here).finish()
        api = wandb_here.Api()
        run = api.run("team/p/one")
        api.create_run_queue("lab", "local-process", entity="team")
        with standin.outage():
            for call in (run.stop, pushed, lambda: len(api.runs("team/p"))):
                with pytest.raises(Exception, match="giving up after 2 attempt"):
                    call()
    assert (standin.items, standin.runs["team/p/one"].stop_requests) == ([], [])


def test_faults_are_for_those_they_name(standin: StandIn, wandb_here: Any) -> None:
    """By whose key a request comes: a controller may be cut off while its trials are not."""
    begin(wandb_here).finish()
    mine = standin.faults.answer(500, who="controller")
    assert len(wandb_here.Api().runs("team/p")) == 1
    assert mine.hits == 0
    with pytest.raises(Exception, match="Failed to verify credentials"):
        wandb_here.Api(api_key=standin.new_key("controller"), timeout=3)
    assert mine.hits > 0


def test_a_server_that_is_down_for_a_while(standin: StandIn, wandb_here: Any) -> None:
    """What was logged meanwhile arrives, once."""
    run = begin(wandb_here)
    run.log({"loss": 3.0})
    standin.wait(lambda it: logged(it) == [3])
    with standin.outage():
        run.log({"loss": 2.0})
        threading.Event().wait(2.0)
    run.log({"loss": 1.0})
    run.finish(exit_code=0)
    assert logged(standin) == [3, 2, 1]
    assert standin.runs["team/p/one"].state == "finished"


TRIAL = """
import sys, wandb
settings = wandb.Settings(x_file_stream_transmit_interval=1, init_timeout=3, finish_timeout=2)
run = wandb.init(project="p", id="one", settings=settings)
run.log({"loss": 3.0})
print(run.sync_dir, flush=True)
sys.stdin.readline()
run.log({"loss": 2.0})
run.finish(exit_code=0)
"""


def trial(standin: StandIn) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TRIAL]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment(standin), text=True, **pipes)


def test_a_server_that_is_down_at_the_end(standin: StandIn) -> None:
    """With `finish_timeout` the trial ends, and what it could not tell is on its disk, for `wandb sync`. That sends all
    of it after what is there, so that rows are to be read by their `_step`."""
    started = trial(standin)
    assert started.stdout is not None
    directory = started.stdout.readline().strip()
    standin.wait(lambda it: logged(it) == [3])
    with standin.outage():
        _, said = started.communicate("\n", timeout=300)
        assert started.returncode == 0, said
    assert (logged(standin), standin.runs["team/p/one"].state) == ([3], "running")
    command = [sys.executable, "-m", "wandb", "sync", "--no-skip-online", directory]
    subprocess.run(command, env=environment(standin), check=True, capture_output=True)
    told = standin.runs["team/p/one"]
    assert {row["_step"]: row["loss"] for row in told.history} == {0: 3, 1: 2}
    assert (told.state, len(told.history)) == ("finished", 3)


def test_a_server_that_is_down_at_the_beginning(standin: StandIn) -> None:
    standin.down()
    started = trial(standin)
    _, said = started.communicate("\n", timeout=300)
    assert started.returncode != 0
    assert "Timed out while retrying" in said
    standin.up()
    assert standin.runs == {}


def agent_api(standin: StandIn, wandb_here: Any) -> tuple[Any, list[str]]:
    """The agent's own calls, and the ids of two agents."""
    from wandb.sdk.launch.api import LaunchApi

    wandb_here.Api().create_run_queue("lab", "local-process", entity="team")
    api = LaunchApi()
    ids = [api.create_launch_agent("team", "model-registry", ["lab"], {}, "")["launchAgentId"] for _ in range(2)]
    return api, ids


def pushed() -> Any:
    from wandb.sdk.launch import launch_add

    return launch_add(docker_image="repo/trainer:1", project="p", entity="team", queue_name="lab", run_id="one")


def test_an_agent_that_dies_with_an_item(standin: StandIn, wandb_here: Any) -> None:
    """Its lease runs out, and another agent gets it; only one of them can take it."""
    api, (first, second) = agent_api(standin, wandb_here)
    item = pushed()
    taken = api.pop_from_run_queue("lab", "team", "model-registry", first)
    assert taken["runQueueItemId"] == item.id
    assert api.pop_from_run_queue("lab", "team", "model-registry", second) is None
    standin.limits.lease = 0.0
    assert api.pop_from_run_queue("lab", "team", "model-registry", second)["runQueueItemId"] == item.id
    assert api.ack_run_queue_item(item.id, "one")
    with pytest.raises(wandb_here.errors.CommError, match="already been acknowledged"):
        api.ack_run_queue_item(item.id, "one")
    assert [(told.state, told.run_id) for told in standin.items] == [("CLAIMED", "one")]


def test_a_pop_whose_answer_is_lost(standin: StandIn, wandb_here: Any) -> None:
    """The item is leased to nobody who knows, until the lease has run out."""
    api, (agent, _) = agent_api(standin, wandb_here)
    pushed()
    standin.faults.drop("popFromRunQueue", count=1, acted=True)
    assert api.pop_from_run_queue("lab", "team", "model-registry", agent) is None
    assert [told.state for told in standin.items] == ["LEASED"]
    standin.limits.lease = 0.0
    assert api.pop_from_run_queue("lab", "team", "model-registry", agent) is not None


def test_an_agent_is_told_to_stop(standin: StandIn, wandb_here: Any) -> None:
    api, (agent, _) = agent_api(standin, wandb_here)
    assert not api.get_launch_agent(agent)["stopPolling"]
    standin.stop_agent(agent)
    assert api.get_launch_agent(agent)["stopPolling"]
