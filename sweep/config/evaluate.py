"""The kinds of evaluation as typed values: what is done with the adapter of each new best trial.

Invariant: a value that exists is valid in itself; what depends on other sections is checked in `config.check`. Each
kind has its own keys, and no other's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# What a program's words and a recipe's overrides may name; filled in by `trainer.evaluation.evaluate`.
PLACEHOLDERS = ("adapter", "base", "merged", "merged_files", "config", "directory", "output")


@dataclass
class NoEvaluation:
    """Nothing is evaluated."""

    kind: str = "none"


@dataclass
class Heldout:
    """Loss and perplexity on held-out data.

    Args:
        dataset: a torchtune data set; null: the recipe's `dataset_val`.
        batch_size: null: that of the trial's own validation, which gives its very number on the same data.
        max_tokens: label tokens after which it ends; null: all data.
        seconds: after which it is ended, and counts as failed; null: no limit.
    """

    kind: str = "heldout"
    dataset: Any = None
    batch_size: int | None = None
    max_tokens: int | None = None
    seconds: float | None = None


@dataclass
class Torchtune:
    """A torchtune recipe with a configuration of the user's; its scores are what it prints as lm-eval's table does.

    Args:
        recipe: a name that `tune ls` prints, a module, or a path that ends with `.py`.
        config: its configuration: a path or a name that `tune ls` prints; frozen as the mapping that the file holds.
        overrides: keys of it to change; texts may hold placeholders. By default its checkpointer reads the merged
            checkpoint.
        seconds: see `Heldout`.
    """

    kind: str = "torchtune"
    recipe: str = "eleuther_eval"
    config: Any = None
    overrides: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None


@dataclass
class Command:
    """A program of the user's, without a shell; its scores are the numbers of the JSON that it writes to `{output}`.

    Args:
        command: its words, or one text that is cut as a shell would.
        seconds: see `Heldout`.
    """

    kind: str = "command"
    command: Any = None
    seconds: float | None = None


@dataclass
class LmEval:
    """lm-eval's tasks on the trial's own model and tokenizer, by torchtune's recipe `eleuther_eval`.

    Args:
        tasks: their names.
        limit: rows of each task; null: all.
        include_path: a directory with further tasks.
        max_seq_length: null: the model's own.
        seconds: see `Heldout`.
    """

    kind: str = "lm_eval"
    tasks: list[str] = field(default_factory=list)
    limit: int | None = None
    batch_size: int = 8
    max_seq_length: int | None = None
    enable_kv_cache: bool = True
    include_path: str | None = None
    seconds: float | None = None


Evaluator = NoEvaluation | Heldout | Torchtune | Command | LmEval
EVALUATORS: dict[str, type[Evaluator]] = {
    "none": NoEvaluation,
    "heldout": Heldout,
    "torchtune": Torchtune,
    "command": Command,
    "lm_eval": LmEval,
}
