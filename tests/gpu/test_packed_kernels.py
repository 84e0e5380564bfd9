"""The Triton kernels of a pack against autograd and torch's own AdamW: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch
import torch.nn.functional as F

from trainer.packed.layout import _blocks
from trainer.packed.update import step_table

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

Tensor = torch.Tensor
FEATURES = 704  # no multiple of what a program takes at a time by the number of programs


def rows_of_a_store(slots: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """B of gate, B of up and A of down, as they lie in a store, with other numbers between."""
    part = FEATURES * rank
    rows = torch.randn(slots, 3 * part + 24, device="cuda").mul(0.3).to(dtype)
    gate, up, down = (rows[:, 8 + index * part : 8 + (index + 1) * part] for index in range(3))
    return gate.view(slots, FEATURES, rank), up.view(slots, FEATURES, rank), down.view(slots, rank, FEATURES)


@pytest.mark.parametrize("sizes", [(70, 0, 90, 128), (8000, 9000)], ids=["few", "many"])
@pytest.mark.parametrize("rank", [8, 16, 24, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_with_its_adapters_is_what_autograd_makes_of_it(
    dtype: torch.dtype, rank: int, sizes: tuple[int, ...]
) -> None:
    from trainer.packed.kernels import swiglu as kernels

    torch.manual_seed(rank)
    bounds = [0, *accumulate(sizes)]
    tokens = bounds[-1]
    both, h = (torch.randn(tokens, 2 * width, device="cuda").to(dtype) for width in (FEATURES, rank))
    d, dh = (torch.randn(tokens, width, device="cuda").to(dtype) for width in (FEATURES, rank))
    values, grads = rows_of_a_store(len(sizes), rank, dtype), rows_of_a_store(len(sizes), rank, dtype)
    before = [grad.double() for grad in grads]

    leaves = [value.detach().double().requires_grad_() for value in values]
    gate, up = (half.requires_grad_() for half in both.double().chunk(2, dim=1))
    gate_h, up_h = h.double().chunk(2, dim=1)
    active, sums, total = [], [], torch.zeros((), dtype=torch.float64, device="cuda")
    for slot, (begin, end) in enumerate(pairwise(bounds)):
        part = slice(begin, end)
        act = F.silu(gate[part] + gate_h[part] @ leaves[0][slot].t()) * (up[part] + up_h[part] @ leaves[1][slot].t())
        active.append(act)
        sums.append(act @ leaves[2][slot].t())
        total = total + (act * d[part].double()).sum() + (sums[-1] * dh[part].double()).sum()
    total.backward()  # type: ignore[no-untyped-call]

    found_active, found_sums = kernels.forward(both, _blocks(torch.tensor(bounds)).cuda(), h, values[:2], values[2])
    ends = torch.tensor(bounds[1:], dtype=torch.int32, device="cuda")
    back = kernels.backward(d, both, ends, h, dh, values[:2], grads[:2], values[2], grads[2])

    near = 1e-5 if dtype is torch.float32 else 0.02
    assert gate.grad is not None and up.grad is not None
    close(found_active, torch.cat(active), near)
    close(found_sums, torch.cat(sums), near)
    close(back, torch.cat([gate.grad, up.grad], dim=1), near)
    for grad, start, leaf in zip(grads, before, leaves, strict=True):
        assert leaf.grad is not None
        close(grad, start + leaf.grad, near)


@pytest.mark.parametrize("adapted", [(0, 1, 2), (0, -1, 1)], ids=["all", "no keys"])
@pytest.mark.parametrize("rank", [8, 16, 24, 64])
def test_queries_keys_and_values_are_turned_with_their_adapters_part(rank: int, adapted: tuple[int, int, int]) -> None:
    from trainer.packed.kernels import qkv as kernels

    torch.manual_seed(rank)
    kind, (queries, keys, size), sizes = torch.bfloat16, (8, 2, 32), (70, 0, 90, 128)
    bounds = [0, *accumulate(sizes)]
    widths = [queries * size, keys * size, keys * size]
    edges = [0, *accumulate(widths)]
    y = torch.randn(bounds[-1], edges[-1], device="cuda").to(kind)
    rows = torch.randn(len(sizes), sum(widths) * rank + 8, device="cuda").mul(0.3).to(kind)  # of a store
    every = [rows[:, begin * rank : end * rank].view(len(sizes), -1, rank) for begin, end in pairwise(edges)]
    b = [one for one, nth in zip(every, adapted, strict=True) if nth >= 0]
    h = torch.randn(bounds[-1], len(b) * rank, device="cuda").to(kind)
    positions = torch.cat([torch.arange(one, device="cuda") for one in sizes])
    angles = torch.rand(128, size // 2, device="cuda") * 6
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)

    wanted = []
    for (begin, end), nth, width, weights in zip(pairwise(edges), adapted, widths, every, strict=True):
        of_h = h.double()[:, nth * rank : (nth + 1) * rank]
        of_slots = zip(pairwise(bounds), weights.double(), strict=True)
        more = torch.cat([of_h[start:stop] @ one.t() for (start, stop), one in of_slots]) if nth >= 0 else 0.0
        part = (y.double()[:, begin:end] + more).view(bounds[-1], width // size, size)
        wanted.append((turn(part, table.double()[positions]) if begin < edges[2] else part).flatten(1))

    parts = kernels.QkvLayout(queries, keys, size, adapted)
    kernels.add_and_rotate(y, h, b, table, positions, _blocks(torch.tensor(bounds)).cuda(), parts)
    close(y, torch.cat(wanted, dim=1), 0.01)


@pytest.mark.parametrize("sizes", [(70, 1, 200, 128, 65), (256, 256)], ids=["uneven", "even"])
@pytest.mark.parametrize("heads", [(4, 1, 16), (4, 2, 32), (8, 2, 64), (4, 4, 128)])
def test_short_sequences_are_mixed_as_autograd_mixes_them(heads: tuple[int, int, int], sizes: tuple[int, ...]) -> None:
    from trainer.packed.kernels import attention as kernels

    torch.manual_seed(0)
    kind, (queries, keys, size) = torch.bfloat16, heads
    starts = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32)
    tokens, width = int(starts[-1]), (queries + 2 * keys) * size
    y = torch.randn(tokens, width, device="cuda").to(kind)
    d = torch.randn(tokens, queries * size, device="cuda").to(kind)

    leaf = y.double().requires_grad_()
    every = leaf.view(tokens, -1, size).split([queries, keys, keys], dim=1)  # type: ignore[no-untyped-call]
    mixed = []
    for begin, end in pairwise(starts.tolist()):
        parts = [one[None, begin:end].transpose(1, 2) for one in every]
        mixed.append(F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True, enable_gqa=True))
    out = torch.cat([one[0].transpose(0, 1).flatten(1) for one in mixed])
    out.backward(d.double())  # type: ignore[no-untyped-call]

    sequences = kernels.Sequences(starts.cuda(), _blocks(starts).cuda())
    found, sums = kernels.forward(y, sequences, heads)
    back = kernels.backward(d, y, found, sums, sequences, heads)
    assert leaf.grad is not None
    close(found, out.detach(), 0.01)
    close(back, leaf.grad, 0.01)


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """x [T, heads, size] by angles [T, size / 2, 2], as torchtune's rotary embedding does."""
    even, odd = x.view(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = angles[:, None].unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def close(found: Tensor, wanted: Tensor, near: float) -> None:
    """By the norm of the difference, so that a bit of bf16 in a large sum is none."""
    assert float((found.double() - wanted).norm() / wanted.norm()) < near


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_rows_is_torchs_step_of_each(dtype: torch.dtype) -> None:
    from trainer.packed.kernels import basic

    torch.manual_seed(0)
    options = [(1e-3, 0.9, 0.95, 0.1, 1e-8), (3e-2, 0.8, 0.999, 0.0, 1e-6)]
    values, grads, averages = (torch.randn(2, 4104, device="cuda").to(dtype) for _ in range(3))
    squares = torch.rand(2, 4104, device="cuda").mul(1e-6).to(dtype)  # so that what is new of them weighs
    theirs = [one.clone() for one in (values, grads, averages, squares)]
    steps = torch.tensor([5.0, 6.0], device="cuda")
    divisors = torch.tensor([3.0, 0.5], device="cuda")
    for row, (rate, beta1, beta2, decay, eps) in enumerate(options):
        torch._fused_adamw_(
            [theirs[0][row]], [theirs[1][row]], [theirs[2][row]], [theirs[3][row]], [], [steps[row]],
            lr=rate, beta1=beta1, beta2=beta2, weight_decay=decay, eps=eps, amsgrad=False, maximize=False,
            grad_scale=divisors[row],
        )  # fmt: skip
    basic.adamw(values, grads, averages, squares, step_table(torch.tensor(options, device="cuda"), steps, divisors))
    near = 1e-6 if dtype is torch.float32 else 1e-3  # a number in a hundred is a bit of bf16 off
    for ours, other in ((values, theirs[0]), (averages, theirs[2]), (squares, theirs[3])):
        close(ours, other.double(), near)
    assert not grads.any()
