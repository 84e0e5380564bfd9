"""How a token of an answer is chosen, and the answers of sequences that are decoded together.

Notation: n sequences, V the size of the vocabulary.

Invariants: random draws belong to (seed, row, position): they depend neither on the batch nor on the order of
sequences, and no generator of torch is used. A step neither waits for the device nor copies to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.packed.memory import MARGIN, Memory

Tensor = torch.Tensor
Prompt = tuple[int, ...]
Answer = tuple[int, ...]

MOST_SEQUENCES = 1024  # decoded at one time
HOST_BYTES = 2**30  # for the sequences that a CPU decodes at one time
CELLS = 64  # attention sees the KV cache up to a multiple of so many positions
STEPS_ON_GPU = 8  # tokens after which the host looks which sequences have ended
DRAWS = 2**23  # random numbers that exist at one time
WORD = 2**32 - 1  # numbers are hashed in 32 bits


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are decoded.

    Args:
        max_new_tokens: of an answer, at most.
        temperature: 0 always chooses the most probable token.
        top_k: draw among so many of the most probable tokens; None: among all.
        seed: of the random draws.
        stop: token ids that end an answer; an answer does not contain them.

    Raises:
        ValueError: a number is out of its range.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0
    stop: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or above")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1, or null for all tokens")


def check_prompts(prompts: Sequence[Prompt], sampling: Sampling, max_seq_len: int, vocab_size: int) -> None:
    """Check that a model can answer these prompts.

    Raises:
        ValueError: a prompt is empty or too long, or has a token that the model does not have; names the row.
    """
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"row {row} has an empty prompt; give it at least one token, or leave the row out")
        if len(prompt) > max_seq_len - sampling.max_new_tokens:
            raise ValueError(
                f"row {row} has a prompt of {len(prompt)} tokens, which leaves no space for "
                f"max_new_tokens={sampling.max_new_tokens} in the model's max_seq_len={max_seq_len}; shorten the "
                "prompt, lower max_new_tokens, or raise model.max_seq_len"
            )
        if wrong := [token for token in prompt if not 0 <= token < vocab_size]:
            raise ValueError(
                f"row {row} has token {wrong[0]}, and the model has tokens 0 to {vocab_size - 1}; "
                "use the tokenizer of the base"
            )


def choose(logits: Tensor, rows: Tensor, positions: Tensor, sampling: Sampling) -> Tensor:
    """The next token of each sequence, shape [n], int64.

    Args:
        logits: shape [n, V].
        rows: the row of each sequence among its trial's prompts, shape [n], int64.
        positions: how many tokens the answer of each has so far, shape [n], int64.
    """
    if not sampling.temperature:
        return logits.argmax(dim=-1)
    key = _mixed(_mixed(sampling.seed & WORD) ^ (sampling.seed >> 32 & WORD))
    keys = _mixed(_mixed(rows ^ key) ^ positions)
    tokens = _mixed(torch.arange(logits.shape[1], device=logits.device))
    count = max(1, DRAWS // logits.shape[1])
    parts = zip(logits.split(count), keys.split(count), strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([_draw(part, tokens, of_part, sampling) for part, of_part in parts])


def _draw(logits: Tensor, tokens: Tensor, keys: Tensor, sampling: Sampling) -> Tensor:
    """Draw from softmax(logits / temperature): the token whose exponential waiting time, at that rate, ends first.

    Args:
        tokens: the hash of each token, shape [V].
        keys: the hash of each draw, shape [n].
    """
    scaled = logits.float() / sampling.temperature
    if sampling.top_k is not None:
        pivot = scaled.topk(min(sampling.top_k, scaled.shape[1])).values[:, -1:]
        scaled = torch.where(scaled < pivot, -torch.inf, scaled)  # as torchtune: equal ones stay
    uniform = _mixed(tokens ^ keys[:, None]).float().add_(0.5).mul_(1 / (WORD + 1))
    waits = uniform.neg_().log1p_().neg_()
    chosen: Tensor = scaled.sub_(waits.log_()).argmax(dim=-1)
    return chosen


def _mixed(x: Any) -> Any:
    """A hash of a number below 2^32, or of a tensor of them as int64, to such numbers; products stay below 2^63."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = (x ^ (x >> shift)) * factor & WORD
    return x ^ (x >> 15)


