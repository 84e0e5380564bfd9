"""Dispatch on a GPU: `python -m tests.bench.gpu_dispatch --trials 16 [--only warm,process] [--json OUT]`.

The arms of `dispatch.py` on one CUDA GPU with one slot, over a base of Llama 3.2 1B's shape with random weights in
bf16, made anew as a Hugging Face checkpoint of 2.5 GB in a scratch directory. Tokenizer and rows are the embedded
base's: ids below 1,024 are ids of the larger vocabulary too. What is measured is what it costs to start a trial, so
that weights which know nothing are no matter. `--shape tiny --device cpu --dtype fp32` tries the script itself out.

Ray's arm runs where `--ray-python` (it may be this very Python) has Ray; name the arms with `--only` where it has not.

Invariant: as in `dispatch.py`; nothing is fetched from anywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from sweep.resources import embedded_dir
from tests.bench.arms import Job
from tests.bench.bench import add_options, measure, wanted_arms


@dataclass(frozen=True, slots=True)
class Shape:
    """What `torchtune.models.llama3_2.lora_llama3_2` takes, by its names."""

    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    embed_dim: int
    intermediate_dim: int
    max_seq_len: int
    rope_base: int = 500_000
    scale_factor: int = 32
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes by Hugging Face's names; the output is tied to the embedding."""
        dim, ffn, kv = self.embed_dim, self.intermediate_dim, self.num_kv_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (dim, dim),
            "self_attn.k_proj": (kv, dim),
            "self_attn.v_proj": (kv, dim),
            "self_attn.o_proj": (dim, dim),
            "mlp.gate_proj": (ffn, dim),
            "mlp.up_proj": (ffn, dim),
            "mlp.down_proj": (dim, ffn),
            "input_layernorm": (dim,),
            "post_attention_layernorm": (dim,),
        }
        every = {
            f"model.layers.{number}.{name}.weight": shape
            for number in range(self.num_layers)
            for name, shape in layer.items()
        }
        return {"model.embed_tokens.weight": (self.vocab_size, dim), **every, "model.norm.weight": (dim,)}


SHAPES = {
    "1b": Shape(128_256, 16, 32, 8, 2048, 8192, 131_072),
    "tiny": Shape(2048, 2, 4, 2, 64, 128, 512),
}


def make_base(shape: Shape, to: Path) -> None:
    """Write a random checkpoint in Hugging Face's form, and the embedded tokenizer beside it."""
    import torch
    from safetensors.torch import save_file

    to.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.ones(size, dtype=torch.bfloat16)
        if len(size) == 1
        else torch.randn(size, generator=generator, dtype=torch.float32).mul_(0.02).bfloat16()
        for name, size in shape.tensors().items()
    }
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.embed_dim,
        "intermediate_size": shape.intermediate_dim,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "rope_theta": shape.rope_base,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (to / "config.json").write_text(json.dumps(config))


def torchtune_config(args: argparse.Namespace, base: Path, output: Path) -> dict[str, Any]:
    """The embedded configuration on the other base: torchtune's for Llama 3.2 1B in what makes its speed."""
    config: Any = OmegaConf.to_container(OmegaConf.load(embedded_dir() / "lora_cpu.yaml"))
    del config["dataset_val"], config["batch_size_val"]
    shape = asdict(SHAPES[args.shape])
    lora = {key: value for key, value in config["model"].items() if key.startswith(("lora_", "apply_lora_"))}
    config["model"] = {"_component_": "torchtune.models.llama3_2.lora_llama3_2", **lora, **shape}
    config["checkpointer"] |= {"checkpoint_dir": str(base), "model_type": "LLAMA3_2"}
    config["dataset"]["split"] = f"train[:{args.steps * args.batch_size}]"
    config |= {
        "root": str(embedded_dir()),
        "output_dir": str(output),
        "batch_size": args.batch_size,
        "device": args.device,
        "dtype": args.dtype,
    }
    return dict(config)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, trials=16, workers=1)
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of a trial (default 8)")
    parser.add_argument("--batch-size", type=int, default=4, help="rows of a step (default 4)")
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sweep-bench-") as name:
        scratch = Path(name)
        make_base(SHAPES[args.shape], scratch / "base")
        recipe = scratch / "lora.yaml"
        recipe.write_text(yaml.safe_dump(torchtune_config(args, scratch / "base", scratch / "output")))
        job = Job(
            overrides=(
                "recipe=torchtune",
                f"recipe.config={recipe}",
                "space.model.lora_rank=choice(8, 16, 32, 64)",
                "space.optimizer.lr=tag(log, interval(2e-5, 3e-3))",
                *args.set,
            ),
            trials=args.trials,
            workers=args.workers,
            milestones=2,
            scratch=scratch,
            gpus=args.device.startswith("cuda"),
            ray_python=args.ray_python,
        )
        return measure(job, wanted_arms(args), args)


if __name__ == "__main__":
    sys.exit(main())
