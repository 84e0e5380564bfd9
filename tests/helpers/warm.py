"""Starts the project's programs as forks of one process that has imported what they need.

A process that imports torch and torchtune needs seven seconds of processor time before it does anything, and the tests
start more than a hundred of them. `WarmPopen` is `subprocess.Popen` for commands of the form
`[sys.executable, "-m", MODULE, …]`, with or without a `-P` before: a fork server makes the process, which then runs
MODULE as `python -m` does.
It starts a fresh process if there is no server, if MODULE is not one of `MODULES`, or if a variable that libraries read
while they are imported differs from the server's.

    start_server(path, until=os.getpid())
    subprocess.run(…)  # within `warm_processes()`, or in any process that a server made

Invariants: the server has one thread and runs none of the project's code; so each process starts from the state that
the imports left. A process gets its own environment, directory, open files, session, and module search path. A process
that the server made uses `WarmPopen` itself. The processes outlive their server.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import inspect
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

# The programs, each by the module that `python -m` runs.
MODULES = (
    "sweep.cli",
    "trainer",
    "trainer.entry.launch_job",
    "trainer.entry.tune_run",
    "torchtune._cli.tune",
    "tests.helpers.fakes",
    "tests.helpers.store_worker",
    "tests.helpers.xdist_worker",
)
# What they import. None of it is a program itself: `runpy` warns of a program that is imported already.
IMPORTS = (
    "torch",
    "hydra",
    "optuna",
    "plotly",
    "rich.live",
    "scipy.io",  # datasets imports it when it reads its first file
    "sweep.cli.main",
    "sweep.report.reader",
    "sweep.wiring.session",
    "tests.helpers.warm_grammars",
    "torchtune.modules.peft",
    "torchtune.training",
    "trainer.entry.prefork",
    "trainer.entry.probe",
    "trainer.evaluation.evaluate",
    "trainer.worker",
    "wandb",
)
SOCKET = "SWEEP_TESTS_FORK_SERVER"  # in the environment: the path of the server's socket
ROOT = Path(__file__).resolve().parents[2]
REQUEST_BYTES = 1 << 18
FILES = 16  # as many open files as a request can carry
# Variables that are read during an import. PYTHONPATH and PYTHONUNBUFFERED are obeyed after it.
READ_EARLY = (
    "CUDA",
    "HF_",
    "LD_",
    "MKL_",
    "OMP_",
    "PYTHON",
    "SWEEP_QUEUES",
    "TOKENIZERS_",
    "TORCH",
    "TRANSFORMERS_",
)
OBEYED = ("PYTHONPATH", "PYTHONUNBUFFERED")


def start_server(path: Path, until: int, imports: Sequence[str] = IMPORTS) -> None:
    """Have this process, and those it starts, use the server at a path; start it first, unless it is there.

    Args: see `ensure_server`.
    """
    ensure_server(path, until, imports)
    os.environ[SOCKET] = str(path)


def ensure_server(path: Path, until: int, imports: Sequence[str] = IMPORTS) -> None:
    """Start the server at a path, unless it is there; nobody uses it yet.

    Args:
        path: the server's socket; several processes may ask for the same at once.
        until: the id of a process; the server ends with it.
        imports: the modules that the server imports before it answers.
    """
    with path.with_suffix(".lock").open("w") as turn, path.with_suffix(".log").open("a") as log:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not path.exists():
            command = [sys.executable, "-m", "tests.helpers.warm", str(path), str(until), *imports]
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)
            while not path.exists():
                assert server.poll() is None, path.with_suffix(".log").read_text()
                time.sleep(0.02)


def write_python(directory: Path) -> None:
    """Write a program `python` that has the server make the project's programs; all else it leaves to Python."""
    write_program(directory / "python", "from tests.helpers.warm import be_python\nbe_python()")


def write_program(path: Path, code: str) -> None:
    """Write a program of this interpreter's that finds this checkout."""
    path.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}\n")
    path.chmod(0o755)


def be_python() -> None:
    """Do what Python would do with this process's arguments, in a process of the server's; end as that one does."""
    command = [sys.executable, *sys.argv[1:]]
    if _module_words(command) is None:
        os.execv(sys.executable, command)
    run_warm(command)