class Answers:
    """The answers of n sequences that are decoded together, on their device.

    Nothing here waits for the device but `ended`, so that a step has static shapes and no synchronisation.

    Attributes:
        following: the last token of each sequence, which the next step reads, shape [n], int64.
    """

    def __init__(self, count: int, sampling: Sampling, device: torch.device) -> None:
        self._sampling, self._limit = sampling, sampling.max_new_tokens
        self._stop = torch.tensor(sampling.stop, dtype=torch.int64, device=device)
        # the last column takes tokens that belong to no answer
        self._tokens = torch.zeros(count, self._limit + 1, dtype=torch.int64, device=device)
        self.following, self._rows, self._lengths, self._counts = (
            torch.zeros(count, dtype=torch.int64, device=device) for _ in range(4)
        )
        self._going = torch.zeros(count, dtype=torch.bool, device=device)

    def begin(self, at: Tensor, rows: Tensor, lengths: Tensor) -> None:
        """Begin new sequences.

        Args:
            at: their indices among the n, shape [m], int64.
            rows: their rows among the prompts of their trial, shape [m], int64.
            lengths: tokens of their prompts, shape [m], int64.
        """
        self._rows[at], self._lengths[at], self._counts[at], self._going[at] = rows, lengths, 0, True

    def take(self, at: Tensor, logits: Tensor) -> None:
        """Choose the next token of the sequences at these indices, shape [m], from their logits, shape [m, V]."""
        counts, going = self._counts[at], self._going[at]
        chosen = choose(logits, self._rows[at], counts, self._sampling)
        self._tokens[at, torch.where(going, counts, self._limit)] = chosen
        going = going & ~(chosen[:, None] == self._stop).any(dim=1)
        counts = counts + going
        self.following[at], self._counts[at], self._going[at] = chosen, counts, going & (counts < self._limit)

    @property
    def positions(self) -> Tensor:
        """The position of `following` in its sequence, shape [n]; stays where it is once a sequence has ended."""
        return self._lengths + self._counts - 1

    def ended(self, among: Sequence[int]) -> dict[int, Answer]:
        """The answers of those of these sequences that have ended, by index; waits for the device."""
        counts, going = torch.stack([self._counts, self._going.long()]).tolist()
        ended = [index for index in among if not going[index]]
        if not ended:
            return {}
        rows = self._tokens[torch.tensor(ended, device=self._tokens.device)].tolist()
        return {index: tuple(row[: counts[index]]) for index, row in zip(ended, rows, strict=True)}

    def keep(self, at: Tensor) -> None:
        """Keep the sequences at these indices, which become the first ones, in this order; forget the others."""
        for tensor in (self._tokens, self.following, self._rows, self._lengths, self._counts, self._going):
            tensor[: len(at)] = tensor[at]


def sequences_that_fit(fixed: int, each: int, memory: Memory | None) -> int:
    """How many sequences to decode at one time.

    Args:
        fixed: bytes that any number needs.
        each: bytes that each needs.
        memory: of the device; None on the CPU.
    """
    free = HOST_BYTES if memory is None else int(MARGIN * memory.free)
    return max(1, min(MOST_SEQUENCES, (free - fixed) // each))


def steps_between_looks(device: torch.device) -> int:
    """How many tokens to decode until the host looks which sequences have ended, which keeps a GPU waiting."""
    return STEPS_ON_GPU if device.type == "cuda" else 1


def cells(positions: int, most: int) -> int:
    """How many positions of a KV cache of `most` positions attention sees, if it needs so many."""
    return min(-(-positions // CELLS) * CELLS, most)
