"""Verbs in the environments of other people: locales, user ids, options of the interpreter, terminals."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from sweep.cli.fault import FAULT
from sweep.resources import embedded_dir
from tests.helpers.cli import SMALL, command
from tests.helpers.terminals import INTERRUPT, Terminal
from tests.helpers.waiting import until

pytestmark = pytest.mark.slow

C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
STRANGER = 54321  # a user id without an entry in passwd
COMMENT = "# 学習率は小さく – ü"


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """That of a process in an own environment, with its rooms below `tmp_path`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LC_", "LANG", "SWEEP_", "PYTEST"))}
    return kept | {"SWEEP_ROOMS": str(tmp_path / "rooms"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


def said(*words: str, env: Mapping[str, str], code: int = 0, user: int | None = None) -> bytes:
    """What a verb prints, in a process that starts afresh."""
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        command(*words),
        env=env,
        capture_output=True,
        check=False,
        timeout=1200,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        cwd="/",
    )
    text = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
    assert done.returncode == code, text
    assert "Traceback" not in text
    assert FAULT not in text
    return done.stdout


def recipe(tmp_path: Path) -> Path:
    """The embedded recipe with a comment in Japanese, below a directory whose name is not ASCII."""
    folder = tmp_path / "数据 ü"
    folder.mkdir(parents=True, exist_ok=True)
    text = (embedded_dir() / "lora_cpu.yaml").read_text(encoding="utf-8")
    text = text.replace("root: .", f"root: {embedded_dir()}  {COMMENT}")
    (folder / "lora_cpu.yaml").write_text(text, encoding="utf-8")
    return folder / "lora_cpu.yaml"


def test_a_sweep_in_an_ascii_locale(tmp_path: Path) -> None:
    """The recipe is read, trained, shown and exported as it is."""
    env = environment(tmp_path, **C_LOCALE)
    words = [word for word in SMALL if word != "search.trials=4"]
    said("run", f"recipe.config={recipe(tmp_path)}", *words, "search.trials=1", "name=a", env=env)
    for printed in (said("export", "a", "-o", "-", env=env), (tmp_path / "rooms/a/recipe.yaml").read_bytes()):
        assert COMMENT in printed.decode("utf-8")
    assert "▁".encode() in said("status", "a", env=env)  # a pipe gets UTF-8


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "euc_jp"])
def test_what_a_stream_lacks_is_replaced(tmp_path: Path, encoding: str) -> None:
    env = environment(tmp_path, PYTHONIOENCODING=encoding, **C_LOCALE)
    printed = said("plan", "experiment=demo", "--no-measure", f"recipe.config={recipe(tmp_path)}", env=env)
    assert b"lora_rank" in printed
    printed.decode(encoding)
    said("status", "数", env=env, code=2)


@pytest.mark.parametrize(
    "options", [{"PYTHONOPTIMIZE": "2"}, {"PYTHONOPTIMIZE": "1"}, {"PYTHONWARNINGS": "error"}], ids=str
)
def test_options_of_the_interpreter(tmp_path: Path, options: dict[str, str]) -> None:
    env = environment(tmp_path, **options)
    said("run", *SMALL, "search.trials=1", "name=a", env=env)
    assert b"COMPLETE" in said("status", "a", env=env) or b"complete" in said("status", "a", env=env)


def test_docstrings_that_an_option_of_the_command_removes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "sweep.cli", "plan"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("sweep: Python's option -OO")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_an_entry_and_without_a_home(tmp_path: Path) -> None:
    """As in a container that runs under any user id."""
    try:
        subprocess.run([sys.executable, "-c", ""], user=STRANGER, group=STRANGER, extra_groups=[], cwd="/", check=True)
    except PermissionError:
        pytest.skip("another user may not execute this interpreter")
    shared = Path("/tmp") / f"sweep-stranger-{os.getpid()}"
    shared.mkdir()
    os.chown(shared, STRANGER, STRANGER)
    try:
        env = environment(shared, HOME="/nonexistent", TMPDIR=str(shared))
        for name in ("USER", "LOGNAME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "HF_HOME"):
            env.pop(name, None)
        for words in (
            ("run", *SMALL, "search.trials=1", "name=a"),
            ("status",),
            ("status", "--json"),
            ("watch", "a"),
            ("logs", "a"),
            ("best", "a"),
            ("export", "a", "-o", "-"),
            ("report", "a", "-o", str(shared / "report.html")),
            ("resume", "a", "search.trials=2"),
            ("stop", "a"),
            ("plan", "experiment=demo"),
            ("doctor", "experiment=demo"),
            ("completion", "bash"),
            ("queue", "show", "queue=slurm"),
        ):
            said(*words, env=env, user=STRANGER, code=0)
    finally:
        shutil.rmtree(shared)


# --- terminals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20, 5), (5, 20), (1, 1), (24, 80)], ids=str)
def test_two_times_ctrl_c_ends_a_sweep_in_any_terminal(tmp_path: Path, size: tuple[int, int]) -> None:
    env = environment(tmp_path)
    with Terminal(command("run", *SMALL, "search.trials=1000", "name=a"), size, env) as terminal:
        worker = tmp_path / "rooms/a/trials/00000/1/reports.jsonl"
        until(lambda: worker.exists() and worker.stat().st_size > 0, terminal.process)
        terminal.resize(3, 3)
        until((tmp_path / "rooms/a/trials/00001/1/spec.json").exists, terminal.process)
        terminal.resize(0, 0)
        terminal.press(INTERRUPT)
        time.sleep(1.0)  # two that come at once are one signal
        terminal.press(INTERRUPT)
        assert terminal.wait(600) == 130
    assert "Traceback" not in terminal.text


def test_ctrl_c_while_the_data_are_counted_leaves_no_process(tmp_path: Path) -> None:
    """The data take as long as it needs until the key was pressed."""
    (tmp_path / "endless.py").write_text("import time\n\ndef rows(tokenizer, **options):\n    time.sleep(3600)\n")
    env = environment(tmp_path, PYTHONPATH=str(tmp_path))
    data = ("recipe.components=[endless]", "recipe.overrides.dataset._component_=endless.rows")
    words = ("run", "experiment=demo", *data, "objective.milestone_tokens=null", "name=a")
    with Terminal(command(*words), environment=env) as terminal:
        terminal.wait_for("counting the data")
        until(lambda: descendants(terminal.process.pid), terminal.process)
        children = descendants(terminal.process.pid)
        terminal.press(INTERRUPT)
        assert terminal.wait(600) == 130
        until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    assert "Traceback" not in terminal.text


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, and those that they have."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text(encoding="utf-8").split()):
            found |= {child, *descendants(child)}
    return found
