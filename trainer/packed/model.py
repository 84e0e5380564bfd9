"""A decoder on flat tokens, from the modules that torchtune's builder made.

Invariants: here, and nowhere else, torchtune's LoRA layers are exchanged for packed ones. The frozen parameters stay
torchtune's objects; those that share an input are moved into one tensor, of which they become views, so that the base
is in memory once and a trial alone reads the same numbers. What cannot be exchanged is named and left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

from trainer.packed.attention import Heads, attend, warm_up_attention
from trainer.packed.layout import UNIT, Layout, lay_out
from trainer.packed.loss import summed_loss
from trainer.packed.mlp import MLP, makes_again, warm_up_mlp
from trainer.packed.norms import ADD_NORM, norm
from trainer.packed.products import PROJECT, Linear, Projection
from trainer.packed.store import Store
from trainer.packed.update import stand_still

# Logits of so many tokens exist at one time: at 128k words, a gigabyte in bf16.
CHUNK = 4096


Noise = Sequence[torch.Tensor]


@dataclass(slots=True)
class Group:
    """A projection with its place among the store's groups; None where none of its layers is adapted."""

    frozen: Projection
    index: int | None


@dataclass(slots=True)
class Block:
    """One layer: what torchtune calls sa_norm, attn, mlp_norm and mlp."""

    attention_norm: RMSNorm
    qkv: Group
    out: Group
    mlp_norm: RMSNorm
    gate_up: Group
    down: Group


def unpackable(model: Any) -> str | None:
    """Why a model's layers cannot be packed, as half a sentence; None where they can."""
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
        if found := _odd_layer(layer):
            return f"layer {number} {found}"
    if not isinstance(model.norm, RMSNorm):
        return f"its last norm is a {type(model.norm).__name__}"
    return None


def _odd_layer(layer: Any) -> str | None:
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
    if odd := [size for linear in (attn.q_proj, attn.k_proj, mlp.w1) for size in _weight(linear).shape if size % UNIT]:
        return f"has {odd[0]} features, no multiple of {UNIT}"
    return None


