"""The gated MLP of a packed decoder: gate and up side by side, SwiGLU, down.

Invariant: on a GPU the sums of the frozen products and the adapters' parts around SwiGLU are never written: its kernels
add the adapters' part to what they read (see `packed_adapter_kernels`), forward and backward alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function

from trainer.packed_layout import Layout
from trainer.packed_products import Linear, adapt, adapt_back, output_back, project, project_back

Tensor = torch.Tensor


class Mlp(Function):
    """x [T, D] → down(silu(gate(x)) · up(x)), [T, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, gate_up: Linear, down: Linear, layout: Layout) -> Tensor:
        ctx.gate_up, ctx.down, ctx.layout = gate_up, down, layout
        if x.is_cuda:
            both, h, active = _gated(x, gate_up, layout)
        else:
            both, h = project(x, gate_up, layout)
            gate, up = both.chunk(2, dim=-1)
            active = F.silu(gate) * up
        y, down_h = project(active, down, layout)
        ctx.save_for_backward(x, both, h, active, down_h)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, both, h, active, down_h = ctx.saved_tensors
        gate_up, down, layout = ctx.gate_up, ctx.down, ctx.layout
        if x.is_cuda:
            back = _gated_back(grads[0], both, h, active, down_h, ctx)
        else:
            back = _silu_mul_back(project_back(grads[0], active, down_h, down, layout, True), both)
        return project_back(back, x, h, gate_up, layout, ctx.needs_input_grad[0]), None, None, None, None


def _gated(x: Tensor, gate_up: Linear, layout: Layout) -> tuple[Tensor, Tensor | None, Tensor]:
    """On a GPU: gate and up side by side [T, 2 F], without the adapters' part where `_late` says so; what A made of
    x; silu(gate) · up [T, F]."""
    from trainer import packed_adapter_kernels as kernels

    if not _late(gate_up):
        both, h = project(x, gate_up, layout)
        return both, h, kernels.swiglu(both, layout.blocks, None)
    assert gate_up.lora is not None
    h = adapt(x, gate_up.lora, layout)
    both = F.linear(x, gate_up.frozen.weight, gate_up.frozen.bias)
    return both, h, kernels.swiglu(both, layout.blocks, (h, gate_up.lora.b[0], gate_up.lora.b[1]))


def _gated_back(dy: Tensor, both: Tensor, h: Tensor | None, active: Tensor, down_h: Tensor | None, ctx: Any) -> Tensor:
    """On a GPU: the gradient of gate and up, [T, 2 F], which takes the place of `both`."""
    from trainer import packed_adapter_kernels as kernels

    gate_up, down, layout = ctx.gate_up, ctx.down, ctx.layout
    outer = (h, *gate_up.lora.b) if _late(gate_up) else None
    if down.lora is None or down.lora.noise:
        d = project_back(dy, active, down_h, down, layout, True)
        assert d is not None
        return kernels.swiglu_back(d, both, layout.blocks, outer, None)
    assert down_h is not None
    dh = output_back(dy, down_h, down, layout)
    adapt_back(active, dh, down.lora, layout, wanted=False)
    return kernels.swiglu_back(dy @ down.frozen.weight, both, layout.blocks, outer, (dh, down.lora.a))


def _late(gate_up: Linear) -> bool:
    """Whether the kernels add the adapters' part; else it is in `both` already."""
    return gate_up.lora is not None and len(gate_up.lora.b) == 2


def _silu_mul_back(d: Tensor | None, both: Tensor) -> Tensor:
    """Gradient of silu(gate) · up: d [T, F], gate and up side by side [T, 2 F]; returns [T, 2 F]."""
    assert d is not None
    gate, up = both.chunk(2, dim=-1)
    wide, grad = gate.float(), d.float()
    sigmoid = torch.sigmoid(wide)
    d_gate = grad * up.float() * sigmoid * (1 + wide * (1 - sigmoid))
    return torch.cat([d_gate, grad * wide * sigmoid], dim=-1).to(both.dtype)


# autograd's own entry has no types
MLP: Callable[..., Any] = Mlp.apply
