"""A finished adapter is judged: with the trial's own numbers, or by a program."""

from __future__ import annotations

import gc
import math
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from tests.conftest import embedded_config
from tests.helpers.attempts import run
from trainer.base import Cache
from trainer.contract import Evaluation, FailureKind, Outcome, OutcomeKind, Report, StopCause, TrialSpec, decode
from trainer.evaluation import evaluate as evaluation
from trainer.evaluation.evaluate import evaluate
from trainer.recipe import LoraRecipe
from trainer.room import Room, write_atomic

pytestmark = pytest.mark.slow

LORA = {"model__lora_dropout": 0.1}
DORA = {"model__use_dora": True, "model__apply_lora_to_output": True, "model__lora_rank": 4}


class Trained:
    """A trial that was trained to its end, and what it knew of itself."""

    def __init__(self, room: Room, **changes: Any) -> None:
        self.room, self.cache = room, Cache()
        self.config = embedded_config(**changes)
        spec = TrialSpec("s", 0, 1, "w0001", self.config, milestone_tokens=180)
        assert run(room, self.cache, spec).kind is OutcomeKind.COMPLETED
        lines = room.attempt(0, 1).reports.read_text().splitlines()
        last = decode(Report, lines[-1])
        assert last.final
        assert last.val_loss is not None
        self.val_loss, self.first_loss = last.val_loss, decode(Report, lines[0]).val_loss

    def judged(self, kind: str, options: dict[str, Any] | None = None, **more: Any) -> Outcome:
        adapter = {"adapter": str(self.room.attempt(0, 1).adapter), **more}
        asked = Evaluation(kind, options or {}, **adapter)
        spec = TrialSpec("s", 0, 1, "w0001", self.config, 180, evaluate=asked)
        beside = Room(self.room.root / "evaluations")
        beside.attempt(0, 1).path.mkdir(parents=True, exist_ok=True)
        outcome = evaluate(beside, spec, self.cache, lambda: None)
        assert not (beside.attempt(0, 1).path / "scratch").exists()
        return outcome


