"""The metrics that need nothing but what a trial knows anyway: of its validation pass, and of the run.

Invariant: no forward pass. What is counted of the validation data is kept between trials.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping

from trainer.base import Cache
from trainer.contract import Report
from trainer.data import build_tokenizer
from trainer.metrics.errors import MeasurementError
from trainer.metrics.texts import text_of
from trainer.recipe import LoraRecipe, Validation

VALIDATION = ("val_loss", "perplexity", "token_accuracy", "bits_per_byte")
RUN = ("trained_seconds", "tokens_per_second", "peak_memory_gib", "adapter_megabytes")


def validation_value(measure: str, validation: Validation, recipe: LoraRecipe, cache: Cache) -> float:
    """One of `VALIDATION`.

    `token_accuracy` is the share of labels that are the likeliest token after the true tokens before them.
    `bits_per_byte` divides the summed loss in bits by the bytes of the labels' text in UTF-8. Special tokens, such as
    the end of a turn, have no text, so that tokenizers can be compared.
    """
    if measure == "val_loss":
        return validation.loss
    if measure == "perplexity":
        return validation.perplexity
    if measure == "token_accuracy":
        return validation.correct / validation.predicted if validation.predicted else math.nan
    size = label_bytes(recipe, cache)
    if not size:
        raise MeasurementError("the labels of dataset_val have no text")
    return validation.loss * validation.tokens / math.log(2) / size


def label_bytes(recipe: LoraRecipe, cache: Cache) -> int:
    """Bytes of the text of all labels of `dataset_val`; kept between trials."""
    cfg = recipe.cfg

    def count() -> int:
        tokenizer = build_tokenizer(cfg, cache)
        rows = [row for batch in recipe.validation_batches() for row in batch["labels"].tolist()]
        texts = (text_of(tokenizer, [label for label in row if label != recipe.ignored]) for row in rows)
        return sum(len(text.encode(errors="replace")) for text in texts)

    return cache.get("label_bytes", [cfg.tokenizer, cfg.dataset_val, cfg.get("collate_fn")], count)


def run_value(measure: str, report: Report, recipe: LoraRecipe, trained: float) -> float:
    """One of `RUN`.

    Args:
        report: without its scores.
        trained: seconds in which the trial has trained.
    """
    values: Mapping[str, float] = {
        "trained_seconds": trained,
        "tokens_per_second": report.tokens_per_second,
        "peak_memory_gib": report.memory_gib or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "adapter_megabytes": sum(p.numel() * p.element_size() for p in recipe.trainable) / 1e6,
    }
    return values[measure]
