"""No verb runs code that a configuration smuggles in, and no file of a sweep has a secret of the environment."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import yaml

from sweep.resources import embedded_dir
from tests.helpers.cli import SMALL, status, sweep
from tests.helpers.warm import SOCKET


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that the code of a configuration would create."""
    return tmp_path / "was-run"


def refused(mark: Path, *words: str) -> str:
    """What `sweep plan` prints when it refuses these words.

    Raises:
        AssertionError: it took them, ran their code, or answered with more than a sentence.
    """
    result = sweep("plan", *words, code=2)
    assert not mark.exists()
    assert result.stderr.startswith("sweep: ")
    return result.stderr


def own_recipe(tmp_path: Path, **changes: object) -> str:
    """The word that names a copy of the demo's recipe with these keys set."""
    config = yaml.safe_load((embedded_dir() / "lora_cpu.yaml").read_text())
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**config, **changes}))
    return f"recipe.config={path}"


@pytest.mark.usefixtures("warm")
def test_a_nested_target_is_not_built(mark: Path) -> None:
    node = f"{{_target_: sweep.queues.slurm.commands.command, words: [touch, '{mark}']}}"
    said = refused(mark, *SMALL, f"+sampler.gamma={node}", "sampler=tpe")
    assert "sampler.gamma._target_=sweep.queues.slurm.commands.command is not allowed" in said


@pytest.mark.usefixtures("warm")
def test_a_name_is_not_resolved_after_it_was_checked(mark: Path, tmp_path: Path) -> None:
    node = {"_component_": "torchtune.${evil}", "command": f"touch {mark}"}
    words = ("search.trials=2", "space.optimizer.lr=choice(1e-4,1e-3)")
    said = refused(mark, own_recipe(tmp_path, evil="utils._device.os.system", loss=node), *words)
    assert "torchtune.utils._device.os.system leads through _device" in said
    node["_component_"] = r"torchtune.\${evil}"
    said = refused(mark, own_recipe(tmp_path, evil="utils._device.os.system", loss=node), *words)
    assert "loss._component_=torchtune.${evil} still has ${…}" in said


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    ("alias", "definer", "arguments"),
    [
        ("torchtune.modules.early_exit_loss.np.load", "numpy", {"file": "evil.pickle", "allow_pickle": True}),
        ("torchao.prototype.parq.utils.import_module", "importlib", {"name": "evil_module"}),
    ],
)
def test_an_alias_is_not_called(
    mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alias: str, definer: str, arguments: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pickle").write_bytes(pickle.dumps(Touch(mark)))
    (tmp_path / "evil_module.py").write_text(f"open({str(mark)!r}, 'w')\n")
    recipe = own_recipe(tmp_path, dataset={"_component_": alias, **arguments})
    said = refused(mark, recipe, "search.trials=2", "space.optimizer.lr=choice(1e-4,1e-3)", "objective=loss")
    assert f"dataset._component_={alias} is a function that {definer} defines" in said


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["recipe.components=['']", "recipe.overrides.loss._component_=os.system"], "recipe.components has ''"),
        (
            ["evaluate=torchtune", "evaluate.config=eleuther_evaluation", "evaluate.overrides={model: os.system}"],
            "model._component_=os.system is not among",
        ),
        (["space.loss._component_=choice(os.system,os.popen)"], "_component_=os.system is not among"),
    ],
)
def test_other_ways_in(mark: Path, words: list[str], complaint: str) -> None:
    assert complaint in refused(mark, *SMALL, *words)


@pytest.mark.usefixtures("warm")
def test_no_file_of_a_sweep_has_a_secret_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The value decides what is trained on, so that it is known to have reached the worker."""
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "rooms"))
    monkeypatch.setenv("SPLIT_OF_MINE", "train[:61]")
    word = "recipe.overrides.dataset.split=${oc.env:SPLIT_OF_MINE}"
    shown = sweep("run", *SMALL, word, "name=secret", "search.trials=2", "wandb=offline", "evaluate=heldout")
    exported = tmp_path / "exported.yaml"
    shown_too = sweep("export", "secret", "-o", str(exported))
    assert [row["state"] for row in status("secret")["rows"]] == ["complete", "complete"]
    for text in (shown.stdout, shown.stderr, shown_too.stdout, shown_too.stderr):
        assert "train[:61]" not in text
    files = [path for path in (tmp_path / "rooms").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if b"train[:61]" in path.read_bytes()] == []
    assert "${oc.env:SPLIT_OF_MINE}" in (tmp_path / "rooms/secret/trials/00000/1/spec.json").read_text()
    assert "${oc.env:SPLIT_OF_MINE}" in exported.read_text()


@pytest.mark.usefixtures("warm")
def test_a_variable_that_a_worker_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "rooms"))
    monkeypatch.delenv("SPLIT_OF_MINE", raising=False)
    word = "recipe.overrides.dataset.split=${oc.env:SPLIT_OF_MINE}"
    said = sweep("run", *SMALL, word, "name=secret", "search.trials=1", code=None)
    assert "the environment variable SPLIT_OF_MINE is not set" in said.stdout + said.stderr


AUDIT = """\
import os, sys
def hook(event, arguments):
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn"):
        with open(os.environ["AUDIT_LOG"], "a") as log:
            log.write(repr(arguments[:2]) + "\\n")
sys.addaudithook(hook)
"""
SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "SPLIT_OF_MINE")


def test_no_process_has_a_secret_among_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process that a sweep starts, and all that these start, says what it starts; and no file has a secret."""
    monkeypatch.delenv(SOCKET, raising=False)  # in processes of Python's own, which read sitecustomize
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(AUDIT)
    log = tmp_path / "audit.log"
    given = {name: f"{number}{'f' * 39}" for number, name in enumerate(SECRETS)} | {"SPLIT_OF_MINE": "train[:61]"}
    paths = {"SWEEP_ROOMS": tmp_path / "rooms", "PYTHONPATH": tmp_path / "site", "AUDIT_LOG": log}
    for name, value in (given | paths).items():
        monkeypatch.setenv(name, str(value))
    (tmp_path / "scores.json").write_text('{"accuracy": 1}')
    score = f'evaluate.command="cp {tmp_path}/scores.json {{output}}"'
    word = "recipe.overrides.dataset.split=${oc.env:SPLIT_OF_MINE}"
    shown = sweep("run", *SMALL, word, "name=secret", "search.trials=1", "wandb=offline", "evaluate=command", score)
    started = log.read_text()
    assert "trainer" in started
    assert "supervisor" in started
    files = {path: path.read_bytes() for path in (tmp_path / "rooms").rglob("*") if path.is_file()}
    assert files
    for name, value in given.items():
        for text in (started, shown.stdout, shown.stderr):
            assert value not in text, name
        assert [path for path, data in files.items() if value.encode() in data] == []
