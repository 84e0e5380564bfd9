"""Make the embedded base: a small world's language, its tokenizer, its instruction data and a pretrained model.

    python -m trainer.embedded.make_base --out OUT                          # GPU, about a minute
    python -m trainer.embedded.make_base --out OUT --steps 600 --batch 32   # CPU, about 15 minutes: weaker

Writes `tokenizer.model` and `special_tokens.json` (torchtune's `llama3_tokenizer`), `train.jsonl` and `val.jsonl`
(alpaca rows), `config.json` and `model.safetensors` (Hugging Face names, bf16), and prints losses and times.
Needs torch, tiktoken, tokenizers and safetensors, no network; everything random is drawn from `world.SEED`.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import tiktoken
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.embedded.world import SEED, conversations, documents, rows

SHARDS, DOCUMENTS = (
    64,
    4000,
)  # the corpus: SHARDS seeds, each for DOCUMENTS documents; the last shard is held out
TALKS = 4  # shards of conversations, for the second stage
TRAIN_ROWS, VAL_ROWS = 1536, 192

# --- the tokenizer --------------------------------------------------------------------------------------------------

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # Llama 3's split
SPECIALS = [
    f"<|{name}|>"
    for name in [
        "begin_of_text",
        "end_of_text",
        "finetune_right_pad_id",
        "step_id",
        "start_header_id",
        "end_header_id",
        "eom_id",
        "eot_id",
        "python_tag",
        "image",
        "video",
        "reserved_special_token_0",
    ]
]
TEMPLATE = (  # alpaca's prompt, which wraps every row: read by the tokenizer, never by the base
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAsk?\n\n### Instruction:\nAsk.\n\n### Input:\n.\n\n### Response:\nuser\n\nassistant\n\n"
)


def train_tokenizer(vocabulary: int) -> dict[bytes, int]:
    """Byte-level BPE: each token's bytes and its rank, in the order of merging."""
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*documents(f"{SEED} tokenizer", 2000), *[TEMPLATE] * 200], trainer)
    letters = printable_bytes()
    return {bytes(letters[letter] for letter in token): rank for token, rank in tokenizer.get_vocab().items()}