@pytest.fixture(scope="module", params=[LORA, DORA], ids=["lora", "dora"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(Room(tmp_path_factory.mktemp("trained")), **request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(Room(tmp_path_factory.mktemp("plain")))


def test_heldout_gives_the_trial_s_own_number_to_the_bit(trained: Trained) -> None:
    outcome = trained.judged("heldout")
    assert outcome.kind is OutcomeKind.COMPLETED, outcome.reason
    assert outcome.scores == {"loss": trained.val_loss, "perplexity": math.exp(trained.val_loss)}
    assert trained.val_loss != trained.first_loss
    assert outcome.tokens > 0


def test_heldout_on_other_data_and_on_a_part_of_them(plain: Trained) -> None:
    data = {**plain.config["dataset_val"], "split": "train[16:32]"}
    other = plain.judged("heldout", {"dataset": data, "batch_size": 4})
    part = plain.judged("heldout", {"dataset": data, "batch_size": 4, "max_tokens": 30})
    assert other.scores["loss"] != plain.val_loss
    assert 30 <= part.tokens < other.tokens
    again = plain.judged("heldout", {"dataset": plain.config["dataset_val"], "batch_size": 16})
    assert again.scores["loss"] == pytest.approx(plain.val_loss, rel=1e-6)


def test_an_adapter_from_a_store_s_url(plain: Trained) -> None:
    adapter = plain.room.attempt(0, 1).adapter.as_uri()
    assert plain.judged("heldout", adapter=adapter).scores["loss"] == plain.val_loss


def test_a_merged_checkpoint_has_the_adapter_in_it_and_the_kept_base_has_not(trained: Trained) -> None:
    copy = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2]); print('|Tasks|Metric|Value|\\n|t|m|1|')"
    to = trained.room.root / "merged"
    outcome = trained.judged("command", {"command": [sys.executable, "-c", copy, "{merged}", str(to)]})
    assert outcome.scores == {"t/m": 1.0}, outcome.reason
    base = load_file(Path(trained.config["checkpointer"]["checkpoint_dir"]) / "model.safetensors")
    (path,) = to.glob("*.safetensors")
    merged = load_file(path)
    assert set(merged) == set(base)
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert any("q_proj" in name for name in changed)
    assert not any("norm" in name or "embed" in name for name in changed)
    assert trained.judged("heldout").scores["loss"] == trained.val_loss


COMMAND = """
import json, sys
from pathlib import Path
adapter, base, config, output, word = sys.argv[1:]
assert (Path(adapter) / "adapter_model.safetensors").exists() and (Path(base) / "model.safetensors").exists()
assert "lora_rank: 8" in Path(config).read_text()
Path(output).write_text(json.dumps({"results": {"task": {"acc,none": 0.5, "alias": "x"}}, "n": 3}))
print(word)
"""


def test_a_command_s_placeholders_and_its_scores(plain: Trained) -> None:
    words = [sys.executable, "-c", COMMAND, "{adapter}", "{base}", "{config}", "{output}", '{"json": 1}']
    outcome = plain.judged("command", {"command": words})
    assert outcome.scores == {"task/acc": 0.5}, outcome.reason
    said = plain.room.root / "evaluations" / "trials" / "00000" / "1" / "evaluation.log"
    assert said.read_text() == '{"json": 1}\n'


def test_the_base_is_out_of_memory_while_a_program_runs(plain: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    built = list[weakref.ref[Any]]()
    build, seen = LoraRecipe.__init__, list[str]()

    def watched(self: LoraRecipe, *args: Any) -> None:
        build(self, *args)
        model: Any = self.model
        built.extend((weakref.ref(self), weakref.ref(model.tok_embeddings.weight)))

    def program(words: list[str], *_: Any) -> None:
        seen.append("program")
        assert len(built) == 2
        assert [one() for one in built] == [None, None]
        write_atomic(Path(words[0]), '{"x": 1}')

    monkeypatch.setattr(LoraRecipe, "__init__", watched)
    monkeypatch.setattr(evaluation, "run_program", program)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append("given back"))
    plain.cache.clear()
    gc.collect()
    gc.disable()
    try:
        outcome = plain.judged("command", {"command": ["{output}", "{merged}"]})
    finally:
        gc.enable()
    assert outcome.scores == {"x": 1}, outcome.reason
    assert seen == ["given back", "program"]


@pytest.mark.parametrize(
    ("words", "failure", "text"),
    [
        (
            ["-c", "print('x'); raise SystemExit('no GPU left')"],
            FailureKind.PASSING,
            "failed with exit code 1: no GPU left",
        ),
        (["-c", "print('nothing')"], FailureKind.PASSING, "the evaluation has no score"),
        (["-c", "import time; time.sleep(60)"], FailureKind.PASSING, "timed out after evaluate.seconds=0.5"),
    ],
)
def test_a_command_that_fails_says_so_and_is_tried_again(
    plain: Trained, words: list[str], failure: FailureKind, text: str
) -> None:
    outcome = plain.judged(
        "command", {"command": [sys.executable, *words], "seconds": 0.5 if "sleep" in words[1] else None}
    )
    assert (outcome.kind, outcome.failure) == (OutcomeKind.FAILED, failure)
    assert text in outcome.reason
    assert outcome.resumable


def test_a_stop_ends_a_command_and_an_adapter_that_is_gone_is_told(plain: Trained) -> None:
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    spec = TrialSpec("s", 0, 2, "w", plain.config, 1, evaluate=Evaluation("command", {"command": words}))
    outcome = evaluate(plain.room, spec, plain.cache, lambda: (StopCause.INTERRUPTED, "enough"))
    assert (outcome.kind, outcome.cause, outcome.reason) == (OutcomeKind.STOPPED, StopCause.INTERRUPTED, "enough")
    lost = plain.judged("heldout", adapter="/nowhere")
    assert "there is no adapter in /nowhere" in lost.reason
    other = plain.judged("heldout", {"dataset": {"_component_": "os.system"}})
    assert other.failure is FailureKind.BAD_CONFIG
    assert "dataset._component_=os.system is not among" in other.reason


RECIPE = """
import json, sys
import torch
from torchtune import config, training

@config.parse
def recipe_main(cfg):
    torch.manual_seed(0)
    model = config.instantiate(cfg.model)
    model.load_state_dict(config.instantiate(cfg.checkpointer).load_checkpoint()[training.MODEL_KEY])
    total = float(sum(p.double().abs().sum() for p in model.parameters()))
    print(f"|Tasks|Version|Metric|   |Value |   |Stderr|")
    print(f"|-----|------:|------|---|-----:|---|-----:|")
    print(f"|toy  |      1|size  |↑  |{total:.4f}|±  |   N/A|")
    print(f"|     |      1|seed  |↑  |{cfg.seed}|±  |   N/A|")

if __name__ == "__main__":
    sys.exit(recipe_main())
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dir={merged}", "files={merged_files}"], {"dir": "{merged}", "files": ["a", "b"]}),
        (["list=['{merged}', {output}]"], {"list": ["{merged}", "{output}"]}),
        (["dir={merged}/x", "n=3", "lr=1e-3", "none=null"], {"dir": "{merged}/x", "n": 3, "lr": 1e-3, "none": None}),
        (["model=my.model", "model.path={merged}"], {"model": {"_component_": "my.model", "path": "{merged}"}}),
        (["other={unknown}"], {"other": {"unknown": None}}),
    ],
)
@pytest.mark.parametrize("folder", ["/a", "/a #1, b: [c] {output} 'd' \"e\" ünï", "~", "null", "1e3", "- x"])
def test_the_path_of_a_placeholder_is_a_text_with_any_characters(
    words: list[str], expected: dict[str, Any], folder: str
) -> None:
    values = {"merged": folder, "output": f"{folder}/o", "merged_files": "[a,b]"}

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return list(map(filled, value))
        if not isinstance(value, str):
            return value
        head, _, tail = value.partition("}")
        texts = {"{merged": f"{folder}{tail}", "{output": f"{folder}/o{tail}"}
        return texts.get(head, value)

    cfg = evaluation.with_overrides({"model": {"_component_": "x"}}, words, values)
    assert OmegaConf.to_container(cfg) == {"model": {"_component_": "x"}, **filled(expected)}


def test_a_torchtune_recipe_gets_the_merged_checkpoint(plain: Trained, tmp_path: Path) -> None:
    recipe = tmp_path / "toy_eval.py"
    write_atomic(recipe, RECIPE)
    model = {key: value for key, value in plain.config["model"].items() if not key.startswith(("lora_", "apply_lora"))}
    model["_component_"] = "torchtune.models.llama3.llama3"
    config = {"output_dir": "x", "seed": 1, "model": model, "checkpointer": dict(plain.config["checkpointer"])}
    options = {"recipe": str(recipe), "config": config, "overrides": {"seed": 7}}
    outcome = plain.judged("torchtune", options)
    assert outcome.kind is OutcomeKind.COMPLETED, outcome.reason
    assert outcome.scores["toy/seed"] == 7
    assert outcome.scores["toy/size"] > 0
    untouched = plain.judged(
        "torchtune",
        {
            **options,
            "overrides": {
                "checkpointer.checkpoint_dir": "{base}",
                "checkpointer.checkpoint_files": "[model.safetensors]",
            },
        },
    )
    assert untouched.scores["toy/size"] != outcome.scores["toy/size"]
