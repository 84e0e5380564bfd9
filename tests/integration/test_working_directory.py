"""Where a command is typed: other people's files there, relative paths, and a resume from somewhere else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from sweep.resources import embedded_dir
from tests.helpers.cli import SMALL
from trainer.room import Room, read_json

pytestmark = pytest.mark.slow

# Names of modules that we, Python and the libraries import: each may be a file of a person who fine-tunes.
NAMES = (
    *("trainer", "sweep", "torch", "torchtune", "datasets", "tokenizers", "transformers", "numpy", "optuna", "hydra"),
    *("wandb", "random", "types", "queue", "token", "tokenize", "profile", "logging", "json", "utils", "data", "model"),
    *("config", "train"),
)
PROGRAM = str(Path(sys.executable).with_name("sweep"))


def run(directory: Path, rooms: Path, *words: str, code: int = 0, program: Sequence[str] = (PROGRAM,)) -> str:
    """What `sweep` prints when it is typed in this directory, in processes that are Python's own."""
    env = {**os.environ, "SWEEP_ROOMS": str(rooms)}
    env.pop("SWEEP_TESTS_FORK_SERVER", None)
    done = subprocess.run(
        [*program, *words], cwd=directory, env=env, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def foreign_files(directory: Path) -> None:
    """Modules and packages that end whatever imports them."""
    directory.mkdir(exist_ok=True)
    for index, name in enumerate(NAMES):
        if index % 3:
            path = directory / f"{name}.py"
        else:
            (directory / name).mkdir()
            path = directory / name / "__init__.py"
        path.write_text("raise SystemExit('not this one')\n")


def test_no_file_of_a_person_is_imported(tmp_path: Path) -> None:
    assert len(NAMES) == 24
    foreign_files(tmp_path / "mine")
    rooms = tmp_path / "rooms"
    words = ("name=demo", *SMALL, "search.trials=1", "objective.milestone_tokens=null")
    run(tmp_path / "mine", rooms, "run", *words)
    (trial,) = json.loads(run(tmp_path / "mine", rooms, "status", "demo", "--json"))["rows"]
    assert trial["state"] == "complete"
    assert "reproduced" in run(tmp_path / "mine", rooms, "export", "demo", "--verify", "-o", str(tmp_path / "a.yaml"))
    run(tmp_path / "mine", rooms, "plan", *SMALL, "--no-measure")
    run(tmp_path / "mine", rooms, "doctor", *SMALL)


def test_a_detached_controller_and_a_module_are_no_different(tmp_path: Path) -> None:
    foreign_files(tmp_path / "mine")
    rooms = tmp_path / "rooms"
    program = (sys.executable, "-P", "-m", "sweep.cli")
    run(tmp_path / "mine", rooms, "run", "name=demo", *SMALL, "search.trials=1", "--detach", program=program)
    run(tmp_path / "mine", rooms, "watch", "demo", program=program)
    (trial,) = json.loads(run(tmp_path / "mine", rooms, "status", "demo", "--json"))["rows"]
    assert trial["state"] == "complete"


MODULE = """
from pathlib import Path
from torchtune.datasets import SFTDataset
from torchtune.data import InputOutputToMessages

def mine(tokenizer, rows):
    assert Path("data").is_dir()
    import datasets  # that of the library
    assert datasets.load_dataset
    transform = InputOutputToMessages(train_on_input=False)
    return SFTDataset(
        source="json", data_files=str(Path(rows).resolve()), split="train",
        message_transform=transform, model_transform=tokenizer,
    )
"""


def recipe(directory: Path) -> None:
    """A recipe of one's own in which every path is relative: those of data, base, tokenizer and output."""
    (directory / "data").mkdir(parents=True)
    (directory / "base").symlink_to(embedded_dir() / "base")
    rows = (embedded_dir() / "train.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("a", rows[:64]), ("b", rows[64:128]), ("val", rows[128:144])):
        (directory / "data" / f"{name}.jsonl").write_text("".join(part))
    text = (embedded_dir() / "lora_cpu.yaml").read_text().replace("root: .\n", "").replace("${root}/base", "base")
    text = text.replace("train[:512]", "train").replace("train[:64]", "train")
    text = text.replace("${root}/train.jsonl", "data/a.jsonl").replace("${root}/val.jsonl", "data/val.jsonl")
    assert "root" not in text.partition("\nmodel:")[2]
    (directory / "mine.yaml").write_text(text)


WORDS = (
    "recipe.config=mine.yaml",
    "space.dataset.data_files=choice(data/a.jsonl,data/b.jsonl)",
    "name=mine",
    "search.trials=1",
    "pruner=none",
    "queue.workers=1",
    "queue.threads=1",
)


def test_relative_paths_mean_the_directory_of_the_first_command(tmp_path: Path) -> None:
    home, rooms = tmp_path / "a [b] ünï, c#d", tmp_path / "rooms"
    recipe(home)
    run(home, rooms, "run", *WORDS)
    run(tmp_path, rooms, "resume", "mine", "search.trials=2")
    rows = json.loads(run(tmp_path, rooms, "status", "mine", "--json"))["rows"]
    assert [row["state"] for row in rows] == ["complete", "complete"]
    assert {row["params"]["dataset.data_files"] for row in rows} <= {"data/a.jsonl", "data/b.jsonl"}
    spec = read_json(Room(rooms / "mine").attempt(1, 1).spec)
    assert isinstance(spec, dict)
    assert spec["config"]["checkpointer"]["checkpoint_dir"] == str(home / "base")
    exported = tmp_path / "ex ported.yaml"
    assert "reproduced" in run(tmp_path, rooms, "export", "mine", "--verify", "-o", str(exported))
    text = exported.read_text()
    assert f"# Paths are absolute: they were relative to {home}" in text
    assert yaml.safe_load(text)["checkpointer"]["checkpoint_dir"] == str(home / "base")


def test_a_module_of_one_s_own_is_in_the_directory_of_the_first_command(tmp_path: Path) -> None:
    home, rooms = tmp_path / "mine", tmp_path / "rooms"
    foreign_files(home)
    recipe(home)
    (home / "mydata.py").write_text(MODULE)
    before, _, after = (home / "mine.yaml").read_text().partition("dataset:\n")
    own = "dataset:\n  _component_: mydata.mine\n  rows: data/a.jsonl\n"
    (home / "mine.yaml").write_text(f"{before}{own}dataset_val:{after.partition('dataset_val:')[2]}")
    words = [word for word in WORDS if "data_files" not in word]
    run(home, rooms, "run", *words, "recipe.components=[mydata]")
    run(tmp_path, rooms, "resume", "mine", "search.trials=2")
    rows = json.loads(run(tmp_path, rooms, "status", "mine", "--json"))["rows"]
    assert [row["state"] for row in rows] == ["complete", "complete"]
    refused = run(
        tmp_path, rooms, "run", *words, "recipe.components=[mydata]", f"recipe.config={home}/mine.yaml",
        "name=elsewhere", code=2,
    )  # fmt: skip
    assert "there is no module mydata: it was looked for" in refused
    assert f"in {tmp_path}" in refused
