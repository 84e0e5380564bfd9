"""What the trainer counts before a sweep, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import embedded_config
from tests.helpers.waiting import until
from trainer.entry.probe import answer, ends_with_parent


def asked(**changes: Any) -> dict[str, Any]:
    return asked_of(embedded_config(**changes))


def asked_of(config: Mapping[str, Any], *cases: Mapping[str, Any], here: bool = True) -> dict[str, Any]:
    request = {"config": config, "components": [], "cases": cases, "device_here": here, "speed": False}
    read: dict[str, Any] = json.loads(answer(request))
    return read


def test_rows_and_label_tokens_are_counted() -> None:
    counted = asked()
    assert counted["rows"] == counted["trial_rows"] > 0
    assert counted["trial_tokens"] > counted["rows"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"batch_size": 4000}, "trains zero steps"),
        ({"dataset__data_files": "/nowhere.jsonl"}, "/nowhere.jsonl"),
        ({"tokenizer__max_seq_len": 4}, "has a label token, so that there is nothing to learn"),
        ({"optimizer___component_": "torch.optim.AdamWW"}, "did you mean AdamW?"),
    ],
)
def test_a_configuration_that_cannot_train_is_refused(changes: dict[str, Any], complaint: str) -> None:
    refused = asked(**changes)
    assert complaint in refused["error"]
    assert "untrusted" not in refused


def test_code_that_is_not_trusted_is_told_from_other_faults(tmp_path: Path) -> None:
    refused = asked(dataset___component_="torchtune.modules.early_exit_loss.np.load")
    assert refused["untrusted"]
    assert "numpy defines" in refused["error"]


PROFILER = {"_component_": "torchtune.training.setup_torch_profiler"}
WITHOUT_ARGUMENTS = {"_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup"}


@pytest.mark.parametrize(
    ("changes", "complaints"),
    [
        ({"optimizer__foo": 1}, ["optimizer.foo=1 is no argument of torch.optim.AdamW", "foreach"]),
        ({"optimizer__lr": "fast"}, ["optimizer.lr='fast' must be a number"]),
        ({"profiler": PROFILER | {"foo": 1}}, ["profiler.foo=1 is no argument of torchtune.training.setup_torch"]),
        ({"profiler": PROFILER | {"enabled": "no"}}, ["profiler.enabled='no' must be true or false"]),
        (
            {"metric_logger": {"_component_": "torchtune.training.metric_logging.NoLogger"}},
            ["torchtune.training.metric_logging", "NoLogger"],
        ),
        ({"optimizer__betas": 0.9}, ["optimizer (torch.optim.AdamW): it cannot be built"]),
        ({"lr_scheduler": WITHOUT_ARGUMENTS}, ["lr_scheduler lacks num_warmup_steps"]),
        (
            {"lr_scheduler___component_": "torch.optim.lr_scheduler.CosineAnnealingLR"},
            ["lr_scheduler.num_warmup_steps=5 is no argument of torch.optim.lr_scheduler.CosineAnnealingLR", "T_max"],
        ),
        (
            {"lr_scheduler": {"_component_": "torch.optim.lr_scheduler.LinearLR"}},
            ["lr_scheduler", "num_training_steps"],
        ),
        (
            {"optimizer___component_": "bitsandbytes.optim.PagedAdamW8bit"},
            ["there is no module bitsandbytes"],
        ),
        ({"loss___component_": "torchtune.modules.loss.ForwardKLLoss"}, ["does not take logits and labels alone"]),
        ({"loss": {"_component_": "torch.nn.MSELoss"}}, ["loss._component_=torch.nn.MSELoss has no ignore_index"]),
        (
            {"loss": {"_component_": "torch.nn.CrossEntropyLoss", "reduction": "none"}},
            ["loss._component_=torch.nn.CrossEntropyLoss gives no single number"],
        ),
        ({"checkpointer__checkpoint_dir": "/nowhere"}, ["checkpointer.checkpoint_dir=/nowhere is no directory"]),
        ({"checkpointer__checkpoint_files": ["a.safetensors"]}, ["lacks a.safetensors"]),
        ({"checkpointer__model_type": "llama3"}, ["checkpointer.model_type=llama3 must be GEMMA"]),
        (
            {"checkpointer___component_": "torchtune.training.FullModelMetaCheckpointer"},
            ["checkpointer", "unexpected key"],
        ),
        ({"model__num_layers": 4}, ["checkpointer", "layers.3"]),
        ({"model__embed_dim": 64}, ["does not fit model._component_=", "size mismatch for tok_embeddings.weight"]),
        ({"model__lora_attn_modules": ["q_proj", "o_proj"]}, ["model.lora_attn_modules", "output_proj"]),
        ({"model__lora_rnk": 4}, ["model.lora_rnk=4 is no argument", "did you mean lora_rank?"]),
        ({"tokenizer__path": "/nowhere"}, ["tokenizer (torchtune.models.llama3.llama3_tokenizer)", "/nowhere"]),
        ({"tokenizer__max_seq_len": "32"}, ["tokenizer.max_seq_len='32' must be a whole number", "remove its quotes"]),
        ({"dataset__split": "train[:0]"}, ["dataset cannot be built"]),
        ({"dataset__split": "nope"}, ["dataset cannot be built", "nope"]),
        ({"model__max_seq_len": 16}, ["the model takes 16 at most; set tokenizer.max_seq_len=16"]),
        ({"collate_fn": "torchtune.data.padded_collate_dpo"}, ["collate_fn: it cannot be built"]),
        ({"device": "cuda:1"}, ["device=cuda:1", "which has 0 CUDA devices"]),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_what_no_trial_could_build_is_named_with_its_key(changes: dict[str, Any], complaints: list[str]) -> None:
    refused = asked(**changes)
    assert all(complaint in refused.get("error", "") for complaint in complaints), refused
    assert "\n" not in refused["error"]


def test_a_base_that_only_other_machines_have_is_left_to_the_first_trial() -> None:
    config = embedded_config(checkpointer__checkpoint_dir="/nowhere")
    counted = asked_of(config, here=False)
    assert counted["base_elsewhere"]
    assert counted["rows"] > 0
    assert counted["notes"] == [
        "checkpointer.checkpoint_dir=/nowhere is not on this machine; the first trial checks it, alone"
    ]
    assert not asked()["base_elsewhere"]


def test_a_device_of_other_machines_is_not_asked_of_this_one() -> None:
    assert asked_of(embedded_config(device="cuda:1"), here=False)["rows"] > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"model__use_dora": True},
        {"model__quantize_base": True, "model__embed_dim": 128},
        {"model__apply_lora_to_output": True},
        {"dtype": "bf16"},
        {"enable_activation_checkpointing": True},
        {"compile": True},
        {"dataset__packed": True},
        {"optimizer": {"_component_": "torch.optim.SGD", "lr": 0.1}},
        {"loss": {"_component_": "torch.nn.CrossEntropyLoss"}},
        {"clip_grad_norm": None, "max_steps_per_epoch": 2},
    ],
    ids=str,
)
def test_what_can_be_built_passes(changes: dict[str, Any]) -> None:
    assert asked(**changes).get("rows", 0) > 0, asked(**changes)


def test_a_value_that_only_some_trials_have_is_named() -> None:
    config = embedded_config()
    wrong = {
        "params": {"model.lora_attn_modules": ["o_proj"]},
        "config": embedded_config(model__lora_attn_modules=["o_proj"]),
    }
    sound = {"params": {"model.lora_rank": 2}, "config": embedded_config(model__lora_rank=2)}
    assert asked_of(config, sound)["rows"] > 0
    refused = asked_of(config, sound, wrong)
    assert refused["error"].endswith('(in a trial with model.lora_attn_modules=["o_proj"])')


def test_a_trial_that_would_train_no_step_is_named() -> None:
    wrong = {"params": {"batch_size": 4000}, "config": embedded_config(batch_size=4000)}
    assert "trains zero steps" in asked_of(embedded_config(), wrong)["error"]


GOOD: dict[str, Any] = {"instruction": "Add 1 and 2.", "input": "", "output": "3"}


def rows_file(folder: Path, *rows: Any) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


CHAT = {
    "_component_": "torchtune.datasets.chat_dataset",
    "source": "json",
    "conversation_column": "messages",
    "conversation_style": "openai",
    "split": "train",
}


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_that_cannot_be_used_is_named_by_its_number(tmp_path: Path, packed: bool) -> None:
    rows = [dict(GOOD) for _ in range(600)]
    rows[333]["output"] = None  # which the sample of every second row would not have seen
    refused = asked(dataset__data_files=rows_file(tmp_path, *rows), dataset__split="train", dataset__packed=packed)
    assert "dataset: row 333 cannot be used: " in refused["error"], refused


def test_a_chat_that_the_assistant_begins_is_named(tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}]}
    path = rows_file(tmp_path, *[good] * 5, {"messages": list(reversed(good["messages"]))}, *[good] * 5)
    refused = asked(dataset={**CHAT, "data_files": path})
    assert "dataset: row 5 cannot be used: ValueError: " in refused["error"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("", "dataset cannot be built"), ('{"instruction": "x"\n', "dataset cannot be built"), ("7\n8\n", "dataset")],
    ids=["an empty file", "a torn line", "numbers"],
)
def test_a_file_without_usable_rows_is_one_sentence(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    refused = asked(dataset__data_files=str(path), dataset__split="train")
    assert complaint in refused["error"]
    assert "An error occurred" not in refused["error"] or "cause" in refused["error"]


def test_rows_whose_prompt_fills_the_limit_are_counted_and_named(tmp_path: Path) -> None:
    long = {**GOOD, "instruction": "Add one and two and three and four. " * 20}
    path = rows_file(tmp_path, *[GOOD] * 20, long, *[GOOD] * 20)
    counted = asked(dataset__data_files=path, dataset__split="train", tokenizer__max_seq_len=64)
    assert counted["notes"] == [
        "dataset: 1 of 41 rows that were looked at have no label token (row 20), as their prompts fill "
        "tokenizer.max_seq_len; such a row weighs nothing"
    ]
    assert counted["rows"] == 41


COUNT = """
import os, sys, time
from trainer.entry.probe import ends_with_parent
if os.fork():
    time.sleep(600)
with ends_with_parent(0.02):
    print(os.getpid(), flush=True)
    time.sleep(600)
"""


def test_counting_ends_when_the_process_that_asked_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-P", "-c", COUNT], stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        counting = Path("/proc") / asking.stdout.readline().strip()
        assert counting.exists()
        asking.kill()
        until(lambda: not counting.exists() or "Z" in (counting / "stat").read_text().split()[2])


def test_counting_goes_on_beside_its_parent() -> None:
    before = threading.active_count()
    with ends_with_parent(0.01):
        time.sleep(0.05)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before, "a process that forks afterwards has no further thread"
