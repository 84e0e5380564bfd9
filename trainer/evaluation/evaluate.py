"""One attempt of an evaluation, from its specification to its outcome: it scores a trial's finished adapter.

Kinds: `heldout` computes loss and perplexity over a data set, with the numbers of the trial's own validation.
`torchtune` runs a user's configuration of a torchtune recipe, and `command` a user's program. `lm_eval` runs
torchtune's recipe around lm-eval, with the trial's own model and tokenizer.

Invariants: every end of an evaluation is exactly one `Outcome`, which holds the scores. Other files are in the
attempt's directory and are deleted at the end, except a program's output. A failure that another try cannot repair is
`bad_config`; every other failure is retried.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from trainer.base import LORA_KEYS, Cache
from trainer.configuration import current_config, trusted_config
from trainer.contract import Evaluation, FailureKind, Outcome, OutcomeKind, StopSignal, TrialSpec
from trainer.data import build_collate, build_dataset, build_tokenizer
from trainer.environment import reveal
from trainer.evaluation.adapters import load_adapter, save_merged
from trainer.evaluation.external import EvaluationError, StoppedError, fill_placeholders, read_scores, run_program
from trainer.failures import classify, describe
from trainer.recipe import LoraRecipe
from trainer.room import AttemptDir, Room
from trainer.tracking.scores import fetch_adapter, upload_scores

_log = logging.getLogger(__name__)

# Makes a recipe that never trains need as little as possible.
IDLE = {"epochs": 1, "batch_size": 1, "gradient_accumulation_steps": 1, "max_steps_per_epoch": 1, "dataset_val": None}
TUNE_RUN = (sys.executable, "-P", "-m", "torchtune._cli.tune", "run")
# Arguments of a LoRA model's builder that the builder of its base does not take.
LORA_ARGUMENTS = (*LORA_KEYS, "use_dora", "quantize_base")
NO_LM_EVAL = "lm_eval, which {} asks for, needs lm-eval on this machine: pip install 'sweeps-on-launch[lm-eval]'"


def evaluate(room: Room, spec: TrialSpec, cache: Cache, should_stop: StopSignal) -> Outcome:
    """Score an adapter, and add the scores to its trial's W&B run.

    Args:
        cache: what the worker keeps between evaluations.
        should_stop: asked between batches, and while a program runs.
    """
    began = time.perf_counter()
    assert spec.evaluate is not None
    run = EvaluationRun(spec, spec.evaluate, room.attempt(spec.trial, spec.attempt), cache, should_stop)
    try:
        scores = run.scores()
        if spec.evaluate.tracking is not None:
            upload_scores(spec.evaluate.tracking, run.files, scores)
        seconds = time.perf_counter() - began
        return Outcome(OutcomeKind.COMPLETED, tokens=run.tokens, seconds=seconds, scores=scores)
    except StoppedError as stop:
        return Outcome(OutcomeKind.STOPPED, stop.reason, cause=stop.cause, seconds=time.perf_counter() - began)
    except Exception as error:
        _log.exception("the evaluation of trial %d attempt %d failed", spec.trial, spec.attempt)
        kind = classify(error)
        if kind is FailureKind.OUT_OF_MEMORY:
            cache.clear()
        final = kind in (FailureKind.BAD_CONFIG, FailureKind.NO_SPACE)
        reason = str(error) if isinstance(error, EvaluationError) else describe(error)
        seconds = time.perf_counter() - began
        return Outcome(OutcomeKind.FAILED, reason, failure=kind if final else FailureKind.PASSING, seconds=seconds)
    finally:
        shutil.rmtree(run.scratch, ignore_errors=True)


@dataclass
class EvaluationRun:
    """One evaluation.

    Args:
        files: the attempt's directory.
        tokens: label tokens that were scored; 0 for programs, which do not count them.
        recipe: the trial itself while it trains, whose model has the adapter; None: a model is built for the adapter.
        key: of the section in the configuration, for error texts.
    """

    spec: TrialSpec
    evaluation: Evaluation
    files: AttemptDir
    cache: Cache
    should_stop: StopSignal
    tokens: int = 0
    recipe: LoraRecipe | None = None
    key: str = "evaluate"

    @property
    def scratch(self) -> Path:
        return self.files.path / "scratch"

    def scores(self) -> dict[str, float]:
        """The scores by name.

        Raises:
            EvaluationError: a program failed, took too long or left no score.
            StoppedError: it was asked to stop.
            ValueError: the kind is unknown, or the data have no label. torchtune raises further errors.
        """
        self.scratch.mkdir(parents=True, exist_ok=True)
        match self.evaluation.kind:
            case "heldout":
                return self._heldout()
            case "torchtune":
                return self._torchtune(self.evaluation.options)
            case "command":
                return self._run(self.evaluation.options["command"])
            case "lm_eval":
                return self._lm_eval()
        raise ValueError(
            f"{self.key}.kind={self.evaluation.kind} is unknown to this worker; update sweeps-on-launch on its machine"
        )

    # --- heldout -------------------------------------------------------------------------------------------------

    def _heldout(self) -> dict[str, float]:
        validation = self._recipe.loss_over(self._batches())
        if validation is None:
            raise ValueError("the held-out data have no label token; set evaluate.dataset to data with answers")
        self.tokens = validation.tokens
        return {"loss": validation.loss, "perplexity": validation.perplexity}

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The held-out rows in their order, in batches of the trial's validation, or of `evaluate.batch_size` rows."""
        cfg, recipe, options = current_config(self.spec), self._recipe, self.evaluation.options
        size = int(options.get("batch_size") or cfg.get("batch_size_val") or cfg.batch_size)
        limit = options.get("max_tokens") or math.inf
        seconds = options.get("seconds") or math.inf
        data = build_dataset(self._data, cfg, self.cache, "dataset")
        collate = build_collate(cfg, self._data, data, recipe.ignored, build_tokenizer(cfg, self.cache))
        began, tokens = time.monotonic(), 0
        for start in range(0, len(data), size):
            if stop := self.should_stop():
                raise StoppedError(*stop)
            if time.monotonic() - began > seconds:
                raise EvaluationError(f"the evaluation timed out after {self.key}.seconds={seconds:g}")
            batch = collate([data[index] for index in range(start, min(start + size, len(data)))])
            yield batch
            tokens += recipe.label_tokens(batch)
            if tokens >= limit:
                return

    @cached_property
    def _data(self) -> Any:
        cfg = current_config(self.spec)
        given = self.evaluation.options.get("dataset")
        if given:
            return trusted_config({"dataset": given}, self.spec.components).dataset
        return cfg.get("dataset_val") or cfg.dataset

    @cached_property
    def _recipe(self) -> LoraRecipe:
        """The trial's model on the worker's base, with the finished adapter."""
        if self.recipe is not None:
            return self.recipe
        cfg = current_config(self.spec)
        cfg = OmegaConf.create({**{str(key): cfg[key] for key in cfg}, **IDLE, "dataset": self._data})
        recipe = LoraRecipe(cfg, self.cache, self.scratch)
        load_adapter(recipe, self._adapter, self.scratch)
        return recipe

    @cached_property
    def _adapter(self) -> Path:
        return fetch_adapter(self.evaluation, self.scratch / "adapter")

    # --- programs ------------------------------------------------------------------------------------------------

    def _run(self, command: list[str]) -> dict[str, float]:
        return self._scores_of(fill_placeholders(reveal(command), self._values(command)))

    def _scores_of(self, command: list[str]) -> dict[str, float]:
        log = self.files.path / "evaluation.log"
        run_program(command, log, self.evaluation.options.get("seconds"), self.should_stop, self.key)
        return read_scores(self.scratch / "scores.json", log)

    def _torchtune(self, options: Mapping[str, Any]) -> dict[str, float]:
        """Run a recipe with its configuration, in which the merged checkpoint replaces the base."""
        defaults = {"output_dir": "{directory}"}
        if "checkpointer" in options["config"]:
            defaults |= {
                "checkpointer.checkpoint_dir": "{merged}",
                "checkpointer.checkpoint_files": "{merged_files}",
                "checkpointer.output_dir": "{directory}",
            }
        changes = {**defaults, **(options.get("overrides") or {})}
        overrides = [f"{key}={'null' if value is None else value}" for key, value in changes.items()]
        path = self.scratch / "evaluation.yaml"
        cfg = with_overrides(options["config"], overrides, self._values(overrides))
        trusted_config(OmegaConf.to_container(cfg, resolve=True), self.spec.components)  # type: ignore[arg-type]
        OmegaConf.save(cfg, path)  # unresolved: the recipe reads the environment by itself
        recipe = str(options["recipe"])
        # `tune run` accepts other recipes by their module's name only, so that a file is run as it runs its own
        command = [sys.executable, recipe] if recipe.endswith(".py") else [*TUNE_RUN, recipe]
        return self._scores_of([*command, "--config", str(path)])

    def _lm_eval(self) -> dict[str, float]:
        if importlib.util.find_spec("lm_eval") is None:
            raise ValueError(NO_LM_EVAL.format(self.key))
        return self._torchtune(
            {"recipe": "eleuther_eval", "config": lm_eval_config(self.spec.config, self.evaluation.options)}
        )

    def _values(self, command: list[str]) -> dict[str, str]:
        """The values of the placeholders in a command; the costly ones are made only if it names them."""
        text = " ".join(command)
        values = {
            "adapter": str(self._adapter) if "{adapter}" in text else "",
            "base": str(current_config(self.spec).checkpointer.checkpoint_dir),
            "config": str(self.scratch / "trial.yaml"),
            "directory": str(self.scratch / "out"),
            "output": str(self.scratch / "scores.json"),
        }
        (self.scratch / "trial.yaml").write_text(
            yaml.safe_dump(dict(self.spec.config), sort_keys=False), encoding="utf-8"
        )
        if "{merged}" in text or "{merged_files}" in text:
            merged = self.scratch / "merged"
            names = save_merged(self._recipe, merged)
            values |= {"merged": str(merged), "merged_files": f"[{','.join(names)}]"}
            del self._recipe  # so that the program can have its memory
            if self.recipe is None:
                self.cache.clear()
            torch.cuda.empty_cache()  # torch keeps freed memory until then
        return values


