"""The command line itself: help, options anywhere, near words in errors, exit codes."""

from __future__ import annotations

import re
import resource
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest

from sweep.cli import run_verbs
from sweep.cli.groups import Argument, Verb, VerbGroup
from sweep.cli.main import SECTIONS, cli, main, version
from tests.helpers.cli import command

REPOSITORY = Path(__file__).resolve().parents[3]
HELP_SECONDS = 0.35


def verbs(group: click.Group = cli, path: str = "sweep") -> Iterator[tuple[str, click.Command]]:
    """Every command with its path."""
    for name, verb in group.commands.items():
        yield f"{path} {name}", verb
        if isinstance(verb, click.Group):
            yield from verbs(verb, f"{path} {name}")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `run`, `stop` and `queue` actions are called with, in the place of doing it."""
    calls: list[dict[str, Any]] = []
    group = cli.commands["queue"]
    assert isinstance(group, VerbGroup)

    def record(verb: str | None, **options: Any) -> int:
        calls.append({"": verb, **options})
        return 0

    for verb in (cli.commands["run"], cli.commands["export"], *group.commands.values()):
        monkeypatch.setattr(verb, "callback", partial(record, verb.name))
    return calls


def test_the_sections_of_the_help_hold_every_verb_once() -> None:
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(cli.commands)
    queue = cli.commands["queue"]
    assert isinstance(queue, VerbGroup)
    assert [name for names in queue.sections.values() for name in names] == list(queue.commands)


@pytest.mark.parametrize(("path", "verb"), [pytest.param(*found, id=found[0]) for found in verbs()])
def test_each_verb_is_described_in_a_line_with_two_examples(
    path: str, verb: click.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(verb, Verb | VerbGroup)
    assert len(verb.examples) >= 2
    assert all(path in example for example in verb.examples)
    assert len(verb.get_short_help_str(200)) <= 70
    assert all(isinstance(p, Argument) and p.text for p in verb.params if isinstance(p, click.Argument))
    assert all(p.help for p in verb.params if isinstance(p, click.Option) and not p.hidden)
    assert main([*path.split()[1:], "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(example in shown for example in verb.examples)
    assert all(len(line) <= 80 for line in shown.splitlines() if "sweep " not in line)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "queue=slurm", "--detach", "search.trials=3", "--config-dir", "my", "+a.b=-1"],
        ["--detach", "--config-dir", "my", "run", "queue=slurm", "search.trials=3", "+a.b=-1"],
        ["run", "--config-dir=my", "queue=slurm", "search.trials=3", "+a.b=-1", "--detach"],
    ],
)
def test_options_stand_anywhere(given: list[dict[str, Any]], words: list[str]) -> None:
    assert main(words) == 0
    overrides = ("queue=slurm", "search.trials=3", "+a.b=-1")
    assert given == [{"": "run", "overrides": overrides, "config_dir": Path("my"), "detach": True}]


def test_a_value_that_is_also_a_verb_stays_a_value(given: list[dict[str, Any]]) -> None:
    assert main(["--config-dir", "run", "run", "name=x"]) == 0
    assert main(["export", "export", "-o", "-"]) == 0
    assert given[0]["config_dir"] == Path("run")
    assert (given[1]["name"], given[1]["output"]) == ("export", Path("-"))


@pytest.mark.parametrize(
    ("words", "action"),
    [
        ([], "show"),
        (["queue=slurm", "--json"], "show"),
        (["--json", "queue=slurm"], "show"),
        (["create", "queue=slurm"], "create"),
        (["--region", "create", "agent", "queue=slurm"], "agent"),
        (["--config-dir", "job", "queue=slurm"], "show"),
    ],
)
def test_queue_shows_unless_an_action_is_named(given: list[dict[str, Any]], words: list[str], action: str) -> None:
    assert main(["queue", *words]) == 0
    assert given[0][""] == action


def documented() -> list[str]:
    """The command lines of README and docs that call `sweep`, without redirections, continued lines joined."""
    texts = [path.read_text() for path in (REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md"))]
    blocks = [
        block for text in texts for block in re.findall(r"^```(?:console|)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return sorted({re.split(r" [>|#] ?", line)[0] for line in lines if re.match(r"sweep \w", line)})


def test_every_documented_command_line_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, verb in verbs():
        if not isinstance(verb, click.Group):
            monkeypatch.setattr(verb, "callback", lambda **options: 0)
    assert len(documented()) > 20
    for line in documented():
        assert main(shlex.split(line)[1:]) == 0, line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stauts"], "there is no verb stauts (did you mean status?); allowed: plan, run, resume, stop, "),
        (
            ["run", "--detatch"],
            "no option --detatch (did you mean --detach?); allowed: --config-dir, --detach",
        ),
        (
            ["queue", "mke"],
            "there is no action mke; allowed: create, show, job, agent, automate; see `sweep queue --help`",
        ),
        (
            ["queue", "create", "--jsn"],
            "no option --jsn; allowed: --config-dir, --help; see `sweep queue create",
        ),
        (["status", "a", "b"], "unexpected extra argument (b); see `sweep status --help`"),
        (["export", "--trial", "x"], "'x' is not a valid integer; see `sweep export --help`"),
        (["export", "--trial"], "'--trial' requires an argument"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        (["run", "first"], "first is no KEY=VALUE"),
        (["run", "qeue=slurm"], "there is no key qeue (did you mean queue?)"),
        (["status", "nothing"], "there is no sweep nothing"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_allowed(
    words: list[str], said: str, rooms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.startswith("sweep: ")
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_a_hidden_option_is_not_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "--in-jobb"]) == 2
    assert "--in-job," not in capsys.readouterr().err


def test_without_a_verb_the_help_is_shown_and_the_input_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    output = capsys.readouterr()
    assert "Run a sweep:" in output.err
    assert output.out == ""


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**options: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_verbs.run, "callback", interrupted)
    assert main(["run"]) == 130


def test_the_version_is_that_of_the_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sweep {project['version']}\n"
    assert version() == project["version"]


def test_a_reader_that_went_away_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m sweep.cli run --help | true"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.stderr == ""


def test_the_help_comes_at_once() -> None:
    """Processor time, since other processes may keep this one waiting."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command("--help"), capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(times) <= HELP_SECONDS


@pytest.mark.parametrize("verb", ["plan", "run", "doctor"])
def test_a_current_directory_that_was_deleted_is_one_sentence(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main([verb, "experiment=demo"]) in (1, 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the current directory was deleted; change to another one" in said