def run_warm(command: Sequence[str]) -> None:
    """Run a program of `MODULES` in a process of the server's; end as that one does."""
    process = WarmPopen(command)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: process.send_signal(number))
    code = process.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    sys.exit(code)


@contextmanager
def warm_processes() -> Iterator[None]:
    """`subprocess` asks the server for the project's programs while the block runs."""
    before = subprocess.Popen
    subprocess.Popen = WarmPopen  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen = before  # type: ignore[misc]


class WarmPopen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen`, which has the server of SWEEP_TESTS_FORK_SERVER make the project's programs.

    The process is the server's child and not this one's: its end is told over the connection.
    """

    _server: socket.socket | None = None

    def _execute_child(self, *args: Any) -> None:
        start = super()._execute_child  # type: ignore[misc]
        asked = inspect.signature(start).bind(*args).arguments
        if not _can_be_warm(asked) or not self._ask(asked):
            start(*args)

    def _ask(self, asked: Mapping[str, Any]) -> bool:
        """Have the process made; False if the server is gone or refuses."""
        files = [
            asked[name] if asked[name] != -1 else at for at, name in enumerate(("p2cread", "c2pwrite", "errwrite"))
        ]
        request = {
            "words": _module_words(asked["args"]),
            "safe": list(asked["args"])[1] == "-P",
            "directory": str(asked["cwd"] or Path.cwd()),
            "environment": dict(os.environ if asked["env"] is None else asked["env"]),
            "session": asked["start_new_session"],
            "group": os.getpgrp(),
            "kept": sorted(asked["pass_fds"]),
        }
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            server.connect(os.environ[SOCKET])
            socket.send_fds(server, [json.dumps(request).encode()], [*files, *request["kept"]])
            pid = int(server.recv(64) or b"0")
        except OSError:
            pid = 0
        if not pid:
            server.close()
            return False
        self._server, self.pid, self._child_created = server, pid, True
        names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[name] for name in names))  # type: ignore[attr-defined]
        return True

    def _internal_poll(self, *args: Any, **more: Any) -> int | None:
        if self._server is None:
            return super()._internal_poll(*args, **more)  # type: ignore[misc,no-any-return]
        with suppress(EOFError):  # its server has ended: nobody will tell
            return self._ended(0.0)
        return args[0] if args else more.get("_deadstate")

    def _wait(self, timeout: float | None) -> int | None:
        if self._server is None:
            return super()._wait(timeout)  # type: ignore[misc,no-any-return]
        if self._ended(timeout) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _ended(self, timeout: float | None) -> int | None:
        assert self._server is not None
        with self._waitpid_lock:  # type: ignore[attr-defined]
            if self.returncode is None:
                self._server.settimeout(timeout)
                with suppress(TimeoutError, BlockingIOError):
                    status = self._server.recv(64)
                    if not status:
                        raise EOFError(f"the fork server ended before {self.args!r}")
                    self.returncode = os.waitstatus_to_exitcode(int(status))
                    self._server.close()
        return self.returncode


def _can_be_warm(asked: Mapping[str, Any]) -> bool:
    args = asked["args"]
    plain = not any(asked[name] for name in ("preexec_fn", "executable", "shell"))
    if SOCKET not in os.environ or not plain or isinstance(args, str | bytes | os.PathLike):
        return False
    return _module_words(args) is not None


def _module_words(args: Sequence[str]) -> list[str] | None:
    """The module and the arguments of a command that runs one of `MODULES`; None for any other command."""
    words = [word for at, word in enumerate(args) if (at, word) != (1, "-P")]
    return words[2:] if words[:2] == [sys.executable, "-m"] and words[2:3] and words[2] in MODULES else None


# --- the server ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A process to become.

    Args:
        words: the module and its arguments.
        safe: modules are not looked for in its directory.
        session: whether it leads a session of its own; else it joins the process group, if it may.
        kept: numbers of the open files that it has beside the first three.
        files: the open files as they came: the first three, then those.
    """

    words: Sequence[str]
    safe: bool
    directory: str
    environment: Mapping[str, str]
    session: bool
    group: int
    kept: Sequence[int]
    files: Sequence[int]

    def become(self) -> None:
        """Run the module in this process, as `python -m` does."""
        self._take_files()
        with suppress(PermissionError):
            os.setsid() if self.session else os.setpgid(0, self.group)
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.directory)
        if self.environment.get("PYTHONUNBUFFERED"):
            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(write_through=True)  # type: ignore[union-attr]
        path = [part for part in self.environment.get("PYTHONPATH", "").split(os.pathsep) if part]
        sys.path[:] = [*([] if self.safe else [self.directory]), *path, *BASE_PATH]
        sys.argv[:] = list(self.words)
        subprocess.Popen = WarmPopen  # type: ignore[misc]
        try:
            runpy.run_module(self.words[0], run_name="__main__", alter_sys=True)
            code: object = 0
        except SystemExit as ended:
            code = ended.code
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
        end(code)

    def _take_files(self) -> None:
        """Give the open files their numbers, and close all others."""
        numbers = [0, 1, 2, *self.kept]
        first = max(numbers) + 1
        high = [fcntl.fcntl(file, fcntl.F_DUPFD, max(first, 64)) for file in self.files]
        for file, number in zip(high, numbers, strict=True):
            os.dup2(file, number, inheritable=number < 3 or number in self.kept)
        for file in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if file not in numbers:
                with suppress(OSError):  # that of the listing itself
                    os.close(file)


def end(code: object) -> NoReturn:
    """End as the interpreter does, but leave to the kernel what half a second would be spent on: freeing each object.

    Args:
        code: of a `SystemExit`; a negative one is that of a signal.
    """
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):  # closed, or nobody reads it
            stream.flush()
    if code is not None and code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit((code or 0) & 0xFF)


class Server:
    """Makes processes on request, and says how each ended.

    Args:
        listener: a socket of sequenced packets; each connection makes one process.
        until: the id of the process whose end ends the server.
    """

    def __init__(self, listener: socket.socket, until: int) -> None:
        self._listener = listener
        self._until = os.pidfd_open(until)
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[int, socket.socket] = {}
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for file in (self._listener, self._woken, self._until):
            self._selector.register(file, selectors.EVENT_READ)
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything: also in a process that is no server any more."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        self._listener.close()
        for connection in self._waiting.values():
            connection.close()
        for file in (self._until, self._woken, self._wake):
            os.close(file)

    def serve(self) -> Request | None:
        """In each process that is made, its request; in the server None, when it shall end."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == self._until:
                    return None
                if key.fileobj == self._woken:
                    os.read(self._woken, 512)
                    self._reap()
                elif (request := self._accept()) is not None:
                    return request

    def _accept(self) -> Request | None:
        """Make a process; None in the server."""
        connection, _ = self._listener.accept()
        data, files, _, _ = socket.recv_fds(connection, REQUEST_BYTES, FILES)
        request = Request(**json.loads(data), files=files) if data else None
        if request is None or not _same_imports(request.environment):
            connection.close()
        else:
            pid = os.fork()
            if pid == 0:
                connection.close()
                return request
            self._waiting[pid] = connection
            connection.send(str(pid).encode())
        for file in files:
            os.close(file)
        return None

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                connection = self._waiting.pop(ended[0])
                with suppress(OSError), connection:  # whoever started the process may have ended before it
                    connection.send(str(ended[1]).encode())


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key.startswith(READ_EARLY) and key not in OBEYED}


def _same_imports(environment: Mapping[str, str]) -> bool:
    """Would the imports of a process with this environment have been the server's?"""
    return _early(environment) == STARTED_WITH


def main() -> None:
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is pytest's
    for name in sys.argv[3:]:
        importlib.import_module(name)
    assert threading.active_count() == 1, "an import has started a thread, which no fork would have"
    gc.collect()
    gc.freeze()  # the processes share it, and their collections pass it over
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{sys.argv[1]}.new")
        listener.listen(64)
        Path(f"{sys.argv[1]}.new").rename(sys.argv[1])
        with Server(listener, int(sys.argv[2])) as server:
            request = server.serve()
    if request is not None:
        signal.signal(signal.SIGINT, interrupt)
        request.become()


if __name__ == "__main__":
    STARTED_WITH = _early(os.environ)
    BASE_PATH = [part for part in sys.path[1:] if part not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    main()
