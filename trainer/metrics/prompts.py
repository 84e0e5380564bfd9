"""Rows of data as prompts with references: the tokens that come before an answer in training, and the answer.

A prompt is what the tokens of a row have in common whatever its answer is. So it has the beginning of the answer's turn
too, and is the same as in training with every tokenizer and template.

Invariants: rows are taken in their order. A row without a prompt, or whose prompt leaves no space for an answer, is
left out. Nothing is drawn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from torchtune.data import Message
from torchtune.datasets import ConcatDataset, SFTDataset

from trainer.base import Cache
from trainer.configuration import trusted_config
from trainer.data import build_tokenizer
from trainer.failures import describe
from trainer.metrics.errors import MetricError
from trainer.metrics.texts import text_of
from trainer.sampling import Prompt

IGNORED = -100
# Stand for an answer: tokenizers have no tokens of one text in common with those of the other.
_ANSWERS = ("", "x")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Args:
        number: of the row in its data, from 0.
        prompt: its tokens.
        text: the prompt for a person.
        reference: a text, or a list of texts of which any is right; None: the row has none.
    """

    number: int
    prompt: Prompt
    text: str
    reference: Any


def choose_rows(rows: Iterable[Row], count: int, longest: int, key: str) -> list[Row]:
    """The first rows whose prompts leave space for an answer.

    Args:
        longest: tokens of a prompt at most.

    Raises:
        MetricError: there is none.
    """
    seen = 0
    chosen: list[Row] = []
    for row in rows:
        if len(chosen) == count:
            break
        seen += 1
        chosen += [row] if 0 < len(row.prompt) <= longest else []
    if not chosen:
        raise MetricError(
            f"{key}: none of {seen} rows has a prompt that leaves space for an answer; a prompt may have {longest} "
            "tokens, so name data with shorter ones, or lower max_new_tokens"
            if seen
            else f"{key}: its data have no row with a prompt and an answer; name data with answers"
        )
    return chosen


def longest_prompt(tokenizer: Any, max_seq_len: int, max_new_tokens: int) -> int:
    """How many tokens a prompt may have.

    Args:
        max_seq_len: of the model. A prompt that fills the tokenizer's own `max_seq_len` was cut.
    """
    own = getattr(tokenizer, "max_seq_len", None)
    return min(max_seq_len - max_new_tokens, max_seq_len if own is None else int(own) - 2)


def check_references(rows: Sequence[Row], key: str, options: Mapping[str, Any]) -> None:
    """Refuse rows without a reference.

    Raises:
        MetricError: with the data, the number of such rows and the first of them.
    """
    without = [row.number for row in rows if row.reference is None]
    if without:
        raise MetricError(
            f"{key}.data={options.get('data') or 'dataset_val'} has no reference in {len(without)} of {len(rows)} "
            f"rows, the first is row {without[0]}; name the column of the references in {key}.reference, which is "
            f"{options.get('reference') or 'reference'}"
        )


def read_rows(
    cfg: DictConfig, options: Mapping[str, Any], components: Sequence[str], cache: Cache, key: str
) -> Iterator[Row]:
    """The rows of a metric's data that have a prompt.

    Args:
        cfg: the trial's configuration, of which the tokenizer and perhaps `dataset_val` are used.
        options: `data`, `prompt` and `reference` of the metric; see `sweep.config.metrics`.
        key: of the metric in the configuration, for error texts.

    Raises:
        MetricError: the data cannot be read. ComponentError: they name code that is not trusted.
    """
    data, tokenizer = options.get("data"), build_tokenizer(cfg, cache)
    if isinstance(data, str):
        yield from _from_file(Path(data), options, tokenizer, key)
        return
    if data is not None:
        dataset = trusted_config({"metric": {key.removeprefix("metric."): {"data": data}}}, components)
        dataset = next(iter(dataset.metric.values())).data
    elif cfg.get("dataset_val") is not None:
        dataset, key = cfg.dataset_val, "dataset_val"
    else:
        raise MetricError(f"{key}.data is missing; name a file or a data set, or set dataset_val in the recipe")
    try:
        built = [_build(part, tokenizer) for part in (dataset if isinstance(dataset, ListConfig) else [dataset])]
    except Exception as error:
        raise MetricError(f"{key} cannot be built: {describe(error)}") from error
    yield from _from_dataset(built[0] if len(built) == 1 else ConcatDataset(built), tokenizer, key)


def _build(dataset: DictConfig, tokenizer: Any) -> Any:
    """A data set whose rows are single samples, with labels on the answers only."""
    from torchtune import config

    changes = {name: False for name in ("packed", "train_on_input") if dataset.get(name)}
    return config.instantiate(OmegaConf.merge(dataset, changes), tokenizer)


