"""Turns token ids into text, with every tokenizer of torchtune's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids without special tokens."""
    takes = inspect.signature(tokenizer.decode).parameters
    options: dict[str, bool] = {"truncate_at_eos": False} if "truncate_at_eos" in takes else {}
    if "skip_special_tokens" in takes:
        options["skip_special_tokens"] = True
    else:
        special = special_ids(tokenizer)
        ids = [token for token in ids if token not in special]
    text: str = tokenizer.decode(list(ids), **options)
    return text


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that stand for no text."""
    named = getattr(tokenizer, "special_tokens", None)
    ids = [getattr(tokenizer, name, None) for name in ("bos_id", "eos_id", "pad_id")]
    ids += list(named.values()) if isinstance(named, Mapping) else []
    return frozenset(token for token in ids if isinstance(token, int))


def stop_ids(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer."""
    stops = getattr(tokenizer, "stop_tokens", None)
    ids = list(stops) if stops else [getattr(tokenizer, "eos_id", None)]
    return tuple(sorted({int(token) for token in ids if token is not None}))
