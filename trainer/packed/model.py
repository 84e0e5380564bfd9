"""A decoder on flat tokens, built from the modules that torchtune's builder made.

Invariants: torchtune's LoRA layers are replaced by packed ones here and nowhere else. The frozen parameters remain
torchtune's objects. Those that share an input are moved into one tensor, of which they become views. The base is
therefore in memory once, and a trial alone reads the same numbers. `unpackable_model` names what cannot be replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchtune.models.llama3_1 import Llama3ScaledRoPE
from torchtune.modules import (
    FeedForward,
    MultiHeadAttention,
    RMSNorm,
    RotaryPositionalEmbeddings,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)
from torchtune.modules.peft import LoRALinear

from trainer.packed.attention import Heads, attend, rotated_qkv, warm_up_attention
from trainer.packed.layout import UNIT, Layout, build_layout
from trainer.packed.loss import summed_loss
from trainer.packed.mlp import MLP, recomputes_activation, warm_up_mlp
from trainer.packed.norms import ADD_NORM, norm
from trainer.packed.products import PROJECT, Linear, Projection
from trainer.packed.store import AdapterStore
from trainer.packed.update import warm_up_adamw

# How many tokens' logits exist at one time: 1 GiB in bf16 with a vocabulary of 128k.
CHUNK = 4096

# The M dropout masks of a group, shape [T, D] each.
Masks = Sequence[torch.Tensor]
Attention = Callable[[int, torch.Tensor, Linear], torch.Tensor]


@dataclass(slots=True)
class Group:
    """A projection with its index among the store's groups; the index is None if none of its layers is adapted."""

    frozen: Projection
    index: int | None


@dataclass(slots=True)
class Block:
    """One layer of the decoder: torchtune's sa_norm, attn, mlp_norm and mlp."""

    attention_norm: RMSNorm
    qkv: Group
    out: Group
    mlp_norm: RMSNorm
    gate_up: Group
    down: Group


def unpackable_model(model: Any) -> str | None:
    """Why a model's layers cannot be packed, as half a sentence; None if they can."""
    if type(model) is not TransformerDecoder:
        return f"{type(model).__name__} is no plain decoder"
    if isinstance(model.output, LoRALinear):
        return "its output projection is adapted"
    for name, module in model.named_modules():
        if hasattr(module, "adapter_params") and type(module) is not LoRALinear:
            return f"{name} is a {type(module).__name__}, not a plain LoRALinear"
        if isinstance(module, LoRALinear) and module._quantize_base:
            return f"{name} has a quantized base"
    for number, layer in enumerate(model.layers):
        if reason := _unpackable_layer(layer):
            return f"layer {number} {reason}"
    if not isinstance(model.norm, RMSNorm):
        return f"its last norm is a {type(model.norm).__name__}"
    return None


def _unpackable_layer(layer: Any) -> str | None:
    if type(layer) is not TransformerSelfAttentionLayer:
        return f"is a {type(layer).__name__}"
    attn, mlp = layer.attn, layer.mlp
    if type(attn) is not MultiHeadAttention or type(mlp) is not FeedForward:
        return f"has {type(attn).__name__} and {type(mlp).__name__}"
    if not isinstance(layer.sa_scale, nn.Identity) or not isinstance(layer.mlp_scale, nn.Identity):
        return "scales its parts"
    if not isinstance(layer.sa_norm, RMSNorm) or not isinstance(layer.mlp_norm, RMSNorm):
        return "has norms other than RMSNorm"
    if attn.q_norm is not None or attn.attn_dropout or not attn.is_causal or attn.kv_cache is not None:
        return "has attention with norms, dropout, a cache or no causal mask"
    if type(attn.pos_embeddings) not in (RotaryPositionalEmbeddings, Llama3ScaledRoPE):
        return f"has {type(attn.pos_embeddings).__name__} for positions"
    if mlp.w3 is None or not isinstance(mlp.activation, nn.SiLU):
        return "has an MLP other than SwiGLU"
    sizes = [size for linear in (attn.q_proj, attn.k_proj, mlp.w1) for size in _weight(linear).shape]
    if odd := [size for size in sizes if size % UNIT]:
        return f"has {odd[0]} features, which is no multiple of {UNIT}"
    return None