def _from_dataset(dataset: Any, tokenizer: Any, key: str) -> Iterator[Row]:
    for number in range(len(dataset)):
        try:
            row = _row_of(dataset, number, number, tokenizer)
        except Exception as error:
            raise MetricError(f"{key}: row {number} cannot be used: {describe(error)}") from error
        if row is not None:
            yield row


def _row_of(dataset: Any, index: int, number: int, tokenizer: Any) -> Row | None:
    if isinstance(dataset, ConcatDataset):
        for begin, end, which in dataset._indexes:
            if begin <= index < end:
                return _row_of(dataset._datasets[which], index - begin, number, tokenizer)
    if type(dataset) is SFTDataset:
        messages = dataset._message_transform(dataset._data[index])["messages"]
        return _row_of_messages(messages, number, dataset._model_transform)
    sample = dataset[index]
    return _row_of_labels(list(map(int, sample["tokens"])), list(map(int, sample["labels"])), number, tokenizer)


def _row_of_messages(messages: Sequence[Message], number: int, transform: Any) -> Row | None:
    """The last answer of a conversation, and what comes before it."""
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not answers or not answers[-1]:
        return None
    before, answer = list(messages[: answers[-1]]), messages[answers[-1]].text_content
    return Row(number, prompt_of(before, transform), _shown(before), answer)


def _row_of_labels(tokens: list[int], labels: list[int], number: int, tokenizer: Any) -> Row | None:
    """The last labels of a row that follow one another, and the tokens before them."""
    labelled = [index for index, label in enumerate(labels) if label != IGNORED]
    if not labelled:
        return None
    end = labelled[-1] + 1
    begin = end - sum(1 for _ in takewhile(lambda index: labels[index] != IGNORED, range(end - 1, -1, -1)))
    if begin == 0:
        return None
    prompt = tuple(tokens[:begin])
    return Row(number, prompt, text_of(tokenizer, prompt), text_of(tokenizer, labels[begin:end]).strip())


def prompt_of(before: Sequence[Message], transform: Any) -> Prompt:
    """The tokens of these messages, and of the beginning of the answer's turn."""
    tokens = [transform({"messages": [*before, Message("assistant", answer)]})["tokens"] for answer in _ANSWERS]
    same = takewhile(lambda pair: pair[0] == pair[1], zip(*tokens, strict=False))
    return tuple(int(token) for token, _ in same)


def _from_file(path: Path, options: Mapping[str, Any], tokenizer: Any, key: str) -> Iterator[Row]:
    """The rows of a JSON-lines file. A prompt is a user's message as text, or a list of messages."""
    names = str(options.get("prompt") or "prompt"), str(options.get("reference") or "reference")
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                if line.strip():
                    yield _row_of_line(line, number, names, tokenizer, f"{key}.data={path}: line {number + 1}")
    except (OSError, UnicodeDecodeError) as error:
        raise MetricError(f"{key}.data={path} cannot be read: {describe(error)}") from error


def _row_of_line(line: str, number: int, names: tuple[str, str], tokenizer: Any, place: str) -> Row:
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise MetricError(f"{place} is no JSON: {error}") from error
    if not isinstance(raw, dict) or names[0] not in raw:
        raise MetricError(f"{place} has no {names[0]}; name the column of the prompts in its key `prompt`")
    before = _messages(raw[names[0]], place)
    reference = raw.get(names[1])
    if isinstance(reference, list):
        reference = [_text(one, place) for one in reference] or None
    elif reference is not None:
        reference = _text(reference, place)
    return Row(number, prompt_of(before, tokenizer), _shown(before), reference)


def _messages(prompt: Any, place: str) -> list[Message]:
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(turns, list) or not turns or not all(map(_is_turn, turns)):
        raise MetricError(
            f"{place} has a prompt that is neither a text nor a list of messages, each with a text as content, and "
            f"{', '.join(_ROLES[:-1])} or {_ROLES[-1]} as role"
        )
    return [Message(role=turn["role"], content=turn["content"]) for turn in turns]


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") in _ROLES and isinstance(turn.get("content"), str)


def _text(reference: Any, place: str) -> str:
    if isinstance(reference, bool) or not isinstance(reference, str | int | float):
        raise MetricError(f"{place} has a reference that is neither a text nor a number, nor a list of these")
    return str(reference)


def _shown(messages: Sequence[Message]) -> str:
    return "\n\n".join(message.text_content for message in messages)
