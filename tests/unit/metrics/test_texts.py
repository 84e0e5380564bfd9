"""Prompts and texts of a tokenizer that has other turns, other special tokens and other options than Llama 3's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchtune.data import Message
from torchtune.models.qwen2 import Qwen2Tokenizer

from trainer.embedded.make_tokenizer import printable_bytes
from trainer.metrics.prompts import choose_rows, prompt_of
from trainer.metrics.texts import special_ids, stop_ids, text_of


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A token for each byte, and no merges."""
    folder = tmp_path_factory.mktemp("qwen")
    (folder / "vocab.json").write_text(json.dumps(printable_bytes()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return Qwen2Tokenizer(path=str(folder / "vocab.json"), merges_file=str(folder / "merges.txt"))


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=40)
@given(question=texts, answer=texts)
def test_a_prompt_and_its_answer_are_the_tokens_of_the_row(qwen: Any, question: str, answer: str) -> None:
    before = [Message("user", question, masked=True)]
    whole = qwen({"messages": [*before, Message("assistant", answer)]})["tokens"]
    prompt = prompt_of(before, qwen)
    assert tuple(whole[: len(prompt)]) == prompt
    assert text_of(qwen, whole[len(prompt) :]) == answer
    assert text_of(qwen, prompt) == f"user\n{question}\nassistant\n"


class Plain:
    """A tokenizer whose `decode` takes nothing but tokens, as SentencePiece's does."""

    bos_id, eos_id, pad_id = 1, 2, 0

    def decode(self, token_ids: list[int]) -> str:
        return "".join(map(chr, token_ids))


def test_special_tokens_have_no_text(qwen: Any) -> None:
    assert text_of(Plain(), [1, 97, 0, 98, 2, 99]) == "abc"
    assert special_ids(Plain()) == {0, 1, 2}
    assert stop_ids(Plain()) == (2,)
    assert set(stop_ids(qwen)) <= special_ids(qwen)
    assert text_of(qwen, [*stop_ids(qwen), 97]) == qwen.decode([97])


def test_data_without_rows_are_said() -> None:
    with pytest.raises(ValueError, match="m: its data have no row with a prompt and an answer"):
        choose_rows([], 3, 10, "m")
