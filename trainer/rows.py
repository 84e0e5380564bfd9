"""Looks at the rows of a data set before anything trains: rows that cannot be used, and rows without a label.

Invariants: a row is named by its number, from 0, as the data set counts. A sample decides: rows at equal distances, the
longest ones, and rows with an empty field; so a fault of a single row may stay unseen.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from trainer.failures import describe

SAMPLE_ROWS = 512
EXTRA_ROWS = 16  # longest rows, and as many with an empty field
SHOWN_ROWS = 5


class RowError(ValueError):
    """Rows of a data set cannot be used."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What was seen of a data set.

    Args:
        count: its rows.
        label_tokens: label tokens of a row in the mean, estimated from the sample.
        longest: tokens of the longest row that was looked at.
        largest: the largest token id.
        notes: sentences for a person.
    """

    count: int
    label_tokens: float
    longest: int
    largest: int
    notes: tuple[str, ...] = ()


def look_at(dataset: Any, key: str, most: int = SAMPLE_ROWS, ignored: int = -100) -> Rows:
    """Look at a sample of rows.

    Args:
        dataset: map-style, with `tokens` and `labels` in each row.
        key: of the data set in the configuration, for the error text.
        most: the size of the sample.
        ignored: the label that does not count.

    Raises:
        RowError: it has no row, a row cannot be used, or no row has a label.
    """
    count = len(dataset)
    if not count:
        raise RowError(f"{key} has no rows; name data with at least one, or correct its split")
    sample = range(0, count, -(-count // most))
    broken: dict[int, str] = {}
    labels: dict[int, int] = {}
    longest = largest = 0
    for index in dict.fromkeys([*sample, *_suspicious(dataset)]):
        try:
            row = dataset[index]
            tokens = [int(token) for token in row["tokens"]]
            labels[index] = sum(int(label) != ignored for label in row["labels"])
        except Exception as error:
            broken[index] = describe(error)
            continue
        longest, largest = max(longest, len(tokens)), max(largest, *tokens, 0)
    if broken:
        raise RowError(_broken(key, broken, len(broken) + len(labels)))
    if not any(labels.values()):
        raise RowError(
            f"none of {len(labels)} rows of {key} has a label token, so that there is nothing to learn: prompts fill "
            "tokenizer.max_seq_len; raise it, or name data with shorter prompts"
        )
    mean = sum(labels[index] for index in sample) / len(sample)
    return Rows(count, mean, longest, largest, tuple(_notes(key, labels)))


def _broken(key: str, broken: dict[int, str], looked_at: int) -> str:
    first = min(broken)
    others = sorted(broken)[1:]
    more = f"; of {looked_at} rows that were looked at, neither can {_numbers(others)}" if others else ""
    return f"{key}: row {first} cannot be used: {broken[first]}{more}; correct these rows, or leave them out"


def _notes(key: str, labels: dict[int, int]) -> Iterator[str]:
    empty = sorted(index for index, count in labels.items() if not count)
    if empty:
        yield (
            f"{key}: {len(empty)} of {len(labels)} rows that were looked at have no label token ({_numbers(empty)}), "
            "as their prompts fill tokenizer.max_seq_len; such a row weighs nothing"
        )


def _numbers(indices: Sequence[int]) -> str:
    more = f" and {len(indices) - SHOWN_ROWS} more" if len(indices) > SHOWN_ROWS else ""
    return f"row{'s' * (len(indices) > 1)} {', '.join(map(str, indices[:SHOWN_ROWS]))}{more}"


def _suspicious(dataset: Any) -> list[int]:
    """Rows with an empty field, and the longest ones by their texts, of data that the library `datasets` holds."""
    raw = getattr(dataset, "_data", None)
    with suppress(Exception):  # data of another kind; the sample is looked at all the same
        if raw is None or raw._indices is not None or len(raw) != len(dataset):
            return []
        return [*_with_null(raw.data.table), *_longest(raw.data.table)]
    return []


def _with_null(table: Any) -> list[int]:
    import pyarrow.compute as pc

    nulls = [pc.indices_nonzero(pc.is_null(column)) for column in table.columns if column.null_count]
    return [int(index) for indices in nulls for index in indices[:EXTRA_ROWS].to_pylist()]


def _longest(table: Any) -> list[int]:
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = [
        pc.fill_null(pc.utf8_length(column), 0)
        for column in table.columns
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ]
    if not lengths:
        return []
    order = pc.array_sort_indices(functools.reduce(pc.add, lengths), order="descending")
    return [int(index) for index in order[:EXTRA_ROWS].to_pylist()]
