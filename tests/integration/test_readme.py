"""The README's commands run, in its order; the commands and the choices that it leads to are all documented."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sweep.wiring.compose import compose_config, freeze
from tests.helpers.cli import run_commands

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
# What `make test` itself is, or what installs.
ELSEWHERE = ("make demo", "make test", "pip install .")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines() if line]
    return [line for line in lines if line not in ELSEWHERE]


@pytest.mark.slow
def test_the_walk_through_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWEEP_ROOMS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert len(commands()) >= 9
    printed = run_commands(commands(), tmp_path)
    assert "all 24 trials have ended" in printed["sweep run experiment=demo name=first"]
    assert "all 26 trials have ended" in printed["sweep resume first search.trials=26"]
    assert "reproduced by tune run" in printed["sweep export first --verify"]


def test_the_yaml_of_the_readme_composes(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    settings = freeze(compose_config(["experiment=mine"], tmp_path), "mine", tmp_path).settings
    keys = {parameter.key for parameter in settings.space}
    assert keys == {key.removeprefix("+") for key in yaml.safe_load(text)["space"]}
    assert settings.metric == "val_loss"
    assert settings.search.trials == 32


def test_every_verb_and_every_choice_has_its_line() -> None:
    helped = subprocess.run([sys.executable, "-m", "sweep.cli", "--help"], capture_output=True, text=True, check=True)
    verbs = re.findall(r"^ {2,4}([a-z]+) {2,}\S", helped.stdout, re.MULTILINE)
    assert len(verbs) >= 10
    commands_page, configuration = ((ROOT / "docs" / name).read_text() for name in ("commands.md", "configuration.md"))
    assert [verb for verb in verbs if not re.search(rf"^\| `sweep {verb}\b", commands_page, re.MULTILINE)] == []
    options = [*(ROOT / "conf").glob("*/*.yaml"), *(ROOT / "launch_queues").glob("*.yaml")]
    assert [path.stem for path in options if f"`{path.stem}`" not in configuration] == []