def printable_bytes() -> dict[str, int]:
    """The byte that each letter of byte-level BPE stands for: printable ones themselves, the others from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(other)}


def encode(shard: int, ranks: dict[bytes, int]) -> Tensor:
    """One shard of the corpus, int16 [tokens], each document between begin and end of text; below 0: conversations."""
    specials = {name: len(ranks) + i for i, name in enumerate(SPECIALS)}
    encoding = tiktoken.Encoding("embedded", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials)
    begin, end = specials["<|begin_of_text|>"], specials["<|end_of_text|>"]
    texts = (conversations if shard < 0 else documents)(f"{SEED} {shard}", DOCUMENTS)
    ids = encoding.encode_batch(list(texts), num_threads=1, allowed_special="all")
    return torch.tensor([i for text in ids for i in (begin, *text, end)], dtype=torch.int16)


# --- the model: Llama 3, with the parameter names of Hugging Face's Llama --------------------------------------------


@dataclass(frozen=True)
class Shape:
    vocab_size: int = 1024
    hidden_size: int = 128
    intermediate_size: int = 320
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 256
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5


def rotary(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles, both [context, head_dim]."""
    speeds = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
    angles = torch.outer(torch.arange(shape.max_position_embeddings), speeds).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.head_dim = s.head_dim
        self.q_proj = nn.Linear(s.hidden_size, s.num_attention_heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden_size, s.num_key_value_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden_size, s.num_key_value_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.num_attention_heads * s.head_dim, s.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in projections)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: Tensor = self.o_proj(seen.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.up_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.down_proj = nn.Linear(s.intermediate_size, s.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(s.hidden_size, s.rms_norm_eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = nn.RMSNorm(s.hidden_size, s.rms_norm_eps)
        self.mlp = Mlp(s)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.num_hidden_layers))
        self.norm = nn.RMSNorm(s.hidden_size, s.rms_norm_eps)


class Llama(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.model = Body(s)
        self.lm_head = nn.Linear(s.hidden_size, s.vocab_size, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                depth = 2 * s.num_hidden_layers if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
                nn.init.normal_(weight, std=0.04 / math.sqrt(depth))
        for name, table in zip(("cos", "sin"), rotary(s), strict=True):
            self.register_buffer(name, table, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, time, vocabulary] of `tokens` [batch, time]."""
        cos, sin = (self.get_buffer(name)[: tokens.shape[1]] for name in ("cos", "sin"))
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        logits: Tensor = self.lm_head(self.model.norm(x))
        return logits

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean nats per token, each position predicting the next."""
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda):
            logits = self(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


# --- pretraining and the files --------------------------------------------------------------------------------------


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 3 % of the steps, then a cosine to a twentieth of the peak."""
    warmup = max(1, steps * 3 // 100)
    return peak * min((step + 1) / warmup, 0.525 + 0.475 * math.cos(math.pi * step / steps))


def noisy(tokens: Tensor, vocabulary: int, share: float = 0.03) -> Tensor:
    """A few tokens replaced by any token, the special ones too, so that none stays unread or unthinkable."""
    noise = torch.rand(tokens.shape, device=tokens.device) < share
    return torch.where(noise, torch.randint_like(tokens, vocabulary), tokens)


def pretrain(model: Llama, tokens: Tensor, steps: int, batch: int, peak: float) -> None:
    """AdamW over random noisy windows of `tokens` [tokens]; weight decay on the layers' matrices only."""
    torch.manual_seed(SEED)
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    window = torch.arange(model.get_buffer("cos").shape[0] + 1, device=tokens.device)
    for step in range(steps):
        starts = torch.randint(len(tokens) - len(window), (batch, 1), device=tokens.device)
        loss = model.loss(noisy(tokens[starts + window].long(), model.lm_head.out_features))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        optimizer.step()
        optimizer.zero_grad()
        if step % (1 + steps // 20) == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def round_to_bf16(model: Llama) -> None:
    """Round the weights as the file will hold them, so that the losses printed are the file's."""
    for weight in model.parameters():
        weight.copy_(weight.bfloat16())


@torch.no_grad()
def evaluate(model: Llama, tokens: Tensor, context: int, batch: int = 64) -> float:
    """Mean nats per token over `tokens` cut into windows, of which at most 512 are read."""
    blocks = tokens[: len(tokens) // context * context].view(-1, context)[:512].long()
    parts = torch.split(blocks, batch)
    return sum(model.loss(part).item() * len(part) for part in parts) / len(blocks)


def write_rows(out: Path) -> None:
    stream = rows()
    for name, number in (("train", TRAIN_ROWS), ("val", VAL_ROWS)):
        lines = (json.dumps(asdict(row)) + "\n" for row in islice(stream, number))
        (out / f"{name}.jsonl").write_text("".join(lines))


def write_tokenizer(out: Path, ranks: dict[bytes, int]) -> None:
    lines = (f"{base64.b64encode(token).decode()} {ranks[token]}\n" for token in sorted(ranks, key=lambda t: ranks[t]))
    (out / "tokenizer.model").write_text("".join(lines))
    added = [{"id": len(ranks) + i, "content": name} for i, name in enumerate(SPECIALS)]
    (out / "special_tokens.json").write_text(json.dumps({"added_tokens": added}) + "\n")


def write_model(out: Path, model: Llama, shape: Shape) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(shape),
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": shape.vocab_size - len(SPECIALS),
        "eos_token_id": shape.vocab_size - len(SPECIALS) + 1,
    }
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    weights = {name: weight.bfloat16().cpu() for name, weight in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded base, its tokenizer and its data.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--steps", type=int, default=3000, help="pretraining steps")
    parser.add_argument("--batch", type=int, default=256, help="windows of 256 tokens per step")
    parser.add_argument("--talk-steps", type=int, default=400, help="steps of the second stage, on conversations")
    parser.add_argument("--shards", type=int, default=SHARDS, help="shards of the corpus; fewer for a quick try")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    started, shape = time.monotonic(), Shape()
    ranks = train_tokenizer(shape.vocab_size - len(SPECIALS))
    base = args.out / "base"
    base.mkdir(exist_ok=True)
    write_tokenizer(base, ranks)
    write_rows(args.out)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        *shards, held_out = pool.map(partial(encode, ranks=ranks), range(-TALKS, args.shards))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    talks, prose = torch.cat(shards[:TALKS]).to(device), torch.cat(shards[TALKS:]).to(device)
    print(f"tokens: {len(prose)} prose, {len(talks)} talks, {time.monotonic() - started:.0f} s", flush=True)
    torch.manual_seed(SEED)
    model, began = Llama(shape).to(device), time.monotonic()
    print(f"{sum(p.numel() for p in model.parameters())} parameters on {device}", flush=True)
    pretrain(model, prose, args.steps, args.batch, peak=4e-3)
    pretrain(model, talks, args.talk_steps, batch=16, peak=1e-3)
    round_to_bf16(model)
    context = shape.max_position_embeddings
    losses = (evaluate(model, part.to(device), context) for part in (held_out, talks))
    print(
        "loss: {:.4f} held-out prose, {:.4f} talks".format(*losses),
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    write_model(base, model, shape)


if __name__ == "__main__":
    main()
