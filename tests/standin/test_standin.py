"""The stand-in itself: what it does not know it refuses, and it can be started from a shell."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.standin.plugin import environment
from tests.standin.server import StandIn

REPOSITORY = Path(__file__).resolve().parents[2]


def ask(standin: StandIn, path: str, body: object, key: str | None = None) -> tuple[int, str]:
    headers = {"Authorization": "Basic " + base64.b64encode(f"api:{key or standin.key}".encode()).decode()}
    request = urllib.request.Request(standin.url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def bare(tmp_path: Path) -> StandIn:
    """Without the fixture's own look at what was refused."""
    return StandIn(tmp_path)


def test_an_unknown_operation_is_refused_by_name(bare: StandIn) -> None:
    with bare:
        status, said = ask(bare, "/graphql", {"query": "mutation LaunchMissiles { launch { success } }"})
        assert (status, "LaunchMissiles" in said) == (400, True)
        assert ask(bare, "/nowhere", {})[0] == 400
    assert bare.refused == ["LaunchMissiles", "POST /nowhere"]
    assert [line.status for line in bare.requests] == [400, 400]


def test_what_breaks_it_is_refused_too(bare: StandIn) -> None:
    with bare:
        status, said = ask(bare, "/graphql", {"query": "mutation UseArtifact { x }", "variables": {}})
        assert (status, "artifactID is missing" in said) == (400, True)
        query = {"query": "query Runs { x }", "variables": {"project": "p", "perPage": "many"}}
        assert ask(bare, "/graphql", query)[0] == 400
    assert [words.split(":")[0] for words in bare.refused] == ["Runs"]


def test_a_stranger_is_not_served(bare: StandIn) -> None:
    with bare:
        assert ask(bare, "/graphql", {"query": "query Runs { x }"}, key="0" * 40)[0] == 401
        assert ask(bare, "/files/team/p/one/file_stream", {}, key="0" * 40)[0] == 401
        mine = bare.new_key("controller")
        assert ask(bare, "/graphql", {"query": "query Viewer { x }"}, key=mine)[0] == 200
    assert [line.who for line in bare.requests] == ["", "", "controller"]
    assert bare.counted("Viewer", who="controller") == 1


def test_down_and_up_again_on_the_same_port(bare: StandIn) -> None:
    with bare:
        url = bare.url
        with bare.outage(), pytest.raises(urllib.error.URLError):
            ask(bare, "/graphql", {"query": "query Viewer { x }"})
        assert bare.url == url
        assert ask(bare, "/graphql", {"query": "query Viewer { x }"})[0] == 200


def test_its_environment_names_the_test_directory_alone(bare: StandIn, tmp_path: Path) -> None:
    with bare:
        assert len(bare.env["WANDB_API_KEY"]) == 40
        places = [value for name, value in bare.env.items() if name.endswith("_DIR")]
        assert len(places) == 5
        assert all(Path(place).is_relative_to(tmp_path) for place in places)
        os.environ["WANDB_SERVICE"] = "stale"
        assert "WANDB_SERVICE" not in environment(bare)
        del os.environ["WANDB_SERVICE"]


@pytest.mark.slow
def test_up_from_a_shell(tmp_path: Path) -> None:
    server = subprocess.Popen([sys.executable, "-m", "tests.standin", "up", str(tmp_path)], cwd=REPOSITORY)
    try:
        file = tmp_path / "env"
        end = time.monotonic() + 600
        while not file.exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        line = f'. {file}; exec {sys.executable} -c "import wandb; print(wandb.Api().viewer.username)"'
        env = {**os.environ, "WANDB_SERVICE": "stale"}
        done = subprocess.run(["sh", "-c", line], env=env, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, "tester"), done.stderr
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0
