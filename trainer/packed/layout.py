"""How the micro-batches of several trials lie on one line of tokens.

Invariants: no torchtune here. The tokens of a slot are contiguous and slots follow one another in ascending order. A
row keeps no token that no label depends on: with causal attention, what stands behind a row's last label changes no
loss, so padding is neither trained on nor paid for, a slot's own included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch.nn.utils.rnn import pad_sequence

# A kernel over slots of uneven lengths takes so many tokens of one slot at a time.
ROWS = 64
# Kernels read so many numbers at a time: features and ranks come in multiples of it.
UNIT = 8
# Those around SwiGLU are made for adapters of up to such ranks; of larger ones others take care.
RANKS = (16, 32, 64)


@dataclass(slots=True)
class Row:
    """A slot's share of a layout.

    Args:
        slot: its index in the store.
        shape: (b, s) of its micro-batch, as torchtune would have trained it.
        labels: label tokens, a row's first included.
    """

    slot: int
    shape: tuple[int, int]
    labels: int


@dataclass(slots=True)
class Layout:
    """T tokens of k slots in n sequences, L of them with a label, on the device that trains.

    Args:
        rows: the k slots.
        first: the first one's index in the store; the slots are first … first + k - 1.
        bounds: where each slot's tokens begin, and T: k + 1 numbers.
        tokens, positions: shape [T]; a token's position counts within its sequence.
        starts: where each sequence begins, and T: shape [n + 1], int32.
        longest: tokens of the longest sequence.
        picked, targets: shape [L]: which tokens have a label, and the label, the token that follows.
        weights: shape [L], fp32: what a token's loss counts; see `lay_out`.
        counts: shape [k]: labels of each slot.
        owners: shape [T]: the index in the store of each token's slot.
        sources: shape [T]: the index of each token in its slot's flattened (b, s).
        offsets: shape [k], int32: where each slot's tokens end.
        blocks: shape [pieces, 3], int32: slot (from 0), first token and end of each piece of at most `ROWS` tokens.
        pieces: the same of sequences: sequence, first token, and the sequence's end.
        even: tokens of each slot where all have the same number, else None.
        rectangle: how many sequences there are, and how long they are, where all are of one length, else None.
    """

    rows: tuple[Row, ...]
    first: int
    bounds: tuple[int, ...]
    tokens: torch.Tensor
    positions: torch.Tensor
    starts: torch.Tensor
    longest: int
    picked: torch.Tensor
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
    _squares: tuple[torch.Tensor, torch.Tensor] | None = field(default=None)

    def __post_init__(self) -> None:
        sizes = {end - begin for begin, end in self.segments()}
        self.even = sizes.pop() if len(sizes) == 1 else None
        count = self.starts.shape[0] - 1
        self.rectangle = (count, self.longest) if count * self.longest == self.size else None

    @property
    def size(self) -> int:
        """T."""
        return self.bounds[-1]

    @property
    def slots(self) -> slice:
        """The slots as rows of the store."""
        return slice(self.first, self.first + len(self.rows))

    def segments(self) -> list[tuple[int, int]]:
        """Where each slot's tokens begin and end."""
        return list(zip(self.bounds, self.bounds[1:], strict=False))

    def squares(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sequences as a padded rectangle, for attention without a kernel for sequences of many lengths.

        Returns:
            index of a token for each place of [n, longest] (padding repeats the sequence's last token), and the place
            of each token in the flattened rectangle, shape [T].
        """
        if self._squares is None:
            begins, ends = self.starts[:-1].long(), self.starts[1:].long()
            places = begins[:, None] + torch.arange(self.longest, device=self.tokens.device)
            sequence = torch.repeat_interleave(torch.arange(len(begins), device=self.tokens.device), ends - begins)
            self._squares = torch.minimum(places, ends[:, None] - 1), sequence * self.longest + self.positions
        return self._squares


def lay_out(batches: Sequence[dict[str, torch.Tensor]], first: int, ignored: int, device: torch.device) -> Layout:
    """Lay micro-batches out on one line.

    torchtune multiplies a micro-batch's mean loss, over the labels that follow a token, by the number of all labels.
    Where a row's first token has a label, which follows none, the two differ: a token counts a little more than once.

    Args:
        batches: `tokens` and `labels` of shape [b, s] each, on the CPU, for the slots first, first + 1, ….
        ignored: the label that counts for nothing.
    """
    sequences = [row for batch in batches for row in batch["tokens"]]
    tokens = pad_sequence(sequences, batch_first=True)  # [B, S], B rows of all slots
    labels = pad_sequence(
        [row for batch in batches for row in batch["labels"]], batch_first=True, padding_value=float(ignored)
    )
    targets = torch.full_like(labels, ignored)
    targets[:, :-1] = labels[:, 1:]  # the label of a position is the token that follows it
    counted = targets != ignored
    places = torch.arange(tokens.shape[1])
    lengths = torch.where(counted, places + 1, 0).amax(dim=1)  # [B]
    kept = places < lengths[:, None]
    widths = torch.tensor([batch["tokens"].shape[1] for batch in batches for _ in batch["tokens"]])
    own = torch.cat([torch.arange(len(batch["tokens"])) for batch in batches])
    per_slot = [len(batch["tokens"]) for batch in batches]
    sizes = [int(part.sum()) for part in lengths.split(per_slot)]  # type: ignore[no-untyped-call]
    label_counts = [int(part.sum()) for part in counted.sum(dim=1).split(per_slot)]  # type: ignore[no-untyped-call]
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths[lengths > 0].cumsum(0)]).int()
    bounds = (0, *accumulate(sizes))
    all_labels = [int((batch["labels"] != ignored).sum()) for batch in batches]
    weights = [all_ / max(some, 1) for all_, some in zip(all_labels, label_counts, strict=True)]
    flat = [
        tokens[kept],
        places.expand_as(kept)[kept],
        starts,
        counted[kept].nonzero().squeeze(1),
        targets[kept & counted],
        torch.repeat_interleave(torch.tensor(weights), torch.tensor(label_counts)),
        torch.tensor(label_counts),
        torch.repeat_interleave(torch.arange(first, first + len(sizes)), torch.tensor(sizes)),
        (own * widths)[:, None].add(places)[kept],
        torch.tensor(bounds[1:], dtype=torch.int32),
        _blocks(torch.tensor(bounds)),
        _blocks(starts),
    ]
    moved = [one.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else one for one in flat]
    rows = tuple(
        Row(first + index, (batch["tokens"].shape[0], batch["tokens"].shape[1]), count)
        for index, (batch, count) in enumerate(zip(batches, all_labels, strict=True))
    )
    line, positions, begins, picked, wanted, weighed, numbers, owners, sources, offsets, blocks, pieces = moved
    return Layout(
        rows=rows,
        first=first,
        bounds=bounds,
        tokens=line,
        positions=positions,
        starts=begins,
        longest=int(lengths.max()),
        picked=picked,
        targets=wanted,
        weights=weighed,
        counts=numbers,
        owners=owners,
        sources=sources,
        offsets=offsets,
        blocks=blocks,
        pieces=pieces,
    )


def _blocks(edges: torch.Tensor) -> torch.Tensor:
    begins, ends = edges[:-1], edges[1:]
    pieces = (ends - begins + ROWS - 1) // ROWS
    slot = torch.repeat_interleave(torch.arange(len(pieces)), pieces)
    nth = torch.arange(len(slot)) - (pieces.cumsum(0) - pieces)[slot]
    return torch.stack([slot, begins[slot] + ROWS * nth, ends[slot]], dim=1).int()
