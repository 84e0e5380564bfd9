"""The output projection of a packed decoder with its cross entropy, and the gradient of both.

Invariant: logits exist for one chunk of tokens at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from trainer.packed.layout import Layout

Tensor = torch.Tensor


def _cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, backward: bool) -> Tensor:
    """Weighted nats of each row, shape [L], fp32; with `backward`, their gradient overwrites the logits [L, V]."""
    if logits.is_cuda:
        from trainer.packed.kernels import basic

        return basic.cross_entropy(logits, targets, weights, backward)
    wide = logits.float()
    losses = F.cross_entropy(wide, targets, reduction="none")
    if backward:
        back = torch.softmax(wide, dim=-1)
        back[torch.arange(len(targets)), targets] -= 1
        logits.copy_(back.mul_(weights[:, None]))
    return losses * weights


def summed_loss(
    hidden: Tensor, weight: Tensor, layout: Layout, chunk: int, gradient: bool, correct: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Output projection and cross entropy over the tokens that have a label.

    Args:
        hidden: the last norm's output, [T, D].
        weight: that of the output projection, [V, D].
        chunk: how many tokens' logits exist at one time.
        gradient: whether to compute the gradient of `hidden`.
        correct: whether to count the labels that are the likeliest token; it changes no other number.

    Returns:
        nats summed over each slot's labels, shape [k], fp32; the gradient of their sum, shape [T, D], or an empty
        tensor without `gradient`; and the correct labels of each slot, shape [k], fp32, or an empty tensor without
        `correct`.
    """
    chosen = hidden[layout.labelled]
    losses = torch.empty(chosen.shape[0], device=hidden.device)
    hits = torch.empty_like(losses) if correct else losses.new_empty(0)
    back = torch.empty_like(chosen) if gradient else chosen.new_empty(0)
    for start in range(0, chosen.shape[0], chunk):
        part = slice(start, start + chunk)
        logits = chosen[part] @ weight.t()
        if correct:  # before the gradient overwrites them
            hits[part] = (logits.argmax(dim=-1) == layout.targets[part]).float()
        losses[part] = _cross_entropy(logits, layout.targets[part], layout.weights[part], gradient)
        if gradient:
            torch.mm(logits, weight, out=back[part])
    sums: Tensor = torch.segment_reduce(losses, "sum", lengths=layout.counts, initial=0.0, unsafe=True)
    if correct:
        hits = torch.segment_reduce(hits, "sum", lengths=layout.counts, initial=0.0, unsafe=True)
    if gradient and chosen.shape[0] != hidden.shape[0]:
        back = torch.zeros_like(hidden).index_copy_(0, layout.labelled, back)
    return sums, back, hits
