"""How the micro-batches of several trials are laid out as one line of tokens.

Notation: k slots bring B rows, of which n are not empty (the sequences). They have T tokens, and L of these have a
label.

Invariants: this module imports nothing of torchtune. The tokens of a slot are contiguous, and slots follow one another
in ascending order. A token is kept only if a label depends on it. Attention is causal, so that tokens behind a row's
last label change no loss; neither padding nor such tokens are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch.nn.utils.rnn import pad_sequence

# A kernel over slots of unequal lengths processes this many tokens of one slot at a time.
ROWS = 64
# Kernels read this many numbers at a time: features and ranks are multiples of it.
UNIT = 8
# The ranks for which the kernels around SwiGLU are compiled; other kernels serve larger ranks.
RANKS = (16, 32, 64)


@dataclass(slots=True)
class Row:
    """A slot's share of a layout.

    Args:
        slot: the index of its row in the adapter store.
        shape: (b, s), rows and padded tokens a row of its micro-batch, as torchtune trains it alone.
        labels: label tokens of the micro-batch, including a label of a row's first token.
    """

    slot: int
    shape: tuple[int, int]
    labels: int


@dataclass(slots=True)
class Layout:
    """T tokens of k slots in n sequences, L of them with a label, on the device that trains.

    Args:
        rows: the k slots.
        first: the index of the first slot in the adapter store; the slots are first … first + k - 1.
        bounds: where each slot's tokens begin, and T: k + 1 numbers.
        longest: tokens of the longest sequence.
        tokens, positions: shape [T], int64; a position counts from the beginning of the token's sequence.
        starts: where each sequence begins, and T: shape [n + 1], int32.
        labelled: shape [L], int64: the indices of the tokens that have a label.
        targets: shape [L], int64: the label of each of these, which is the token that follows it.
        weights: shape [L], fp32: the factor of each label's loss; see `build_layout`.
        counts: shape [k], int64: labels of each slot.
        owners: shape [T], int64: the index in the adapter store of each token's slot.
        sources: shape [T], int64: the index of each token in its slot's flattened (b, s).
        offsets: shape [k], int32: where each slot's tokens end.
        blocks: shape [m, 3], int32: for each block of at most `ROWS` tokens of one slot, the slot (from 0), the first
            token, and where the slot's tokens end.
        pieces: the same for blocks of one sequence.
        even: tokens of each slot if all slots have the same number, else None.
        rectangle: (n, tokens of a sequence) if all sequences have the same length, else None.
    """

    rows: tuple[Row, ...]
    first: int
    bounds: tuple[int, ...]
    longest: int
    tokens: torch.Tensor
    positions: torch.Tensor
    starts: torch.Tensor
    labelled: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor
    owners: torch.Tensor
    sources: torch.Tensor
    offsets: torch.Tensor
    blocks: torch.Tensor
    pieces: torch.Tensor
    even: int | None = field(init=False)
    rectangle: tuple[int, int] | None = field(init=False)
    _padded_indices: tuple[torch.Tensor, torch.Tensor] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        sizes = {end - begin for begin, end in self.segments()}
        self.even = sizes.pop() if len(sizes) == 1 else None
        count = self.starts.shape[0] - 1
        self.rectangle = (count, self.longest) if count * self.longest == self.size else None

    @property
    def size(self) -> int:
        """T, the number of tokens."""
        return self.bounds[-1]

    @property
    def slots(self) -> slice:
        """The rows of the adapter store that these slots have."""
        return slice(self.first, self.first + len(self.rows))

    def segments(self) -> list[tuple[int, int]]:
        """Where each slot's tokens begin and end."""
        return list(zip(self.bounds, self.bounds[1:], strict=False))

    def padded_indices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices between the line and a padded rectangle, for attention that needs sequences of one length.

        Returns:
            the token of each cell of the rectangle, shape [n, longest] (padding repeats the sequence's last token), and
            the cell of each token in the flattened rectangle, shape [T].
        """
        if self._padded_indices is None:
            begins, ends = self.starts[:-1].long(), self.starts[1:].long()
            cells = begins[:, None] + torch.arange(self.longest, device=self.tokens.device)
            sequence = torch.repeat_interleave(torch.arange(len(begins), device=self.tokens.device), ends - begins)
            self._padded_indices = torch.minimum(cells, ends[:, None] - 1), sequence * self.longest + self.positions
        return self._padded_indices


def build_layout(batches: Sequence[dict[str, torch.Tensor]], first: int, ignored: int, device: torch.device) -> Layout:
    """The layout of a pass over these micro-batches.

    torchtune multiplies a micro-batch's mean loss, over the labels that follow a token, by the number of all its
    labels. A label of a row's first token follows none. If a micro-batch has such labels, the two numbers differ, and
    each label has a weight of a little more than one.

    Args:
        batches: `tokens` and `labels` of shape [b, s] each, int64, on the CPU, for the slots first, first + 1, ….
        first: the index of the first slot in the adapter store.
        ignored: the label that does not count.
        device: where the tensors go.
    """
    tokens, labels = _padded(batches, ignored)  # [B, S]
    targets = torch.full_like(labels, ignored)
    targets[:, :-1] = labels[:, 1:]  # the label of a position is the token that follows it
    counted = targets != ignored
    positions = torch.arange(tokens.shape[1])
    lengths = torch.where(counted, positions + 1, 0).amax(dim=1)  # [B]
    kept = positions < lengths[:, None]

    rows_of_slot = [len(batch["tokens"]) for batch in batches]
    sizes = [int(part.sum()) for part in lengths.split(rows_of_slot)]  # type: ignore[no-untyped-call]
    counts = [int(part.sum()) for part in counted.sum(dim=1).split(rows_of_slot)]  # type: ignore[no-untyped-call]
    all_labels = [int((batch["labels"] != ignored).sum()) for batch in batches]
    weights = [labels_ / max(count, 1) for labels_, count in zip(all_labels, counts, strict=True)]

    bounds = (0, *accumulate(sizes))
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths[lengths > 0].cumsum(0)]).int()
    tensors = {
        "tokens": tokens[kept],
        "positions": positions.expand_as(kept)[kept],
        "starts": starts,
        "labelled": counted[kept].nonzero().squeeze(1),
        "targets": targets[kept & counted],
        "weights": torch.repeat_interleave(torch.tensor(weights), torch.tensor(counts)),
        "counts": torch.tensor(counts),
        "owners": torch.repeat_interleave(torch.arange(first, first + len(sizes)), torch.tensor(sizes)),
        "sources": (_row_begins(batches)[:, None] + positions)[kept],
        "offsets": torch.tensor(bounds[1:], dtype=torch.int32),
        "blocks": _blocks(torch.tensor(bounds)),
        "pieces": _blocks(starts),
    }
    rows = tuple(
        Row(first + index, (batch["tokens"].shape[0], batch["tokens"].shape[1]), count)
        for index, (batch, count) in enumerate(zip(batches, all_labels, strict=True))
    )
    moved = {name: _to(device, tensor) for name, tensor in tensors.items()}
    return Layout(rows=rows, first=first, bounds=bounds, longest=int(lengths.max()), **moved)


def build_prompt_layout(prompts: Sequence[Sequence[Sequence[int]]], first: int, device: torch.device) -> Layout:
    """The layout of a pass over all tokens of these prompts; `labelled` are the last tokens of each, in their order.

    Args:
        prompts: token ids of the prompts of the slots first, first + 1, …; a slot may have none.
        first, device: as `build_layout` takes them.
    """
    width = max(len(prompt) for of_slot in prompts for prompt in of_slot) + 1  # one more, which has the label
    batches = []
    for of_slot in prompts:
        tokens = torch.zeros(len(of_slot), width, dtype=torch.int64)
        labels = torch.full_like(tokens, -1)
        for index, prompt in enumerate(of_slot):
            tokens[index, : len(prompt)] = torch.tensor(prompt)
            labels[index, len(prompt)] = 0
        batches.append({"tokens": tokens, "labels": labels})
    return build_layout(batches, first, -1, device)


def _padded(batches: Sequence[dict[str, torch.Tensor]], ignored: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels of all rows of all slots, padded to the longest, both of shape [B, S]."""
    tokens = pad_sequence([row for batch in batches for row in batch["tokens"]], batch_first=True)
    labels = pad_sequence(
        [row for batch in batches for row in batch["labels"]], batch_first=True, padding_value=float(ignored)
    )
    return tokens, labels


def _row_begins(batches: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Where each row begins in its slot's flattened micro-batch, shape [B]."""
    widths = torch.tensor([batch["tokens"].shape[1] for batch in batches for _ in batch["tokens"]])
    return torch.cat([torch.arange(len(batch["tokens"])) for batch in batches]) * widths


def _to(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on a device; a copy to a GPU is asynchronous."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _blocks(edges: torch.Tensor) -> torch.Tensor:
    """Blocks of at most `ROWS` tokens of the segments between these edges: index, first token and segment's end."""
    begins, ends = edges[:-1], edges[1:]
    pieces = (ends - begins + ROWS - 1) // ROWS
    slot = torch.repeat_interleave(torch.arange(len(pieces)), pieces)
    nth = torch.arange(len(slot)) - (pieces.cumsum(0) - pieces)[slot]
    return torch.stack([slot, begins[slot] + ROWS * nth, ends[slot]], dim=1).int()