def with_overrides(config: Mapping[str, Any], overrides: Sequence[str], values: Mapping[str, str]) -> DictConfig:
    """A torchtune configuration with overrides `KEY=VALUE`, by the rules of `tune run`, unresolved.

    `model=PATH` replaces the `_component_` of `model`. Values are YAML.

    Args:
        values: by name, what placeholders stand for: `merged_files` for a list in YAML, any other for a text, in which
            no character is YAML's.
    """
    cfg = OmegaConf.create(dict(config))
    words = []
    for word in overrides:
        key, _, value = word.partition("=")
        node = OmegaConf.select(cfg, key)
        inner = "._component_" if isinstance(node, DictConfig) and "_component_" in node else ""
        words.append(f"{key}{inner}={value}")
    words = fill_placeholders(words, {name: values[name] if name == "merged_files" else _mark(name) for name in values})
    changes = OmegaConf.to_container(OmegaConf.from_dotlist(words))
    merged = OmegaConf.merge(cfg, OmegaConf.create(_unmarked(changes, values)))
    assert isinstance(merged, DictConfig)
    return merged


def _mark(name: str) -> str:
    """A word that YAML reads as a text, in place of a path with any characters."""
    return f"placeholder-{name}-"


def _unmarked(value: Any, values: Mapping[str, str]) -> Any:
    """The values with the texts of placeholders in place of their marks."""
    if isinstance(value, dict):
        return {key: _unmarked(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_unmarked(item, values) for item in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"placeholder-(\w+)-", lambda match: values.get(match[1], match[0]), value)


def lm_eval_config(trial: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of torchtune's `eleuther_eval` for a trial's own model and tokenizer.

    Args:
        trial: its resolved torchtune configuration.
        options: those of `evaluate=lm_eval`; see `sweep.config.evaluate`.
    """
    model = {key: value for key, value in trial["model"].items() if key not in LORA_ARGUMENTS}
    module, _, builder = str(model["_component_"]).rpartition(".")
    model["_component_"] = f"{module}.{builder.removeprefix('lora_')}"  # torchtune names the base's builder so
    tokenizer = {**trial["tokenizer"], **({"max_seq_len": None} if "max_seq_len" in trial["tokenizer"] else {})}
    longest = trial["model"].get("max_seq_len") or trial["tokenizer"].get("max_seq_len") or 4096
    return {
        "output_dir": "out",
        "model": model,
        "checkpointer": dict(trial["checkpointer"]),
        "tokenizer": tokenizer,
        "device": trial["device"],
        "dtype": trial["dtype"],
        "seed": 1234,  # lm-eval's own
        "tasks": list(options["tasks"]),
        "limit": options.get("limit"),
        "max_seq_length": options.get("max_seq_length") or longest,
        "batch_size": options.get("batch_size") or 8,
        "enable_kv_cache": bool(options.get("enable_kv_cache", True)),
        "include_path": options.get("include_path"),
        "quantizer": None,
    }
