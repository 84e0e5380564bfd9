"""The metrics that judge a trial's answers to prompts: what they ask, and the score of what was answered."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from trainer.base import Cache
from trainer.contract import Metric
from trainer.data import build_tokenizer
from trainer.environment import reveal
from trainer.metrics.answers import Question, write_answers
from trainer.metrics.errors import MeasurementError, MetricError
from trainer.metrics.prompts import Row, check_references, choose_rows, longest_prompt, read_rows
from trainer.metrics.scorers import Scorer, build_scorer, last_number, needs_reference
from trainer.metrics.texts import stop_ids, text_of
from trainer.room import AttemptDir
from trainer.sampling import Sampling

# What decides which answers are asked for; metrics in which these are equal share them.
_ASKS = ("data", "prompt", "reference", "rows", "max_new_tokens", "temperature", "top_k", "seed", "seconds")


@dataclass(frozen=True, slots=True)
class Generation:
    """A metric of answers, ready to ask.

    Args:
        asks: equal for metrics that share their answers.
    """

    name: str
    asks: str
    rows: Sequence[Row]
    sampling: Sampling
    seconds: float | None
    scorer: Scorer

    def question(self) -> Question:
        """What is asked, without answers yet."""
        return Question(self.rows, self.sampling, self.seconds)

    def score(self, question: Question, tokenizer: Any, files: AttemptDir, milestone: int) -> float:
        """The mean score of the answers, which are written for a person.

        Raises:
            MeasurementError: there are no answers, or a user's function failed.
        """
        if question.problem:
            raise MetricError(question.problem)
        texts = [text_of(tokenizer, answer) for answer in question.answers]
        scores = [self._score_row(row, text) for row, text in zip(self.rows, texts, strict=True)]
        write_answers(files, self.name, milestone, self.rows, texts, scores)
        return statistics.fmean(scores)

    def _score_row(self, row: Row, answer: str) -> float:
        try:
            return self.scorer(answer, row.reference)
        except MeasurementError as error:
            raise MeasurementError(f"{error} (row {row.number})") from error


def prepare_generation(
    metric: Metric, cfg: DictConfig, max_seq_len: int, components: Sequence[str], cache: Cache
) -> Generation:
    """Build what a metric of answers needs; the rows are kept between trials.

    Args:
        max_seq_len: of the model.

    Raises:
        MetricError: the data cannot be used, or the scorer does not exist.
        ComponentError: the data or the scorer name code that is not trusted, or does not exist.
    """
    key, options = f"metric.{metric.name}", reveal(dict(metric.options))
    score = str(options.get("score"))
    scorer = build_scorer(key, score, options.get("pattern"), components)
    tokenizer = build_tokenizer(cfg, cache)
    try:
        sampling = Sampling(
            max_new_tokens=int(options.get("max_new_tokens", 128)),
            temperature=float(options.get("temperature", 0.0)),
            top_k=options.get("top_k"),
            seed=int(options.get("seed", 0)),
            stop=stop_ids(tokenizer),
        )
    except ValueError as error:
        raise MetricError(f"{key}: {error}") from error
    rows = _rows(
        metric.name, options, cfg, components, cache, longest_prompt(tokenizer, max_seq_len, sampling.max_new_tokens)
    )
    if needs_reference(score):
        check_references(rows, key, options)
    asks = repr({name: options.get(name) for name in _ASKS})
    return Generation(metric.name, asks, rows, sampling, options.get("seconds"), scorer)


def _has_number(reference: Any) -> bool:
    texts = reference if isinstance(reference, list) else [reference]
    return any(last_number(text) is not None for text in texts if text is not None)


def _rows(
    name: str, options: Mapping[str, Any], cfg: DictConfig, components: Sequence[str], cache: Cache, longest: int
) -> list[Row]:
    key = f"metric.{name}"

    def make() -> list[Row]:
        rows = read_rows(cfg, options, components, cache, key)
        return choose_rows(rows, int(options.get("rows", 64)), longest, key)

    named = {option: options.get(option) for option in ("data", "prompt", "reference", "rows")}
    from_recipe = cfg.get("dataset_val") if options.get("data") is None else None
    return cache.get(f"rows of {name}", [cfg.tokenizer, named, from_recipe, longest], make)


def check_scorer(generation: Generation, score: str, key: str) -> None:
    """Judge a reference as if it were the answer, so that a user's function that cannot be used is seen early.

    Raises:
        MetricError: the function raises, or returns no number; or no reference has a number to compare.
    """
    if score == "number_match" and not any(_has_number(row.reference) for row in generation.rows):
        raise MetricError(
            f"{key}.score=number_match finds no number in any of {len(generation.rows)} references; name the column "
            f"of the references in {key}.reference, or use another score"
        )
    row = next((row for row in generation.rows if row.reference is not None), generation.rows[0])
    reference = row.reference[0] if isinstance(row.reference, list) else row.reference
    try:
        generation.scorer(reference or "", row.reference)
    except MeasurementError as error:
        raise MetricError(f"{key}.score={score}: {error} (row {row.number})") from error
