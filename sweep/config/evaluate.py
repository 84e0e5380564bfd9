"""The kinds of evaluation as typed values: how the adapter of each new best trial is judged.

Invariants: a value that exists is valid in itself; what depends on other sections is checked in `evaluation.jobs`.
Each kind has its own keys and no other's. Every field has a line under `Args`, from which docs/configuration.md is
generated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sweep.config.ranges import AT_LEAST_ONE, POSITIVE, Range

# What a command and a recipe's overrides may name in braces; `trainer.evaluation.evaluate` fills them in.
PLACEHOLDERS = ("adapter", "base", "merged", "merged_files", "config", "directory", "output")


@dataclass
class NoEvaluation:
    """Nothing is evaluated."""

    kind: str = "none"


@dataclass
class Heldout:
    """Loss and perplexity on held-out data.

    Args:
        dataset: a torchtune data set, with `_component_` as in a recipe. null: the recipe's `dataset_val`.
        batch_size: rows of a batch. null: that of the trial's own validation, with which the loss equals the trial's
            last `val_loss` on the same data.
        max_tokens: label tokens after which the evaluation ends. null: all data.
        seconds: time limit, in seconds; an evaluation that exceeds it counts as failed. null: no limit.
    """

    kind: str = "heldout"
    dataset: Any = None
    batch_size: int | None = None
    max_tokens: int | None = None
    seconds: float | None = None

    RANGES: ClassVar[Mapping[str, Range]] = {
        "batch_size": AT_LEAST_ONE,
        "max_tokens": AT_LEAST_ONE,
        "seconds": POSITIVE,
    }


@dataclass
class Torchtune:
    """A torchtune recipe with a configuration of your own. Scores are read from the table that it prints.

    Args:
        recipe: a name that `tune ls` prints, a module, or a path that ends with `.py`.
        config: its configuration: a path, or a name that `tune ls` prints. The file's content is frozen with the sweep.
        overrides: keys of that configuration to change. Texts may hold placeholders (docs/evaluation.md). By default
            its checkpointer reads the base with the adapter merged into it.
        seconds: time limit, in seconds; an evaluation that exceeds it counts as failed. null: no limit.
    """

    kind: str = "torchtune"
    recipe: str = "eleuther_eval"
    config: Any = None
    overrides: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    RANGES: ClassVar[Mapping[str, Range]] = {"seconds": POSITIVE}


@dataclass
class Command:
    """A program of your own, run without a shell. Scores are the numbers of the JSON that it writes to `{output}`.

    Args:
        command: the program and its arguments, as a list or as one text that is split as a shell would. Texts may hold
            placeholders (docs/evaluation.md).
        seconds: time limit, in seconds; an evaluation that exceeds it counts as failed. null: no limit.
    """

    kind: str = "command"
    command: Any = None
    seconds: float | None = None

    RANGES: ClassVar[Mapping[str, Range]] = {"seconds": POSITIVE}


@dataclass
class LmEval:
    """Tasks of lm-eval on the trial's own model and tokenizer, through torchtune's recipe `eleuther_eval`.

    Args:
        tasks: names of the tasks.
        limit: rows of each task. null: all.
        batch_size: rows of a batch.
        max_seq_length: tokens of a row at most. null: the model's own maximum.
        enable_kv_cache: keep keys and values while text is generated. Switch it off if memory is short.
        include_path: a directory with further tasks. null: lm-eval's own only.
        seconds: time limit, in seconds; an evaluation that exceeds it counts as failed. null: no limit.
    """

    kind: str = "lm_eval"
    tasks: list[str] = field(default_factory=list)
    limit: int | None = None
    batch_size: int = 8
    max_seq_length: int | None = None
    enable_kv_cache: bool = True
    include_path: str | None = None
    seconds: float | None = None

    RANGES: ClassVar[Mapping[str, Range]] = {
        "limit": AT_LEAST_ONE,
        "batch_size": AT_LEAST_ONE,
        "max_seq_length": AT_LEAST_ONE,
        "seconds": POSITIVE,
    }


Evaluator = NoEvaluation | Heldout | Torchtune | Command | LmEval
EVALUATORS: dict[str, type[Evaluator]] = {
    "none": NoEvaluation,
    "heldout": Heldout,
    "torchtune": Torchtune,
    "command": Command,
    "lm_eval": LmEval,
}
