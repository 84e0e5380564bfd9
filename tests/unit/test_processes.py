"""How our processes are started, and what is said when one of them ends without an answer."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sweep import processes
from sweep.errors import GiveUp
from sweep.processes import PreforkServer, clean_env, ended_unexpectedly, python_command
from trainer.process_end import how_it_ended, last_line
from trainer.socket_messages import receive_message, send_message

START = """
import os, resource, signal, socket, sys, time
from trainer.socket_messages import receive_message, send_message
channel = socket.socket(fileno=int(sys.argv[1]))
"""
ASKED = f"{START}\nreceive_message(channel)\n"


def server(monkeypatch: pytest.MonkeyPatch, program: str) -> PreforkServer:
    """A prefork server whose process runs this program; the number of its socket is the first argument."""
    monkeypatch.setattr(processes, "python_command", lambda *words: [sys.executable, "-c", program, words[-1]])
    return PreforkServer()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (f"{ASKED}os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL, which the system sends when memory runs out"),
        (f"{START}os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL"),
        (f"{ASKED}os.kill(os.getpid(), signal.SIGXCPU)", "limit of processor time"),
        (f"{ASKED}os.kill(os.getpid(), signal.SIGTERM)", "signal SIGTERM; it wrote nothing"),
        (f"{ASKED}sys.exit('no room on the tray')", "exit code 1; its last words: no room on the tray"),
        (f"{ASKED}sys.exit(0)", "exit code 0; it wrote nothing"),
        (f"{ASKED}raise MemoryError('no memory')", "exit code 1; its last words: MemoryError: no memory"),
        ("import no_such_module", "its last words: ModuleNotFoundError: No module named 'no_such_module'"),
        (f"{ASKED}channel.sendall(bytes(3)); channel.close(); sys.exit(4)", "exit code 4"),
        (f"{ASKED}channel.sendall(bytes(7) + b'\\x09half'); sys.exit(5)", "exit code 5"),
        (f"{ASKED}print('x' * 100_000, file=sys.stderr); sys.exit(6)", "exit code 6"),
    ],
    ids=lambda text: None,
)
def test_a_process_that_ends_while_it_is_asked_is_one_sentence(
    program: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = server(monkeypatch, program)
    with pytest.raises(GiveUp) as refused:
        asked.ask({"verb": "probe", "config": "x" * 3_000_000})
    asked.close()
    assert said in str(refused.value)
    assert "the process that reads the data ended with" in str(refused.value)
    assert len(str(refused.value)) < 1000
    assert "\n" not in str(refused.value)


def test_a_process_that_closes_its_socket_and_goes_on_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "END_SECONDS", 0.1)
    asked = server(monkeypatch, f"{ASKED}channel.close(); time.sleep(600)")
    with pytest.raises(GiveUp, match="signal SIGKILL"):
        asked.ask({"verb": "probe"})
    asked.close()


def test_a_process_that_has_ended_makes_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = server(monkeypatch, "")
    asked._at(0).popen.wait()
    assert asked.start(0, {"verb": "start", "room": "x" * 3_000_000}, ()) is False
    asked.close()


@pytest.mark.parametrize("size", [0, 1, 8, 1 << 16, 5_000_000])
def test_requests_and_answers_have_any_length(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    echo = f"{START}\nwhile (data := receive_message(channel)[0]) is not None: send_message(channel, data)"
    asked = server(monkeypatch, echo)
    for _ in range(2):
        assert asked.ask({"text": "x" * size}) == {"text": "x" * size}
    asked.close()


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_open_files_come_with_the_message(size: int, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    (tmp_path / "file").write_text("what it says")
    program = f"{START}\ndata, files = receive_message(channel)\nprint(len(data), *map(os.fstat, files))"
    command = [sys.executable, "-c", program, str(theirs.fileno())]
    reader = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdout=subprocess.PIPE, text=True)
    theirs.close()
    with ours, (tmp_path / "file").open() as file, (tmp_path / "other").open("w") as other:
        send_message(ours, b"x" * size, (file.fileno(), other.fileno()))
        words = reader.communicate(timeout=60)[0]
    assert words.startswith(f"{size} os.stat_result")
    assert f"st_ino={(tmp_path / 'file').stat().st_ino}" in words
    assert f"st_ino={(tmp_path / 'other').stat().st_ino}" in words


@pytest.mark.parametrize("sent", [b"", b"\0\0", bytes(7) + b"\x05", bytes(7) + b"\x05half"])
def test_a_message_that_is_cut_off_is_none(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(sent)
        assert receive_message(theirs) == (None, [])


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exit code 0"),
        (1, "exit code 1"),
        (-9, "signal SIGKILL, which the system sends when memory runs out"),
        (-15, "signal SIGTERM"),
        (-24, "signal SIGXCPU, which means that its limit of processor time was reached"),
        (-25, "signal SIGXFSZ, which means that its limit of a file's size was reached"),
        (137, "exit code 137, which stands for SIGKILL"),
        (-250, "exit code -250"),
        (255, "exit code 255"),
    ],
)
def test_how_a_process_ended(code: int, text: str) -> None:
    assert how_it_ended(code) == text


@pytest.mark.parametrize(
    ("text", "line"), [("", ""), ("\n \n", ""), ("a\nb\n\n", "b"), ("x" * 400, "x" * 300 + " …"), ("a\r\n", "a")]
)
def test_the_last_words(text: str, line: str) -> None:
    assert last_line(text) == line


def test_the_advice_is_about_limits_only_after_a_signal() -> None:
    assert "limits" in str(ended_unexpectedly("it", -9, ""))
    assert "limits" not in str(ended_unexpectedly("it", 1, "ModuleNotFoundError: No module named 'torch'"))


@pytest.mark.parametrize(
    ("given", "inherited"),
    [
        (None, None),
        ("", ""),
        (":/x", "/x"),  # as `PYTHONPATH=$PYTHONPATH:/x` gives it
        ("/x:", "/x"),
        ("/x::/y", "/x:/y"),
        ("lib:/y", "{here}/lib:/y"),
    ],
)
def test_pythonpath_does_not_mean_the_working_directory(
    given: str | None, inherited: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if given is not None:
        monkeypatch.setenv("PYTHONPATH", given)
    assert clean_env().get("PYTHONPATH") == (inherited and inherited.format(here=tmp_path))


def test_no_module_is_looked_for_in_the_working_directory(tmp_path: Path) -> None:
    for name in ("random", "types", "trainer", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')")
    code = "import json, random, types, trainer, sys; print(sys.flags.safe_path, trainer.__file__)"
    done = subprocess.run(
        python_command("-c", code), cwd=tmp_path, env=clean_env(), capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("True ")
    assert str(tmp_path) not in done.stdout


def limited(kind: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (value, value))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "value"), [(resource.RLIMIT_CPU, 1), (resource.RLIMIT_AS, 400 << 20)])
def test_the_real_one_under_a_limit_is_one_sentence(kind: int, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def popen(*args: object, **more: object) -> subprocess.Popen[bytes]:
        return start(*args, preexec_fn=limited(kind, value), **more)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(subprocess, "Popen", popen)
    asked = PreforkServer()
    with pytest.raises(GiveUp, match=r"the process that reads the data ended with (exit code|signal)"):
        asked.ask({"verb": "probe", "config": {}, "components": [], "speed": False})
    asked.close()


@pytest.mark.slow
def test_the_real_one_that_is_killed_while_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = PreforkServer()
    receive = asked._at(0).receive

    def killed() -> bytes | None:
        os.kill(asked._at(0).popen.pid, 9)  # the request was sent, the answer not
        return receive()

    monkeypatch.setattr(asked._at(0), "receive", killed)
    with pytest.raises(GiveUp, match="SIGKILL"):
        asked.ask({"verb": "probe", "config": {"x": "y" * 500_000}, "components": [], "speed": False})
    asked.close()