class Decoder:
    """A decoder for the slots of a store.

    Args:
        model: a packable model of torchtune's, on the base that all slots share.
    """

    def __init__(self, model: TransformerDecoder) -> None:
        self._embed = model.tok_embeddings
        self._index = 0
        named = {id(module): name for name, module in model.named_modules()}
        self.groups: list[Projection] = []
        self._blocks = [self._block(layer, named) for layer in model.layers]
        self._last_norm = model.norm
        first = model.layers[0].attn
        self._heads = Heads(first.num_heads, first.num_kv_heads, first.head_dim)
        self._table: torch.Tensor = first.pos_embeddings.cache
        self.max_length = int(model.max_seq_len)
        output: Any = model.output
        self._output: torch.Tensor = (output if hasattr(output, "weight") else output.tied_module).weight.detach()
        self._anchor = torch.zeros((), device=self._output.device, requires_grad=True)
        self.base_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
        self._buffers = dict(model.named_buffers())

    @property
    def like(self) -> torch.Tensor:
        """A tensor of the dtype and on the device of this decoder."""
        return self._output

    @property
    def words(self) -> int:
        """Of the vocabulary."""
        return self._output.shape[0]

    def activation_bytes(self, rank: int, dropout: bool) -> int:
        """An estimate of what one token keeps in memory from the forward to the backward pass, in a store of a rank.

        Args:
            dropout: some slot has it, and all have masks.
        """
        dim = self._output.shape[1]
        first = self._blocks[0]  # norms and residual sums, attention in and out, gate and up, and their product
        wide = first.gate_up.frozen.weight.shape[0]
        per_layer = 4 * dim + first.qkv.frozen.weight.shape[0] + 2 * first.out.frozen.weight.shape[1] + wide
        if dropout or not makes_again(first.gate_up.frozen, first.down.frozen, rank):
            per_layer += wide // 2
        masks = sum(len(group.names) * group.weight.shape[1] for group in self.groups) if dropout else 0
        return self._output.element_size() * (per_layer * len(self._blocks) + 8 * dim + masks)

    def share(self, model: nn.Module) -> None:
        """Let another trial's model have this one's buffers, its table of positions, for its own."""
        for name, buffer in list(model.named_buffers()):
            owner, _, leaf = name.rpartition(".")
            if name in self._buffers and self._buffers[name].shape == buffer.shape:
                model.get_submodule(owner)._buffers[leaf] = self._buffers[name]

    def warm_up(self, store: Store) -> None:
        """Have all compiled that any pass will need, on a store that holds nothing yet.

        Trials that stand at one position bring micro-batches of one length, others do not; dropout and validation have
        kernels of their own. What is left for later would be compiled in the middle of training.
        """
        if not self.like.is_cuda:
            return
        tokens = torch.zeros(2, 8, dtype=torch.int64)
        layout = lay_out([{"tokens": tokens, "labels": tokens}], 0, -1, self.like.device)
        self.loss(store, layout, {}, backward=False)
        self.loss(store, layout, {}, backward=True)
        layout.even = layout.rectangle = None
        self.loss(store, layout, {}, backward=True)
        noise = [[self.like.new_ones(layout.size, one.weight.shape[1]) for _ in one.names] for one in self.groups]
        self.loss(store, layout, dict(enumerate(noise)), backward=True)
        warm_up_mlp(self.like, self._blocks[0].down.frozen.weight.shape[1])
        warm_up_attention(self.like, self._blocks[0].qkv.frozen, self._table, self._heads)
        stand_still(store)

    def loss(self, store: Store, layout: Layout, noise: dict[int, Noise], backward: bool) -> torch.Tensor:
        """Nats summed over each slot's labels, shape [k], fp32; with `backward`, gradients are added to the store's.

        Args:
            noise: dropout masks by group, for those groups that have any.
        """
        with torch.set_grad_enabled(backward):
            hidden = self._hidden(store, layout, noise)
        sums, gradient = summed_loss(hidden.detach(), self._output, layout, CHUNK, backward)
        if backward:
            torch.autograd.backward(hidden, gradient)
        return sums

    def _hidden(self, store: Store, layout: Layout, noise: dict[int, Noise]) -> torch.Tensor:
        """The last norm's output, shape [T, D]."""
        scale = store.scales[layout.owners][:, None]

        def linear(group: Group) -> Linear:
            index = group.index
            lora = None if index is None else store.adapters(index, layout, scale, noise.get(index, ()))
            return Linear(group.frozen, lora)

        x = self._embed(layout.tokens)
        first = self._blocks[0].attention_norm
        normed = norm(x, first.scale, first.eps)
        following = [*(block.attention_norm for block in self._blocks[1:]), self._last_norm]
        for block, after in zip(self._blocks, following, strict=True):
            mixed = attend(normed, self._anchor, linear(block.qkv), self._table, layout, self._heads)
            out = PROJECT(mixed, self._anchor, linear(block.out), layout)
            x, normed = ADD_NORM(x, out, block.mlp_norm.scale, block.mlp_norm.eps)
            out = MLP(normed, self._anchor, linear(block.gate_up), linear(block.down), layout)
            x, normed = ADD_NORM(x, out, after.scale, after.eps)
        return normed

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
    """Weights [N_m, D] as views of one tensor [ΣN_m, D], which is made where they are not yet."""
    if len(parameters) == 1:
        return parameters[0].detach()
    first = parameters[0]
    following = first.data_ptr()
    for one in parameters:
        if one.data_ptr() != following or one.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            break
        following += one.numel() * one.element_size()
    else:
        rows = sum(one.shape[0] for one in parameters)
        return first.detach().as_strided((rows, first.shape[1]), (first.shape[1], 1), first.storage_offset())
    joined = torch.cat([one.detach() for one in parameters])
    begin = 0
    for one in parameters:
        one.data = joined[begin : begin + one.shape[0]]
        begin += one.shape[0]
    return joined


def _weight(layer: nn.Module) -> nn.Parameter:
    assert isinstance(layer.weight, nn.Parameter)
    return layer.weight


def _bias(layers: Sequence[nn.Module]) -> torch.Tensor | None:
    found: Iterator[Any] = (getattr(layer, "bias", None) for layer in layers)
    parts = list(found)
    if all(part is None for part in parts):
        return None
    return torch.cat(
        [
            torch.zeros_like(_weight(layer)[:, 0]) if part is None else part.detach()
            for layer, part in zip(layers, parts, strict=True)
        ]
    )
