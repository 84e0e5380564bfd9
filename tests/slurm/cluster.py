"""A real SLURM cluster on one machine: virtual nodes, fake GPUs, everything on 127.0.0.1; as root, without systemd.

    python -m tests.slurm.cluster up /tmp/lab         prints what to `export`; a second `up` starts what has died
    python -m tests.slurm.cluster down /tmp/lab       stops what `up` started, and deletes the directory
    python -m tests.slurm.cluster packages            what Debian must provide

Partitions: `main`; `low`, whose jobs are signalled, given ten seconds and requeued when `high` needs their place.
With accounting also an account `lab` and a QOS `urgent`, which nothing enforces.
A daemon is nobody's child: its process id and start time lie in the directory, so that any process can stop it.
A node is a `slurmd -N`; the steps it started outlive it, so they are told by what only they have (`processes`).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from tests.slurm.processes import Process, everything, look, with_kin

# a command, and the Debian package that has it
COMMANDS = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server-core", "mariadb": "mariadb-client-core"}
PACKAGES = [*COMMANDS.values(), *ACCOUNTING.values()]
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

# writes down its own process id and start time, then becomes the daemon
BECOME = 'echo $$ $(cut -d" " -f22 /proc/$$/stat) >"$0.new" && mv "$0.new" "$0" && exec "$@"'

# where a block of ports has whose; the blocks lie below those that Linux gives to clients
CONTROLLER, DATABASE, SQL, NODES, SRUN, BLOCK = 0, 1, 2, 10, 100, 300
BLOCKS = range(12000, 32000, BLOCK)

ACCOUNTS = "add account lab\nadd user root account=lab\nadd qos urgent priority=10\nmodify user root set qos+=urgent\n"


class ClusterError(Exception):
    """A daemon did not come up, or a command of SLURM failed; with what it said last."""


def missing(accounting: bool = True) -> list[str]:
    """The Debian packages that are not installed."""
    wanted = COMMANDS | (ACCOUNTING if accounting else {})
    return [package for command, package in wanted.items() if not shutil.which(command, path=PATH)]


@dataclass
class Cluster:
    """`with Cluster(Path("/tmp/lab")) as cluster`, or `up` and `down`. Its nodes are `n0`, `n1`, ….

    Only `up` reads the fields; for all the rest, `Cluster(directory)` of another process is as good.
    """

    directory: Path
    nodes: int = 4
    cpus: int = 8
    gpus: int = 2
    accounting: bool = True
    max_array: int = 1001
    cred_expire: int = 5  # the least that SLURM takes; a requeued job is held off as long
    kill_wait: int = 3
    slurmd_timeout: int = 6
    message_timeout: int = 5  # a node counts as down only after two pings, each of which waits as long
    grace_time: int = 10
    min_job_age: int = 300
    port: int = 0  # the first of a block; 0 looks for a free one

    def __post_init__(self) -> None:
        self.directory = self.directory.resolve()

    def __enter__(self) -> Cluster:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.down()

    @property
    def names(self) -> list[str]:
        return [f"n{index}" for index in range(self.nodes)]

    def env(self) -> dict[str, str]:
        """What a client of this cluster needs in its environment."""
        return {"SLURM_CONF": str(self.directory / "etc" / "slurm.conf")}

    def run(self, *command: str, text: str = "", seconds: float = 60) -> str:
        """What a command of SLURM says, without the end of its last line."""
        env = {**os.environ, **self.env(), "PATH": PATH}
        done = subprocess.run(
            command, env=env, input=text, capture_output=True, text=True, timeout=seconds, check=False
        )
        if done.returncode:
            raise ClusterError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.rstrip("\n")

    def up(self) -> None:
        """Start what is not running; returns when every node takes jobs. The first `up` fixes the configuration."""
        if len(str(self.directory)) > 70:
            raise ClusterError(f"{self.directory} is too long for the path of a socket")
        try:
            self._configure()
            self._start()
        except BaseException:
            self.down(purge=False)
            raise

    def down(self, purge: bool = True) -> None:
        """Stop all: the nodes as if their power failed. Without `purge` the next `up` goes on with the same jobs."""
        for record in (self.directory / "pid").glob("slurmd-*"):
            self.kill_node(record.name.removeprefix("slurmd-"))
        self._kill_processes(None)
        for daemon in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
            self._stop(daemon, signal.SIGKILL if purge else signal.SIGTERM)
        if purge:
            shutil.rmtree(self.directory, ignore_errors=True)

    def lose_node(self, name: str) -> None:
        """The node falls silent, but its steps go on: it lost its network.

        Not all of it: an srun there still hears from the controller that its node failed, and ends.
        """
        self._stop(f"slurmd-{name}", signal.SIGKILL)

    def kill_node(self, name: str) -> None:
        """The node's power fails: its daemon, its steps and all their processes are gone."""
        self.lose_node(name)
        self._kill_processes(name)
        self._off(name).touch()

    def restore_node(self, name: str) -> None:
        """The node comes back and takes jobs."""
        since = self._start_node(name)
        self._wait_for(f"node {name}", 120, lambda: self._ready([name], since))

    def calm(self) -> None:
        """End all jobs and bring all nodes back."""
        self.up()
        if jobs := self.run("squeue", "-h", "-o", "%i").split():
            left = self.processes()
            self._answers("scancel", "--full", "--signal=KILL", *jobs)
            self._answers("scancel", *jobs)
            self._wait_for("the end of all jobs", 120, lambda: not self.run("squeue", "-h"))
            for process in left:
                process.kill()

    def daemons(self) -> set[Process]:
        """Those that `up` started and that are running."""
        return {found for path in (self.directory / "pid").glob("*") if (found := self._running(path.name))}

    def processes(self, name: str | None = None) -> set[Process]:
        """The steps and the user processes of a node, or of all nodes.

        A slurmstepd holds its node's log open (its environment it has overwritten), and has a session of its own, in
        which its processes are. One that left the session has SLURM's variables, or is the child of one that has.
        One that gave up all of these and outlived its job is lost, to SLURM as well.
        """
        nodes = [name] if name else [path.name for path in (self.directory / "spool").glob("n*") if path.is_dir()]
        logs = {f"{self.directory}/log/slurmd-{node}.log" for node in nodes}
        conf, variables = f"SLURM_CONF={self.env()['SLURM_CONF']}", {f"SLURMD_NODENAME={node}" for node in nodes}
        daemons = self.daemons()
        others = [process for process in everything() if process not in daemons]
        steps = {it for it in others if it.command.startswith("slurm") and it.opened() & logs}
        sessions = {it.session for it in steps}
        users = {
            it for it in others if it.session in sessions or (conf in (env := it.environment()) and env & variables)
        }
        return with_kin(steps | users, others)

    def _kill_processes(self, name: str | None) -> None:
        def none_left() -> bool:
            found = self.processes(name)
            for process in found:
                process.freeze()  # all at once: none shall live to tell of another's end
            for process in found:
                process.kill()
            return not found

        self._wait_for(f"the end of the processes of {name or 'all nodes'}", 120, none_left)

    def _configure(self) -> None:
        for name in ("etc", "log", "pid", "munge", "state", "spool", "gpu"):
            (self.directory / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        etc, here = self.directory / "etc", Path(__file__).parent
        if (etc / "slurm.conf").exists():
            return
        (self.directory / "munge" / "key").touch(mode=0o600)
        (self.directory / "munge" / "key").write_bytes(os.urandom(128))
        for index in range(self.gpus):
            device = self.directory / "gpu" / f"nvidia{index}"
            device.unlink(missing_ok=True)
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # gres.conf wants a device: /dev/null's
        port = self.port or _free_block(self.nodes)
        values = {
            **vars(self),
            "controller": port + CONTROLLER,
            "database": port + DATABASE,
            "sql": port + SQL,
            "srun": f"{port + SRUN}-{port + BLOCK - 1}",
            "names": f"n[0-{self.nodes - 1}]",
            "ports": f"[{port + NODES}-{port + NODES + self.nodes - 1}]",
            "gres": f"Gres=gpu:{self.gpus}" if self.gpus else "",
            "accounts": (here / "accounting.conf")
            .read_text()
            .format(directory=self.directory, database=port + DATABASE)
            if self.accounting
            else "AccountingStorageType=accounting_storage/none\n",
        }
        gres = f"NodeName=n[0-{self.nodes - 1}] Name=gpu File={self.directory}/gpu/nvidia[0-{self.gpus - 1}]"
        (etc / "gres.conf").write_text(f"{gres} Flags=nvidia_gpu_env\n" if self.gpus else "")
        (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (etc / "sql.port").write_text(str(values["sql"]))
        (etc / "slurmdbd.conf").touch(mode=0o600)
        for name in ("slurmdbd.conf", "slurm.conf"):  # slurm.conf last: with it, the configuration is whole
            (etc / name).write_text((here / name).read_text().format(**values))

    def _start(self) -> None:
        munge = self.directory / "munge"
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={munge / file}" for option, file in files.items()]
        self._spawn("munged", "munged", "--foreground", "--force", *options)
        if self.accounting:
            self._start_accounting()
        self._wait_for("munged", 120, lambda: self._answers("munge", "--no-input", f"--socket={munge / 'socket'}"))
        self._spawn("slurmctld", "slurmctld", "-D", "-f", self.env()["SLURM_CONF"])
        self._wait_for("slurmctld", 120, lambda: self._answers("scontrol", "ping"))
        since = min(self._start_node(name) for name in self.names)
        self._wait_for("the nodes", 120, lambda: self._ready(self.names, since))

    def _start_accounting(self) -> None:
        data, state, port = (
            self.directory / "mysql",
            self.directory / "state",
            (self.directory / "etc/sql.port").read_text(),
        )
        scratch = self.directory / "scratch"  # a server that starts clears its tmpdir, be there another's tables in it
        scratch.mkdir(exist_ok=True)
        common = [
            "--no-defaults",
            "--user=root",
            f"--datadir={data}",
            f"--tmpdir={scratch}",
            "--skip-name-resolve",
            "--innodb-log-file-size=16M",
        ]
        if not (data / "mysql").is_dir():
            options = ["--skip-test-db", "--auth-root-authentication-method=normal"]
            self.run("mariadb-install-db", *common, *options)
        options = [f"--socket={state / 'mysql.sock'}", f"--pid-file={state / 'mysql.pid'}", "--skip-log-bin"]
        options += ["--bind-address=127.0.0.1", f"--port={port}", f"--init-file={Path(__file__).with_name('init.sql')}"]
        options += ["--performance-schema=OFF", "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0"]
        self._spawn("mariadbd", "mariadbd", *common, *options, "--innodb-lock-wait-timeout=900")
        client = ["mariadb", "--no-defaults", "-h127.0.0.1", f"-P{port}", "-uslurm", "-pslurm", "-e", "select 1"]
        self._wait_for("mariadbd", 120, lambda: self._answers(*client, "slurm_acct_db"))
        self._spawn("slurmdbd", "slurmdbd", "-D")
        self._wait_for("slurmdbd", 120, lambda: self._answers("sacctmgr", "-n", "list", "cluster"))
        if "lab" not in self.run("sacctmgr", "-nP", "list", "account", "format=account").split():
            self.run("sacctmgr", "-i", "add", "cluster", "lab")
            self.run("sacctmgr", "-i", text=ACCOUNTS)

    def _start_node(self, name: str) -> str:
        """The time, as SLURM writes it, from which on the node has started."""
        daemon = f"slurmd-{name}"
        if self._running(daemon):
            return ""
        if self._off(name).exists():  # else SLURM takes half a minute to miss the jobs of a node that is back early
            self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=no power")
            self._off(name).unlink()
        since = datetime.now().replace(microsecond=0).isoformat()
        (self.directory / "spool" / name).mkdir(exist_ok=True)
        self._spawn(daemon, "slurmd", "-D", "-N", name, "-f", self.env()["SLURM_CONF"])
        return since

    def _off(self, name: str) -> Path:
        return self.directory / "spool" / f"{name}.off"

    def _ready(self, names: Iterable[str], since: str) -> bool:
        """Have these nodes registered and do they take jobs? One that is back but set aside is resumed."""
        ready = True
        for line in self.run("scontrol", "-o", "show", "nodes").splitlines():
            facts = dict(word.split("=", 1) for word in line.split() if "=" in word)
            if (name := facts["NodeName"]) in names:
                state, start = facts["State"], facts.get("SlurmdStartTime", "None")
                if start == "None" or start < since or "*" in state or "NOT_RESPONDING" in state:
                    ready = False
                elif "DOWN" in state or "DRAIN" in state:
                    ready = False
                    self._answers("scontrol", "update", f"nodename={name}", "state=resume")
        return ready

    def _answers(self, *command: str) -> bool:
        with suppress(ClusterError, subprocess.TimeoutExpired):
            self.run(*command, seconds=5)
            return True
        return False

    def _spawn(self, name: str, *command: str) -> None:
        """Start a daemon, unless it is running: in a session of its own, and as nobody's child."""
        if self._running(name):
            return
        record = self.directory / "pid" / name
        record.unlink(missing_ok=True)
        with (self.directory / "log" / f"{name}.out").open("ab") as out:
            become = ["setsid", "--fork", "sh", "-c", BECOME, str(record), *command]
            env = {**self.env(), "PATH": PATH}
            subprocess.run(become, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=True)
        self._wait_for(name, 120, record.exists)

    def _running(self, name: str) -> Process | None:
        """The daemon of this name."""
        try:
            pid, start = (self.directory / "pid" / name).read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        found = look(int(pid))
        return found if found and found.start == int(start) else None

    def _stop(self, name: str, how: signal.Signals) -> None:
        if found := self._running(name):
            with suppress(ProcessLookupError):
                os.killpg(found.pid, how)  # its helpers too; steps have sessions of their own
            try:
                self._wait_for(f"the end of {name}", 120, lambda: not found.alive())
            except ClusterError:
                found.kill()
                self._wait_for(f"the end of {name}", 120, lambda: not found.alive())
        (self.directory / "pid" / name).unlink(missing_ok=True)

    def _wait_for(self, what: str, seconds: float, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise ClusterError(f"waited {seconds:g} s for {what}\n{self._last_words()}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        logs = [path for path in sorted((self.directory / "log").glob("*")) if path.stat().st_size]
        tails = {path.name: path.read_text(errors="replace").splitlines()[-8:] for path in logs}
        return "\n".join(f"{name}: {line}" for name, lines in tails.items() for line in lines)


def _free_block(nodes: int) -> int:
    """The first of BLOCK ports of which none is in use; by chance, so that two that start at once differ."""

    def free(port: int) -> bool:
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return True
        return False

    offsets = [CONTROLLER, DATABASE, SQL, *range(NODES, NODES + nodes)]
    return next(block for block in random.sample(BLOCKS, len(BLOCKS)) if all(free(block + it) for it in offsets))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.cluster", description="A SLURM cluster for tests.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("packages", help="print the Debian packages that it needs")
    up = verbs.add_parser("up", help="start, or start again what has died")
    up.add_argument("directory", type=Path)
    for field in (
        "nodes",
        "cpus",
        "gpus",
        "max_array",
        "cred_expire",
        "kill_wait",
        "slurmd_timeout",
        "message_timeout",
        "grace_time",
        "min_job_age",
        "port",
    ):
        up.add_argument(f"--{field.replace('_', '-')}", type=int, default=getattr(Cluster, field))
    up.add_argument("--no-accounting", dest="accounting", action="store_false")
    down = verbs.add_parser("down", help="stop and delete")
    down.add_argument("directory", type=Path)
    down.add_argument(
        "--keep", action="store_true", help="keep the directory: the logs, and the jobs for the next `up`"
    )
    options = vars(parser.parse_args())
    try:
        match options.pop("verb"):
            case "packages":
                print(*PACKAGES)
            case "up":
                cluster = Cluster(**options)
                cluster.up()
                print(f"export SLURM_CONF={cluster.env()['SLURM_CONF']}")
            case "down":
                Cluster(options["directory"]).down(purge=not options["keep"])
    except ClusterError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