class Decoder:
    """A decoder for the slots of a store.

    Args:
        model: a packable model of torchtune, on the base that all slots share.
    """

    def __init__(self, model: TransformerDecoder) -> None:
        self._embed = model.tok_embeddings
        self._index = 0
        named = {id(module): name for name, module in model.named_modules()}
        self.groups: list[Projection] = []
        self._blocks = [self._block(layer, named) for layer in model.layers]
        self._last_norm = model.norm
        first = model.layers[0].attn
        self.heads = Heads(first.num_heads, first.num_kv_heads, first.head_dim)
        self._table: torch.Tensor = first.pos_embeddings.cache
        self.max_length = int(model.max_seq_len)
        output: Any = model.output
        self._output: torch.Tensor = (output if hasattr(output, "weight") else output.tied_module).weight.detach()
        self._anchor = torch.zeros((), device=self._output.device, requires_grad=True)
        self.base_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
        self._buffers = dict(model.named_buffers())

    @property
    def like(self) -> torch.Tensor:
        """A tensor of this decoder's dtype, on its device."""
        return self._output

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self._blocks)

    @property
    def vocab_size(self) -> int:
        """V, the size of the vocabulary."""
        return self._output.shape[0]

    def activation_bytes(self, rank: int, dropout: bool) -> int:
        """An estimate of the bytes that one token keeps from the forward to the backward pass.

        Args:
            rank: that of the store.
            dropout: some slot has dropout, so that all have masks.
        """
        dim = self._output.shape[1]
        first = self._blocks[0]  # norms and residual sums, attention in and out, gate and up, and their product
        wide = first.gate_up.frozen.weight.shape[0]
        per_layer = 4 * dim + first.qkv.frozen.weight.shape[0] + 2 * first.out.frozen.weight.shape[1] + wide
        if dropout or not recomputes_activation(first.gate_up.frozen, first.down.frozen, rank):
            per_layer += wide // 2
        masks = sum(len(group.names) * group.weight.shape[1] for group in self.groups) if dropout else 0
        return self._output.element_size() * (per_layer * len(self._blocks) + 8 * dim + masks)

    def share(self, model: nn.Module) -> None:
        """Give another trial's model this one's buffers (its table of positions), so that they are in memory once."""
        for name, buffer in list(model.named_buffers()):
            owner, _, leaf = name.rpartition(".")
            if name in self._buffers and self._buffers[name].shape == buffer.shape:
                model.get_submodule(owner)._buffers[leaf] = self._buffers[name]

    def warm_up(self, store: AdapterStore) -> None:
        """Compile all kernels that any pass will need, on a store that is still empty.

        Micro-batches of equal length, of unequal lengths, dropout and validation use different kernels. A kernel that
        is not compiled here would be compiled in the middle of training.
        """
        if not self.like.is_cuda:
            return
        tokens = torch.zeros(2, 8, dtype=torch.int64)
        layout = build_layout([{"tokens": tokens, "labels": tokens}], 0, -1, self.like.device)
        self.loss(store, layout, {}, backward=False)
        self.loss(store, layout, {}, backward=True)
        layout.even = layout.rectangle = None
        self.loss(store, layout, {}, backward=True)
        masks = [[self.like.new_ones(layout.size, group.weight.shape[1]) for _ in group.names] for group in self.groups]
        self.loss(store, layout, dict(enumerate(masks)), backward=True)
        warm_up_mlp(self.like, self._blocks[0].down.frozen.weight.shape[1])
        warm_up_attention(self.like, self._blocks[0].qkv.frozen, self._table, self.heads)
        warm_up_adamw(store)

    def loss(self, store: AdapterStore, layout: Layout, masks: dict[int, Masks], backward: bool) -> torch.Tensor:
        """Nats summed over each slot's labels, shape [k], fp32; with `backward`, gradients are added to the store's.

        Args:
            masks: dropout masks by the index of the group; empty without dropout.
        """
        with torch.set_grad_enabled(backward):
            hidden = self.hidden(store, layout, masks, self._attend_causally(layout))
        sums, gradient, _ = summed_loss(hidden.detach(), self._output, layout, CHUNK, backward)
        if backward:
            torch.autograd.backward(hidden, gradient)
        return sums

    @torch.no_grad()
    def loss_and_correct(self, store: AdapterStore, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        """Nats summed over each slot's labels, and how many of these are the likeliest token, both [k], fp32."""
        hidden = self.hidden(store, layout, {}, self._attend_causally(layout))
        sums, _, hits = summed_loss(hidden, self._output, layout, CHUNK, False, correct=True)
        return sums, hits

    def hidden(
        self, store: AdapterStore, layout: Layout, masks: dict[int, Masks], attention: Attention
    ) -> torch.Tensor:
        """The last norm's output, shape [T, D].

        Args:
            masks: as `loss` takes them.
            attention: returns the attention's output, [T, queries · size], from the number of the layer, its
                normalised input [T, D], and its projection to queries, keys and values.
        """
        scale = store.scales[layout.owners][:, None]

        def linear(group: Group) -> Linear:
            index = group.index
            lora = None if index is None else store.adapters(index, layout, scale, masks.get(index, ()))
            return Linear(group.frozen, lora)

        x = self._embed(layout.tokens)
        first = self._blocks[0].attention_norm
        normed = norm(x, first.scale, first.eps)
        following = [*(block.attention_norm for block in self._blocks[1:]), self._last_norm]
        for number, (block, after) in enumerate(zip(self._blocks, following, strict=True)):
            mixed = attention(number, normed, linear(block.qkv))
            out = PROJECT(mixed, self._anchor, linear(block.out), layout)
            x, normed = ADD_NORM(x, out, block.mlp_norm.scale, block.mlp_norm.eps)
            out = MLP(normed, self._anchor, linear(block.gate_up), linear(block.down), layout)
            x, normed = ADD_NORM(x, out, after.scale, after.eps)
        return normed

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The output projection, [n, V], of n rows of `hidden`, [n, D]."""
        return hidden @ self._output.t()

    def rotated_qkv(self, x: torch.Tensor, layer: Linear, layout: Layout) -> torch.Tensor:
        """Rotated queries and keys, and values, side by side, from a layer's normalised input, without a gradient."""
        return rotated_qkv(x, layer, self._table, layout, self.heads)

    def _attend_causally(self, layout: Layout) -> Attention:
        return lambda _, x, layer: attend(x, self._anchor, layer, self._table, layout, self.heads)

    def _block(self, layer: TransformerSelfAttentionLayer, named: dict[int, str]) -> Block:
        attn, mlp = layer.attn, layer.mlp
        return Block(
            layer.sa_norm,
            self._group([attn.q_proj, attn.k_proj, attn.v_proj], named),
            self._group([attn.output_proj], named),
            layer.mlp_norm,
            self._group([mlp.w1, mlp.w3], named),
            self._group([mlp.w2], named),
        )

    def _group(self, layers: Sequence[nn.Module], named: dict[int, str]) -> Group:
        columns, names = [], []
        end = 0
        for layer in layers:
            begin, end = end, end + _weight(layer).shape[0]
            if isinstance(layer, LoRALinear):
                columns.append((begin, end))
                names.append(named[id(layer)])
        frozen = Projection(
            join([_weight(layer) for layer in layers]),
            _bias(layers),
            tuple(columns),
            tuple(names),
            len(names) == len(layers),
        )
        if not names:
            return Group(frozen, None)
        self.groups.append(frozen)
        return Group(frozen, len(self.groups) - 1)


def join(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """The tensor [ΣN_m, D] of which these weights [N_m, D] are views; they become such views if they are not yet."""
    if len(parameters) == 1:
        return parameters[0].detach()
    first = parameters[0]
    following = first.data_ptr()
    storage = first.untyped_storage().data_ptr()
    for parameter in parameters:
        if parameter.data_ptr() != following or parameter.untyped_storage().data_ptr() != storage:
            break
        following += parameter.numel() * parameter.element_size()
    else:
        rows = sum(parameter.shape[0] for parameter in parameters)
        return first.detach().as_strided((rows, first.shape[1]), (first.shape[1], 1), first.storage_offset())
    joined = torch.cat([parameter.detach() for parameter in parameters])
    begin = 0
    for parameter in parameters:
        parameter.data = joined[begin : begin + parameter.shape[0]]
        begin += parameter.shape[0]
    return joined


def _weight(layer: nn.Module) -> nn.Parameter:
    assert isinstance(layer.weight, nn.Parameter)
    return layer.weight


def _bias(layers: Sequence[nn.Module]) -> torch.Tensor | None:
    parts: list[Any] = [getattr(layer, "bias", None) for layer in layers]
    if all(part is None for part in parts):
        return None
    return torch.cat(
        [
            torch.zeros_like(_weight(layer)[:, 0]) if part is None else part.detach()
            for layer, part in zip(layers, parts, strict=True)
        ]
    )
