"""Completion: what may follow on a command line, and what real shells make of it."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweep.cli import completion
from sweep.cli.main import cli, main
from sweep.cli.shells import SHELLS, VARIABLE, split_line
from sweep.config.section_reader import read_section
from sweep.config.sections import SECTIONS
from sweep.config.settings import read_queue

REPOSITORY = Path(__file__).resolve().parents[3]
# The lines that are typed, with Tab keys, and the arguments that `sweep` gets.
TYPED = (
    ("sweep sta\tfi\t", ["status", "first"]),
    ("sweep run que\t=loc\t", ["run", "queue=local"]),
    ("sweep run search.tri\t8", ["run", "search.trials=8"]),
    ("sweep run expe\tgs\t--det\t", ["run", "experiment=gsm8k_base1m", "--detach"]),
    ("sweep run queue=slurm queue.slurm_part\tgpu", ["run", "queue=slurm", "queue.slurm_partition=gpu"]),
    ("sweep run --config-d\tmy\t experiment=mi\t", ["run", "--config-dir", "my/", "experiment=mine"]),
    ("sweep queue cre\tqueue=launch_d\t", ["queue", "create", "queue=launch_docker"]),
    ("sweep resume first search.hist\t50", ["resume", "first", "search.history=50"]),
    ("sweep export second --tr\t1\t", ["export", "second", "--trial", "11"]),
)


def answers(line: str, shell: str = "zsh") -> list[str]:
    """The words that may stand at the end of a line."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COMP_LINE", line)
        complete = SHELLS[shell](cli, {}, "sweep", VARIABLE)
        return [item.value for item in complete.get_completions(*complete.get_completion_args())]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with two sweeps and a directory of configuration groups."""
    for name in ("first", "second"):
        (tmp_path / "sweeps" / name).mkdir(parents=True)
        (tmp_path / "sweeps" / name / "sweep.json").write_text(json.dumps({"queue": {"kind": "slurm"}}))
    (tmp_path / "sweeps" / "second" / "trials" / "00011").mkdir(parents=True)
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    (tmp_path / "my" / "experiment" / "mine.yaml").write_text("search: {trials: 3}\n")
    monkeypatch.delenv("SWEEP_ROOMS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_verbs_and_options() -> None:
    assert answers("sweep re") == ["replay", "report", "resume"]
    assert set(answers("sweep ")) == set(cli.commands)
    assert "--config-dir" in answers("sweep run --")
    assert answers("sweep run experiment=demo --det") == ["--detach"]
    assert answers("sweep export --ver") == ["--verify"]
    assert answers("sweep --vers") == ["--version"]
    assert "--in-job" not in answers("sweep resume --"), "hidden"


def test_groups_choices_and_keys() -> None:
    assert answers("sweep run que") == ["queue=", "queue."]
    assert "queue=local" in answers("sweep run queue=")
    assert answers("sweep run queue=slurm_c") == ["queue=slurm_cpu"]
    assert answers("sweep run queue=local pruner=as") == ["pruner=asha"]
    assert answers("sweep run search.tr") == ["search.trials="]
    assert answers("sweep run +search.tr") == ["+search.trials="]
    assert answers("sweep plan recipe.ov") == ["recipe.overrides."]
    assert answers("sweep run queue.slo") == ["queue.slots="]
    assert answers("sweep run trial.equal_data=") == ["trial.equal_data=false", "trial.equal_data=true"]
    assert answers("sweep run space.optim") == ["space.optimizer.lr="]


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("queue=slurm", "queue.slurm_partition="),
        ("queue=launch_vertex", "queue.docker_image="),
        ("queue=simulated", "queue.straggler_factor="),
        ("pruner=asha", "pruner.reduction_factor="),
        ("evaluate=heldout", "evaluate.max_tokens="),
    ],
)
def test_the_keys_are_those_of_the_chosen_file(words: str, key: str) -> None:
    assert answers(f"sweep run {words} {key[:-2]}") == [key]
    assert answers(f"sweep run {key[:-2]}") == []


def test_queue_without_an_action_completes_what_follows_show() -> None:
    assert answers("sweep queue cr") == ["create"]
    assert answers("sweep queue que") == ["queue=", "queue."]
    assert answers("sweep queue queue=launch_d") == ["queue=launch_docker"]
    assert answers("sweep queue --js") == ["--json"]
    assert answers("sweep queue agent --name") == ["--namespace"]
    assert answers("sweep queue automate --on ver") == ["version"]
    assert answers("sweep queue automate --on=ver") == ["--on=version"]


def test_sweeps_trials_and_what_a_sweep_that_exists_can_change(here: Path) -> None:
    assert answers("sweep best ") == ["first", "second"]
    assert answers("sweep resume ") == ["first", "second", "search.", "queue."]
    assert answers("sweep resume fir") == ["first"]
    assert answers("sweep resume first search.gpu") == ["search.gpu_hours="]
    assert answers("sweep resume first queue.slurm_part") == ["queue.slurm_partition="]
    assert answers("sweep resume first wandb.mo") == [], "frozen"
    assert answers("sweep replay second pruner=med") == ["pruner=median"]
    assert answers("sweep logs second --trial ") == ["11"]
    assert answers("sweep export nothing --trial ") == []


def test_a_directory_of_ones_own(here: Path) -> None:
    assert answers("sweep run --config-dir m") == ["my/"]
    assert answers("sweep run --config-dir my experiment=mi") == ["experiment=mine"]
    assert answers("sweep run experiment=mi --config-dir my") == ["my/"]
    assert answers("sweep run experiment=mi") == []


def test_every_choice_is_one_that_its_section_takes() -> None:
    queues = {"channel": "launch", "resource": "launch", "slots": "local"}
    for key, values in completion.CHOICES.items():
        section, _, name = key.rpartition(".")
        for value in values:
            if section in SECTIONS:
                read_section(SECTIONS[section], {name: value}, section)
            elif section == "queue":
                read_queue({"kind": queues[name], name: int(value) if value.isdigit() else value})


@pytest.mark.parametrize(
    ("line", "split"),
    [
        ("sweep", ([], "")),
        ("sweep ", ([], "")),
        ("sweep run", ([], "run")),
        ("sweep run ", (["run"], "")),
        ("sweep run 'space.a=choice(1, 2)' x", (["run", "space.a=choice(1, 2)"], "x")),
        ("sweep run 'space.a=choice(1, ", (["run"], "space.a=choice(1, ")),
    ],
)
def test_a_line_is_split_as_a_shell_does(line: str, split: tuple[list[str], str]) -> None:
    assert split_line(line) == split


@pytest.mark.parametrize(
    ("line", "inserted"),
    [
        ("sweep run queue=loc", ["local "]),
        ("sweep run search.tri", ["search.trials="]),
        ("sweep sta", ["status "]),
        ("sweep queue automate --on=ver", ["version "]),
    ],
)
def test_bash_is_given_what_follows_its_own_word_break(
    line: str, inserted: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("BREAKS", " \t\n\"'@><=;|&(:")
    monkeypatch.setenv(VARIABLE, "bash_complete")
    assert main() == 0
    assert capsys.readouterr().out.splitlines() == inserted


def test_an_answer_comes_at_once_and_a_broken_configuration_is_no_traceback(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "sweeps" / "first" / "sweep.json").write_text("{")
    assert answers("sweep resume first queue.work") == ["queue.workers="]


# --- real shells --------------------------------------------------------------------------------------------------

START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'PS1="ready> "; bind "set bell-style none"; source ./script'),
    "zsh": (["zsh", "-f", "-i"], 'PS1="ready> "; autoload -Uz compinit; compinit -u -D; source ./script'),
    "fish": (["fish", "--no-config", "-i"], "function fish_prompt; echo -n 'ready> '; end; source ./script"),
}


class Shell:
    """An interactive shell on a terminal of its own."""

    def __init__(self, command: list[str], directory: Path) -> None:
        env = {**os.environ, "PATH": f"{directory / 'bin'}:{os.environ['PATH']}", "HOME": str(directory)}
        env |= {"TERM": "xterm", "PYTHONPATH": str(REPOSITORY), "COLUMNS": "120"}
        self.process, self.main = pty.fork()
        if self.process == 0:
            os.chdir(directory)
            os.execvpe(command[0], command, env)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.main, text.encode())

    def wait(self, text: str, seconds: float = 60.0) -> None:
        """Read until a text has been written."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.main], [], [], 0.1)[0]:
                data = os.read(self.main, 4096)
                self.seen += data.decode(errors="replace")
                if b"\x1b[c" in data or b"\x1b[0c" in data:  # fish asks what terminal this is
                    self.type("\x1b[?62;c")
        self.seen = self.seen.partition(text)[2]

    def close(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.main)


