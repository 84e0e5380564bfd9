"""The gated MLP of a packed decoder: gate and up side by side, SwiGLU, down.

Notation: T tokens, D features of the decoder, F of the MLP, R the rank.

Invariant: on a GPU, the sums of the frozen products and the adapters' parts around SwiGLU are never written to memory.
The kernels add the adapters' part to what they read, forward and backward. If all three layers are adapted, without
dropout and with a rank of at most `RANKS[-1]`, fused kernels also compute the adapters' own products
(`kernels.swiglu`). Otherwise `kernels.adapters` serves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function

from trainer.packed.layout import RANKS, UNIT, Layout
from trainer.packed.products import (
    Adapters,
    Linear,
    Projection,
    adapt,
    adapt_back,
    input_back,
    output_back,
    project,
    project_adapted,
    project_back,
    through_output,
)

Tensor = torch.Tensor


class Mlp(Function):
    """x [T, D] → down(silu(gate(x)) · up(x)), [T, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, gate_up: Linear, down: Linear, layout: Layout) -> Tensor:
        ctx.gate_up, ctx.down, ctx.layout = gate_up, down, layout
        if (adapters := _fused_adapters(x, gate_up, down)) is not None:
            y, both, h, down_h = _fused_forward(x, gate_up, down, adapters, layout)
            ctx.save_for_backward(x, both, h, None, down_h)  # the backward pass recomputes down's input
            return y
        if x.is_cuda:
            both, outer_h, active = _swiglu_forward(x, gate_up, layout)
        else:
            both, outer_h = project(x, gate_up, layout)
            gate, up = both.chunk(2, dim=-1)
            active = F.silu(gate) * up
        y, inner_h = project(active, down, layout)
        ctx.save_for_backward(x, both, outer_h, active, inner_h)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, both, h, active, down_h = ctx.saved_tensors
        gate_up, down, layout = ctx.gate_up, ctx.down, ctx.layout
        if (adapters := _fused_adapters(x, gate_up, down)) is not None:
            return _fused_backward(grads[0], ctx, adapters), None, None, None, None
        if x.is_cuda:
            back = _swiglu_backward(grads[0], both, h, active, down_h, ctx)
        else:
            back = _silu_mul_back(project_back(grads[0], active, down_h, down, layout, True), both)
        return project_back(back, x, h, gate_up, layout, ctx.needs_input_grad[0]), None, None, None, None


# --- all three layers adapted, without dropout
# ----------------------------------------------------------------------------------------------


def _fused_adapters(x: Tensor, gate_up: Linear, down: Linear) -> tuple[Adapters, Adapters] | None:
    """The adapters of gate and up, and of down, if the fused kernels serve them; else None."""
    outer, inner = gate_up.lora, down.lora
    if not x.is_cuda or outer is None or inner is None or outer.masks or inner.masks:
        return None
    return (outer, inner) if recomputes_activation(gate_up.frozen, down.frozen, inner.a.shape[1]) else None


def recomputes_activation(gate_up: Projection, down: Projection, rank: int) -> bool:
    """Whether the backward pass recomputes silu(gate) · up instead of keeping it; on a GPU, without dropout."""
    return len(gate_up.names) == 2 and len(down.names) == 1 and rank <= RANKS[-1]


