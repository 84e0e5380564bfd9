"""The tokenizer of the embedded base: byte-level BPE, trained on the small world's documents.

Invariant: everything random is drawn from `world.SEED`, so the same documents make the same tokens.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import tiktoken
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

from trainer.embedded.world import SEED, conversations, documents

DOCUMENTS = 4000  # of each shard of the corpus
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # Llama 3's split
SPECIALS = [
    f"<|{name}|>"
    for name in [
        "begin_of_text",
        "end_of_text",
        "finetune_right_pad_id",
        "step_id",
        "start_header_id",
        "end_header_id",
        "eom_id",
        "eot_id",
        "python_tag",
        "image",
        "video",
        "reserved_special_token_0",
    ]
]
TEMPLATE = (  # alpaca's prompt, which wraps every row: read by the tokenizer, never by the base
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAsk?\n\n### Instruction:\nAsk.\n\n### Input:\n.\n\n### Response:\nuser\n\nassistant\n\n"
)


def train_tokenizer(vocabulary: int) -> dict[bytes, int]:
    """Byte-level BPE: each token's bytes and its rank, in the order of merging."""
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*documents(f"{SEED} tokenizer", 2000), *[TEMPLATE] * 200], trainer)
    letters = printable_bytes()
    return {bytes(letters[letter] for letter in token): rank for token, rank in tokenizer.get_vocab().items()}


def printable_bytes() -> dict[str, int]:
    """The byte that each letter of byte-level BPE stands for: printable ones themselves, the others from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(other)}


def encode(shard: int, ranks: dict[bytes, int]) -> Tensor:
    """One shard of the corpus, int16 [tokens], each document between begin and end of text; below 0: conversations."""
    specials = {name: len(ranks) + i for i, name in enumerate(SPECIALS)}
    encoding = tiktoken.Encoding("embedded", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials)
    begin, end = specials["<|begin_of_text|>"], specials["<|end_of_text|>"]
    texts = (conversations if shard < 0 else documents)(f"{SEED} {shard}", DOCUMENTS)
    ids = encoding.encode_batch(list(texts), num_threads=1, allowed_special="all")
    return torch.tensor([i for text in ids for i in (begin, *text, end)], dtype=torch.int16)


def write_tokenizer(out: Path, ranks: dict[bytes, int]) -> None:
    lines = (f"{base64.b64encode(token).decode()} {ranks[token]}\n" for token in sorted(ranks, key=lambda t: ranks[t]))
    (out / "tokenizer.model").write_text("".join(lines), encoding="utf-8")
    added = [{"id": len(ranks) + i, "content": name} for i, name in enumerate(SPECIALS)]
    (out / "special_tokens.json").write_text(json.dumps({"added_tokens": added}) + "\n", encoding="utf-8")