@pytest.fixture(params=list(START))
def shell(request: pytest.FixtureRequest, here: Path) -> Iterator[Shell]:
    """A shell that has sourced the script, and whose `sweep` writes down what it is called with."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    script = subprocess.run(
        [sys.executable, "-m", "sweep.cli", "completion", request.param],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    (here / "script").write_text(script.stdout)
    (here / "bin").mkdir()
    program = here / "bin" / "sweep"
    record = 'import json, sys; open("called", "w").write(json.dumps(sys.argv[1:])); print("written")'
    program.write_text(
        f'#!/bin/sh\n[ -n "${VARIABLE}" ] && exec {sys.executable} -m sweep.cli "$@"\n'
        f"exec {sys.executable} -c '{record}' \"$@\"\n"
    )
    program.chmod(0o755)
    command, start = START[request.param]
    found = Shell(command, here)
    found.type(f"{start}; echo so''urced\n")
    found.wait("sourced")
    found.wait("ready> ")
    yield found
    found.close()


@pytest.mark.slow
def test_a_real_shell_completes(shell: Shell, here: Path) -> None:
    for typed, expected in TYPED:
        (here / "called").unlink(missing_ok=True)
        shell.type(f"{typed}\n")
        shell.wait("written")
        shell.wait("ready> ")
        assert json.loads((here / "called").read_text()) == expected, typed
