"""An attempt that judges its trial's finished adapter in the place of training: from its specification to its outcome.

Kinds: `heldout` (loss and perplexity over a data set, with the numbers of the trial's own validation), `torchtune` (a
user's configuration of a torchtune recipe), `command` (a user's program), `lm_eval` (torchtune's recipe around lm-eval,
with the trial's own model and tokenizer).

Invariants: every way it can end becomes exactly one `Outcome`, in which the scores travel. What it writes besides lies
in its attempt's directory, and goes at its end, but for what a program said. What a second try cannot mend is
`bad_config`; all else is tried again.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf

from trainer.attempt import StopSignal, classify, current, describe
from trainer.base import LORA_KEYS, Cache, build_collate, build_dataset, build_tokenizer
from trainer.components import check_components
from trainer.contract import Evaluation, FailureKind, Outcome, OutcomeKind, TrialSpec
from trainer.evaluation.adapters import load_adapter, save_merged
from trainer.evaluation.external import EvaluationError, StoppedError, filled, read_scores, run_program
from trainer.recipe import LoraRecipe
from trainer.room import AttemptDir, Room
from trainer.tracking.scores import fetch_adapter, tell_scores

_log = logging.getLogger(__name__)

# A recipe that never trains: as little of what training needs as it takes.
IDLE = {"epochs": 1, "batch_size": 1, "gradient_accumulation_steps": 1, "max_steps_per_epoch": 1, "dataset_val": None}
TUNE_RUN = (sys.executable, "-m", "torchtune._cli.tune", "run")
# What a LoRA builder takes and its base's own does not.
LORA_WORDS = (*LORA_KEYS, "use_dora", "quantize_base")
NO_LM_EVAL = "evaluate=lm_eval needs lm-eval on this machine: pip install 'sweeps-on-launch[lm-eval]'"


def evaluate(room: Room, spec: TrialSpec, cache: Cache, should_stop: StopSignal) -> Outcome:
    """Judge an adapter, and have its scores land on its trial's run.

    Args:
        cache: what the worker keeps between evaluations.
    """
    began = time.perf_counter()
    assert spec.evaluate is not None
    judge = Judge(spec, spec.evaluate, room.attempt(spec.trial, spec.attempt), cache, should_stop)
    try:
        check_components([spec.config, spec.evaluate.options.get("dataset")], spec.components)
        scores = judge.scores()
        if spec.evaluate.tracking is not None:
            tell_scores(spec.evaluate.tracking, judge.files, scores)
        seconds = time.perf_counter() - began
        return Outcome(OutcomeKind.COMPLETED, tokens=judge.tokens, seconds=seconds, scores=scores)
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
        shutil.rmtree(judge.scratch, ignore_errors=True)


@dataclass
class Judge:
    """One evaluation.

    Args:
        tokens: label tokens that it judged, where it counts them.
    """

    spec: TrialSpec
    asked: Evaluation
    files: AttemptDir
    cache: Cache
    should_stop: StopSignal
    tokens: int = 0

    @property
    def scratch(self) -> Path:
        return self.files.path / "scratch"

    def scores(self) -> dict[str, float]:
        """What the kind finds, by name.

        Raises:
            EvaluationError, StoppedError, and what torchtune raises.
        """
        self.scratch.mkdir(parents=True, exist_ok=True)
        match self.asked.kind:
            case "heldout":
                return self._heldout()
            case "torchtune":
                return self._torchtune(self.asked.options)
            case "command":
                return self._run(self.asked.options["command"])
            case "lm_eval":
                return self._lm_eval()
        raise ValueError(f"evaluate.kind={self.asked.kind} is unknown to this worker; update it")

    # --- heldout -------------------------------------------------------------------------------------------------

    def _heldout(self) -> dict[str, float]:
        loss, self.tokens = self._recipe.loss_over(self._batches())
        if loss is None:
            raise ValueError("the held-out data have no label token")
        return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The held-out rows in their order, batched as in the trial's validation unless another size is asked for."""
        cfg, recipe, options = current(self.spec), self._recipe, self.asked.options
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
                raise EvaluationError(f"it was ended after {seconds:g} s (evaluate.seconds)")
            batch = collate([data[index] for index in range(start, min(start + size, len(data)))])
            yield batch
            tokens += recipe.label_tokens(batch)
            if tokens >= limit:
                return

    @cached_property
    def _data(self) -> Any:
        cfg = current(self.spec)
        given = self.asked.options.get("dataset")
        return OmegaConf.create(given) if given else cfg.get("dataset_val") or cfg.dataset

    @cached_property
    def _recipe(self) -> LoraRecipe:
        """The trial's model on the worker's base, with the finished adapter in it."""
        cfg = current(self.spec)
        cfg = OmegaConf.create({**{str(key): cfg[key] for key in cfg}, **IDLE, "dataset": self._data})
        recipe = LoraRecipe(cfg, self.cache, self.scratch)
        load_adapter(recipe, self._adapter, self.scratch)
        return recipe

    @cached_property
    def _adapter(self) -> Path:
        return fetch_adapter(self.asked, self.scratch / "adapter")

    # --- programs ------------------------------------------------------------------------------------------------

    def _run(self, words: list[str]) -> dict[str, float]:
        said = self.files.path / "evaluation.log"
        run_program(filled(words, self._values(words)), said, self.asked.options.get("seconds"), self.should_stop)
        return read_scores(self.scratch / "scores.json", said)

    def _torchtune(self, options: Mapping[str, Any]) -> dict[str, float]:
        """Run a recipe with its configuration, in which the base's place is taken by the merged checkpoint."""
        path = self.scratch / "evaluation.yaml"
        path.write_text(yaml.safe_dump(dict(options["config"]), sort_keys=False))
        defaults = {"output_dir": "{directory}"}
        if "checkpointer" in options["config"]:
            defaults |= {
                "checkpointer.checkpoint_dir": "{merged}",
                "checkpointer.checkpoint_files": "{merged_files}",
                "checkpointer.output_dir": "{directory}",
            }
        changes = {**defaults, **(options.get("overrides") or {})}
        words = [f"{key}={'null' if value is None else value}" for key, value in changes.items()]
        recipe = str(options["recipe"])
        # a file is run as `tune run` runs its own; that takes others by a module's name only
        command = [sys.executable, recipe] if recipe.endswith(".py") else [*TUNE_RUN, recipe]
        return self._run([*command, "--config", str(path), *words])

    def _lm_eval(self) -> dict[str, float]:
        if importlib.util.find_spec("lm_eval") is None:
            raise ValueError(NO_LM_EVAL)
        return self._torchtune(
            {"recipe": "eleuther_eval", "config": lm_eval_config(self.spec.config, self.asked.options)}
        )

    def _values(self, words: list[str]) -> dict[str, str]:
        """What the placeholders in these words stand for; what is costly is made where it is asked for."""
        text = " ".join(words)
        values = {
            "adapter": str(self._adapter) if "{adapter}" in text else "",
            "base": str(self.spec.config["checkpointer"]["checkpoint_dir"]),
            "config": str(self.scratch / "trial.yaml"),
            "directory": str(self.scratch / "out"),
            "output": str(self.scratch / "scores.json"),
        }
        (self.scratch / "trial.yaml").write_text(yaml.safe_dump(dict(self.spec.config), sort_keys=False))
        if "{merged}" in text or "{merged_files}" in text:
            merged = self.scratch / "merged"
            names = save_merged(self._recipe, merged)
            values |= {"merged": str(merged), "merged_files": f"[{','.join(names)}]"}
            del self._recipe  # its memory is the program's now
            self.cache.clear()
            torch.cuda.empty_cache()  # what is free stays this process's until it is given back
        return values


def lm_eval_config(trial: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of torchtune's `eleuther_eval` for a trial's own model and tokenizer.

    Args:
        trial: its resolved torchtune configuration.
    """
    model = {key: value for key, value in trial["model"].items() if key not in LORA_WORDS}
    module, _, builder = str(model["_component_"]).rpartition(".")
    model["_component_"] = f"{module}.{builder.removeprefix('lora_')}"  # as torchtune names a LoRA model and its base
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
