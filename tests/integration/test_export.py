"""What is exported passes torchtune's own command; a verification hides no fault of the file, and leaves no trace.

The recipes are the embedded one with the changes that people's files show. Each trains two or three steps.
"""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweep.config.exported_yaml import DEFAULT_LOGGER, LOGGERS, exported_yaml
from sweep.config.torchtune import load_torchtune_config, resolve
from sweep.errors import GiveUp
from sweep.report import export
from sweep.report.export import run_tune, tune_run_line
from sweep.resources import embedded_dir
from tests.helpers.cli import SMALL, sweep
from tests.helpers.warm import warm_processes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]

# Keys that a trial needs no more than its torchtune configuration has to have.
UNNEEDED = (
    "metric_logger",
    "log_every_n_steps",
    "log_peak_memory_stats",
    "resume_from_checkpoint",
    "save_adapter_weights_only",
    "max_steps_per_epoch",
    "compile",
    "clip_grad_norm",
    "dataset_val",
    "batch_size_val",
    "enable_activation_checkpointing",
    "enable_activation_offloading",
    "checkpointer.output_dir",
    "checkpointer.recipe_checkpoint",
    "model.apply_lora_to_output",
    "model.lora_dropout",
)
NAMES = {  # of torchtune 0.3 and 0.4
    "torchtune.training.metric_logging.DiskLogger": "torchtune.utils.metric_logging.DiskLogger",
    "torchtune.training.FullModelHFCheckpointer": "torchtune.utils.FullModelHFCheckpointer",
    "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup": (
        "torchtune.modules.get_cosine_schedule_with_warmup"
    ),
}
RECIPES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "nothing that can be left out": ({}, UNNEEDED),
    "W&B, online": ({"metric_logger": {"_component_": f"{LOGGERS}WandBLogger", "project": "p", "mode": "online"}}, ()),
    "a named log, of every third step": (
        {"metric_logger": {**DEFAULT_LOGGER, "filename": "mine.txt"}, "log_every_n_steps": 3},
        ("clip_grad_norm",),
    ),
    "components of one's own": (
        {"metric_logger": {"_component_": "own.Shouting", "volume": 11}, "collate_fn": "own.collate"},
        (),
    ),
    "a logger without its directory": ({"metric_logger": {"_component_": f"{LOGGERS}DiskLogger"}}, ()),
    "fp64, a list of data sets, two epochs": (
        {"dtype": "fp64", "dataset": "listed", "epochs": 2, "save_adapter_weights_only": False},
        ("dataset_val",),
    ),
    "values that sweep resolves, and pickles": (
        {"model.lora_alpha": "${mul:2,${model.lora_rank}}", "checkpointer.safe_serialization": False},
        (),
    ),
    "names of old versions": ({}, ()),
}
OWN = """\
from torchtune.data import padded_collate_sft
def collate(batch, padding_idx, ignore_idx):
    return padded_collate_sft(batch, padding_idx, ignore_idx)
class Shouting:
    def __init__(self, volume):
        self.file = open("shouted.txt", "a")
    def log_config(self, config):
        pass
    def log_dict(self, payload, step):
        self.file.write(f"{step} {sorted(payload)}\\n")
    def close(self):
        self.file.close()
"""
KILL = """\
import os
class Kill:
    def __init__(self):
        os.write(2, b"so long\\n")
        os.kill(os.getpid(), 9)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    path = tmp_path / "here"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A port at which W&B's client would look for its server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        yield listener


def recipe(**changes: Any) -> dict[str, Any]:
    """The embedded recipe on eight rows, in batches of four, with dotted keys set; None removes a key."""
    config: dict[str, Any] = yaml.safe_load((embedded_dir() / "lora_cpu.yaml").read_text())
    small = {"root": str(embedded_dir()), "output_dir": "out", "dataset.split": "train[:8]", "batch_size": 4}
    for key, value in {**small, **changes}.items():
        *parents, name = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        if value is None:
            node.pop(name, None)
        else:
            node[name] = [node[name], node[name]] if value == "listed" else value
    return config


def write(config: dict[str, Any] | str, path: Path) -> str:
    """Write a recipe, and return the command that trains it."""
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))
    return tune_run_line(path.absolute())


def tune(line: str, trusted: Sequence[str] = ()) -> dict[int, dict[str, float]]:
    with warm_processes():
        return run_tune(line, trusted)


@pytest.mark.parametrize("name", RECIPES)
def test_tune_run_takes_what_is_exported(name: str, here: Path, server: socket.socket) -> None:
    changes, gone = RECIPES[name]
    text = yaml.safe_dump(recipe(**{**changes, **dict.fromkeys(gone)}), sort_keys=False)
    if name.startswith("names"):
        for new, old in NAMES.items():
            assert new in text
            text = text.replace(new, old)
    (here / "own.py").write_text(OWN)
    (here / "recipe.yaml").write_text(text)
    config, _ = load_torchtune_config(here / "recipe.yaml", {})
    line = write(exported_yaml(text, {}, {}, resolve(config, {}, {}), "note"), here / "exported.yaml")
    steps = tune(line, ["own"])
    assert list(steps) == [1, 2, *([3, 4, 5, 6, 7, 8] if "epochs" in changes else [])]
    assert all(values.keys() == {"loss", "grad_norm"} for values in steps.values())
    shouted = ["shouted.txt"] if "own" in name else []
    ours = {"recipe.yaml", "exported.yaml", "own.py", "__pycache__"}
    assert [path.name for path in here.iterdir() if path.name not in ours] == shouted
    with pytest.raises(BlockingIOError):
        server.accept()


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a key is missing": ({"compile": None}, "ConfigAttributeError: Missing key compile"),
    "a directory that cannot be made": ({"checkpointer.output_dir": "a-file/out"}, "NotADirectoryError: .*a-file"),
    "a place that torchtune refuses": (
        {"output_dir": "${root}/base/out"},
        "ValueError: The output directory",
    ),
    "a number that is none": ({"log_every_n_steps": 0}, "ZeroDivisionError: "),
    "an argument of a logger": (
        {"metric_logger": {"_component_": f"{LOGGERS}WandBLogger", "projcet": "p"}},
        "TypeError: .*'projcet'",
    ),
    "a logger that sends": ({"metric_logger": {"_component_": f"{LOGGERS}CometLogger"}}, "No module named 'comet_ml'"),
    "code that is not trusted": (
        {"metric_logger": {"_component_": "os.system", "command": "touch was-run"}},
        "UntrustedError: metric_logger._component_=os.system is not among the allowed components",
    ),
    "an alias of code that is not trusted": (
        {"loss": {"_component_": "torchao.prototype.parq.utils.import_module", "name": "own"}},
        "UntrustedError: loss._component_=torchao.* is a function that importlib defines",
    ),
    "no such device": ({"device": "mps"}, "RuntimeError: The device mps is not available on this machine"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_tune_run_refuses_does_not_pass(fault: str, here: Path) -> None:
    changes, complaint = FAULTS[fault]
    (here / "a-file").touch()
    line = write(recipe(**changes), here / "given.yaml")
    with pytest.raises(GiveUp, match=complaint) as caught:
        tune(line)
    assert str(caught.value).startswith(f"`{line}` failed: ")
    assert "\n" not in str(caught.value)
    assert not (embedded_dir() / "base" / "out").exists()
    assert sorted(path.name for path in here.iterdir()) == ["a-file", "given.yaml"]


def test_a_killed_tune_run_is_said_with_its_last_words(here: Path) -> None:
    (here / "own.py").write_text(KILL)
    line = write(recipe(metric_logger={"_component_": "own.Kill"}), here / "given.yaml")
    with pytest.raises(GiveUp, match=r"failed: it ended with signal SIGKILL, .*; its last words: so long$"):
        tune(line, ["own"])
    assert not (here / "out").exists()


def test_what_the_user_has_is_left(here: Path) -> None:
    """The recipe writes beside it, and what it wrote goes."""
    kept = here / "out" / "epoch_0" / "adapter_model.pt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    log = here / "log.txt"
    log.write_text("mine too")
    named = {**DEFAULT_LOGGER, "filename": str(log)}
    assert len(tune(write(recipe(metric_logger=named), here / "given.yaml"))) == 2
    assert (kept.read_text(), log.read_text()) == ("mine", "mine too")
    assert [path.relative_to(here).as_posix() for path in (here / "out").rglob("*")] == [
        "out/epoch_0",
        "out/epoch_0/adapter_model.pt",
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a sweep whose recipe lacks all that a trial does not need."""
    directory = tmp_path_factory.mktemp("trained")
    config = recipe(**{**dict.fromkeys(UNNEEDED), "seed": None, "dataset.split": "train[:64]", "batch_size": 8})
    config["output_dir"] = str(directory / "out")
    (directory / "mine.yaml").write_text(f"# my own\n{yaml.safe_dump(config, sort_keys=False)}")
    words = [word for word in SMALL if word.startswith(("objective.milestone", "queue"))]
    start = ("run", f"recipe.config={directory / 'mine.yaml'}", "space.optimizer.lr=choice(1e-4,1e-3)", "name=lean")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWEEP_ROOMS", str(directory / "rooms"))
        sweep(*start, *words, "search.trials=2")
    return directory


