"""A process that the tests' fork server makes is what Python itself would have made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import execnet
import pytest

from tests.helpers import warm
from tests.helpers.warm import ROOT, SOCKET, WarmPopen, start_server, write_python
from tests.helpers.xdist_worker import fork_workers

FACTS = "tests.helpers.process_facts"
PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm") / "server"


@pytest.fixture(autouse=True)
def server(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has imported nothing."""
    monkeypatch.setenv(SOCKET, "")
    monkeypatch.setenv("STARTER", str(os.getpid()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(warm, "MODULES", (*warm.MODULES, FACTS))
    start_server(path, until=os.getpid(), imports=())


def end(popen: type[subprocess.Popen[str]], *words: str, **more: Any) -> tuple[int, dict[str, Any], str, str]:
    """Exit code, what the process says of itself and at its end, and the last line of its errors."""
    more.setdefault("env", dict(os.environ))  # a library in C may have set variables that Python does not see
    process = popen([sys.executable, "-m", FACTS, *words], **PIPES, **more)
    assert (popen is WarmPopen) == (getattr(process, "_server", None) is not None)
    output, errors = process.communicate("some input", timeout=60)
    facts, _, rest = output.partition("\n")
    return process.returncode, json.loads(facts), rest, errors.strip().rpartition("\n")[2]


@pytest.mark.parametrize("how", ["0", "3", "raises", "interrupted", "SIGKILL", "SIGTERM"])
def test_it_ends_as_one_of_pythons_own(how: str) -> None:
    assert end(WarmPopen, how) == end(subprocess.Popen, how)


def test_it_looks_for_no_module_in_its_directory_if_it_was_told_so(tmp_path: Path) -> None:
    def where(popen: type[subprocess.Popen[str]]) -> list[str]:
        process = popen([sys.executable, "-P", "-m", FACTS, "0"], cwd=tmp_path, env=dict(os.environ), **PIPES)
        assert (popen is WarmPopen) == (getattr(process, "_server", None) is not None)
        path: list[str] = json.loads(process.communicate("some input", timeout=60)[0].partition("\n")[0])["path"]
        return path

    assert where(WarmPopen) == where(subprocess.Popen)
    assert str(tmp_path) not in where(WarmPopen)


@pytest.mark.parametrize("session", [False, True])
def test_it_has_its_own_directory_environment_and_session(session: bool, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}/somewhere", "MINE": "1"}
    more = {"cwd": tmp_path, "env": environment, "start_new_session": session}
    assert end(WarmPopen, "0", "a b", **more) == end(subprocess.Popen, "0", "a b", **more)


def test_it_has_the_open_files_that_it_is_passed_and_no_others(tmp_path: Path) -> None:
    with (tmp_path / "one").open("w") as one, (tmp_path / "two").open("w") as two:
        more = {"pass_fds": (two.fileno(), one.fileno())}
        assert end(WarmPopen, "0", **more) == end(subprocess.Popen, "0", **more)


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-c", "print('it ran')"],
        [sys.executable, "-m", "this"],
        "echo it ran",
    ],
)
def test_other_commands_are_left_to_python(command: Any) -> None:
    process = WarmPopen(command, shell=isinstance(command, str), **PIPES)
    assert process._server is None
    assert process.communicate(timeout=60)[0]


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "HF_HUB_OFFLINE", "PYTHONHASHSEED"])
def test_it_starts_anew_where_an_import_would_have_read_another_environment(variable: str) -> None:
    process = WarmPopen([sys.executable, "-m", FACTS, "0"], env={**os.environ, variable: "7"}, **PIPES)
    assert process._server is None
    assert process.communicate("", timeout=60)[0]
    assert process.returncode == 0


def test_a_signal_reaches_it_and_a_wait_may_time_out() -> None:
    process = WarmPopen([sys.executable, "-m", FACTS, "0"], **PIPES)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert process.poll() == -signal.SIGKILL


def test_a_program_named_python_does_the_same(tmp_path: Path) -> None:
    write_python(tmp_path)
    python = str(tmp_path / "python")
    done = subprocess.run([python, "-m", "sweep.cli", "status", "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no sweep nothing" in done.stderr
    assert subprocess.run([python, "-c", "print(7 * 6)"], capture_output=True, check=True).stdout == b"42\n"


def test_a_worker_of_xdist_is_made_by_the_server_and_starts_processes_anew(tmp_path: Path) -> None:
    specification = execnet.XSpec("popen")
    fork_workers(tmp_path, [specification], imports=())
    gateway = execnet.makegateway(specification)
    channel = gateway.remote_exec(
        "import os, subprocess, sys\n"
        "channel.send((open(f'/proc/{os.getppid()}/cmdline').read(), subprocess.Popen.__name__,"
        f" {SOCKET!r} in os.environ, [name for name in sys.modules if name.startswith('tests')]))"
    )
    parent, popen, uses_server, of_tests = channel.receive(60)
    gateway.exit()
    assert "tests.helpers.warm" in parent
    assert (popen, uses_server, of_tests) == ("Popen", False, [])


def test_without_a_server_it_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOCKET, "/nowhere/at/all")
    process = WarmPopen([sys.executable, "-m", FACTS, "0"], **PIPES)
    assert process._server is None
    assert process.communicate("", timeout=60)[0]


def test_processes_outlive_their_server(path: Path, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        start_server(tmp_path / "server", until=other.pid, imports=())
        process = WarmPopen([sys.executable, "-m", FACTS, "0"], **PIPES)
        other.kill()
    while not connection_refused(tmp_path / "server"):
        pass
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    assert process.stdout.read()


def connection_refused(path: Path) -> bool:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False