def _fused_forward(
    x: Tensor, gate_up: Linear, down: Linear, adapters: tuple[Adapters, Adapters], layout: Layout
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The forward pass with fused kernels.

    Returns:
        the output [T, D]; gate and up without the adapters' parts [T, 2 F]; their scaled x Aᵀ [T, 2 R]; that of down,
        [T, R].
    """
    from trainer.packed.kernels import swiglu as kernels

    outer, inner = adapters
    h = adapt(x, outer, layout)
    both = F.linear(x, gate_up.frozen.weight, gate_up.frozen.bias)
    active, sums = kernels.forward(both, layout.blocks, h, outer.b, inner.a)
    down_h = sums.mul_(inner.scale).to(x.dtype)
    return project_adapted(active, down_h, down.frozen, inner, layout), both, h, down_h


def _fused_backward(dy: Tensor, ctx: Any, adapters: tuple[Adapters, Adapters]) -> Tensor | None:
    """Add to the adapters' gradients; returns that of x, [T, D], if autograd needs it."""
    from trainer.packed.kernels import swiglu as kernels

    x, both, h, _, down_h = ctx.saved_tensors
    gate_up, down, layout = ctx.gate_up, ctx.down, ctx.layout
    outer, inner = adapters
    dh = output_back(dy, down_h, down, layout)
    d = dy @ down.frozen.weight
    back = kernels.backward(d, both, layout.offsets, h, dh, outer.b, outer.grad_b, inner.a, inner.grad_a)
    del d
    dh = through_output(back, gate_up.frozen, outer, layout)
    return input_back(back, x, dh, gate_up.frozen, outer, layout, ctx.needs_input_grad[0])


# --- some adapted, or dropout ---------------------------------------------------------------------------------------


def _swiglu_forward(x: Tensor, gate_up: Linear, layout: Layout) -> tuple[Tensor, Tensor | None, Tensor]:
    """On a GPU: gate and up side by side [T, 2 F]; their scaled x Aᵀ, or None; silu(gate) · up [T, F].

    Gate and up lack the adapters' part if `_kernel_adds_adapters`.
    """
    from trainer.packed.kernels import adapters as kernels

    if not _kernel_adds_adapters(gate_up):
        both, h = project(x, gate_up, layout)
        return both, h, kernels.swiglu(both, layout.blocks, None)
    assert gate_up.lora is not None
    h = adapt(x, gate_up.lora, layout)
    both = F.linear(x, gate_up.frozen.weight, gate_up.frozen.bias)
    return both, h, kernels.swiglu(both, layout.blocks, (h, gate_up.lora.b[0], gate_up.lora.b[1]))


def _swiglu_backward(
    dy: Tensor, both: Tensor, h: Tensor | None, active: Tensor, down_h: Tensor | None, ctx: Any
) -> Tensor:
    """On a GPU: the gradient of gate and up, [T, 2 F], which overwrites `both`."""
    from trainer.packed.kernels import adapters as kernels

    gate_up, down, layout = ctx.gate_up, ctx.down, ctx.layout
    outer = (h, *gate_up.lora.b) if _kernel_adds_adapters(gate_up) else None
    if down.lora is None or down.lora.masks:
        d = project_back(dy, active, down_h, down, layout, True)
        assert d is not None
        return kernels.swiglu_back(d, both, layout.blocks, outer, None)
    assert down_h is not None
    dh = output_back(dy, down_h, down, layout)
    adapt_back(active, dh, down.lora, layout, needs_dx=False)
    return kernels.swiglu_back(dy @ down.frozen.weight, both, layout.blocks, outer, (dh, down.lora.a))


def _kernel_adds_adapters(gate_up: Linear) -> bool:
    """Whether the SwiGLU kernels add the adapters' part of gate and up; else `project` has added it."""
    return gate_up.lora is not None and len(gate_up.lora.b) == 2


def _silu_mul_back(d: Tensor | None, both: Tensor) -> Tensor:
    """Gradient of gate and up, [T, 2 F], from d, that of silu(gate) · up, [T, F]; both: gate and up, [T, 2 F]."""
    assert d is not None
    gate, up = both.chunk(2, dim=-1)
    wide, grad = gate.float(), d.float()
    sigmoid = torch.sigmoid(wide)
    d_gate = grad * up.float() * sigmoid * (1 + wide * (1 - sigmoid))
    return torch.cat([d_gate, grad * wide * sigmoid], dim=-1).to(both.dtype)


def warm_up_mlp(like: Tensor, features: int) -> None:
    """Compile all kernels that an MLP of F `features` may need on a GPU, for every rank and number of tokens."""
    from trainer.packed.kernels import adapters, swiglu

    block = torch.tensor([[0, 0, 1]], dtype=torch.int32, device=like.device)
    ends = torch.ones(1, dtype=torch.int32, device=like.device)
    for rank in (*RANKS, RANKS[-1] + UNIT):
        both, d = like.new_zeros(1, 2 * features), like.new_zeros(1, features)
        h, dh = like.new_zeros(1, 2 * rank), like.new_zeros(1, rank)
        a, b = like.new_zeros(1, rank, features), like.new_zeros(1, features, rank)
        if rank <= RANKS[-1]:
            for blocks in (block, block.repeat(swiglu.MANY_BLOCKS, 1)):
                swiglu.forward(both, blocks, h, (b, b), a)
            swiglu.backward(d, both, ends, h, dh, (b, b), (b, b), a, a)
        else:
            adapters.swiglu(both, block, (h, b, b))
            adapters.swiglu_back(d, both, block, (h, b, b), (dh, a))


# torch has no types for `apply`
MLP: Callable[..., Any] = Mlp.apply
