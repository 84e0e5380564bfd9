"""The keys and values of sequences that a pack decodes together.

Invariants: the buffers stay where they are, and attention has static shapes for a number of sequences and positions.
A sequence reads its own entry only, and nothing behind its last token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from trainer.packed.model import Decoder

Tensor = torch.Tensor


class KeyValueCache:
    """Rotated keys and values of n sequences, in buffers that stay where they are.

    Args:
        size: positions of a sequence.
    """

    def __init__(self, decoder: Decoder, count: int, size: int) -> None:
        self.size, self._heads = size, decoder.heads
        shape = count, self._heads.keys, size, self._heads.size
        self._keys = [decoder.like.new_zeros(shape) for _ in range(decoder.layers)]
        self._values = [decoder.like.new_zeros(shape) for _ in range(decoder.layers)]

    @staticmethod
    def entry_bytes(decoder: Decoder, size: int) -> int:
        """Bytes of one sequence."""
        heads = decoder.heads
        return 2 * decoder.layers * heads.keys * heads.size * size * decoder.like.element_size()

    def write(self, layer: int, entries: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Write keys and values [T, heads, features] of tokens at these entries and positions, both of shape [T]."""
        self._keys[layer][entries, :, positions] = k
        self._values[layer][entries, :, positions] = v

    def attend(self, layer: int, q: Tensor, bias: Tensor) -> Tensor:
        """Attention of one token of each of the first n sequences, [n, queries · features].

        The queries that share a key are rows of one product, so that no key is repeated.

        Args:
            q: rotated queries, [n, queries, features].
            bias: 0 where the token sees a position, minus infinity elsewhere, [n, 1, 1, used].
        """
        count, used = bias.shape[0], bias.shape[-1]
        keys, values = self._keys[layer][:count, :, :used], self._values[layer][:count, :, :used]
        grouped = q.view(count, self._heads.keys, -1, self._heads.size)
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=bias).reshape(count, -1)

    def clear(self, entries: Tensor) -> None:
        """Forget the sequences of these entries: what they leave behind may not be finite."""
        for tensor in (*self._keys, *self._values):
            tensor[entries] = 0

    def keep(self, entries: Tensor) -> None:
        """Keep the sequences of these entries, which become the first ones, in this order."""
        for tensor in (*self._keys, *self._values):
            tensor[: len(entries)] = tensor[entries]