ODD = 'it\'s a "$HOME" [of] `odd` & ünï;names'


def test_the_printed_line_is_the_one_that_is_verified(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_ROOMS", str(trained / "rooms"))
    path = trained / ODD / "best one.yaml"
    said = sweep("export", "lean", "-o", str(path), "--verify").stdout
    assert re.search(r"^reproduced by tune run: 8 of 8 steps compared", said, re.MULTILINE)
    line = said.splitlines()[2].strip()
    shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == ["tune", "run", "lora_finetune_single_device", "--config", str(path)]
    assert shlex.split(line) == shown.splitlines()
    text = path.read_text()
    assert "# Added, since `tune run` needs these keys:\n#   compile = false\n" in text
    assert "#   seed = " in text
    assert (trained / "mine.yaml").read_text().splitlines()[1:3] == [
        line for line in text.splitlines() if not line.startswith("#")
    ][:2]
    copied = sweep("export", "lean", "-o", "-", "--verify")
    assert copied.stdout == text
    assert copied.stderr.startswith("reproduced by tune run: 8 of 8 steps")
    assert not (trained / "out").exists()


def test_a_variable_of_the_environment_is_not_in_the_error(
    here: Path, monkeypatch: pytest.MonkeyPatch, trained: Path
) -> None:
    """Torchtune prints the resolved configuration; a failure says the reference."""
    monkeypatch.setenv("HIDDEN_NAME", "a-very-secret-text")
    from trainer.environment import reveal

    reveal("${oc.env:HIDDEN_NAME}")
    line = write(recipe(device="${oc.env:HIDDEN_NAME}"), here / "given.yaml")
    with pytest.raises(GiveUp) as caught:
        tune(line)
    assert "a-very-secret-text" not in str(caught.value)
    assert "HIDDEN_NAME" in str(caught.value)


def test_the_exit_code_is_said_where_there_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export, "OBSERVED_TUNE", ("sh", "-c", "echo one >&2; echo two >&2; exit 7"))
    with pytest.raises(GiveUp, match=r"failed: it ended with exit code 7; its last words: two$"):
        run_tune(tune_run_line(tmp_path))
