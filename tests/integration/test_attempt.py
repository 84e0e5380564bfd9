"""Every way an attempt can end becomes one outcome with a reason a person can act on."""

from __future__ import annotations

import errno
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from omegaconf import OmegaConf
from torch._dynamo.utils import counters

from tests.conftest import embedded_config
from tests.helpers.attempts import reports, run, spec, steps, stop_after
from trainer import checkpoint, space
from trainer.base import Cache
from trainer.contract import (
    FailureKind,
    Guard,
    Outcome,
    OutcomeKind,
    StopCause,
    TrialSpec,
    decode,
    encode,
)
from trainer.recipe import LoraRecipe
from trainer.reporter import RoomReporter
from trainer.room import Room, write_atomic
from trainer.worker import Worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache() -> Cache:
    return Cache()


def test_completed(cache: Cache, tmp_path: Path) -> None:
    room = Room(tmp_path)
    outcome = run(room, cache, spec())
    assert (outcome.kind, outcome.step, outcome.adapter) == (OutcomeKind.COMPLETED, 12, "adapter")
    seen = reports(room)
    assert [report.milestone for report in seen] == [1, 2, 3, 4]
    assert [report.final for report in seen] == [False, False, False, True]
    assert all(report.tokens >= 180 * report.milestone for report in seen[:-1])
    assert seen[-1].val_loss is not None
    assert seen[-1].val_loss < 4.0, "it learns"
    assert all(report.tokens_per_second > 0 and report.lr >= 0 and report.epoch == 0 for report in seen)
    weighted = sum(
        step.loss * (step.tokens - before)
        for step, before in zip(steps(room), [0, *(s.tokens for s in steps(room))], strict=False)
    )
    by_reports = sum(
        r.loss * (r.tokens - before) for r, before in zip(seen, [0, *(r.tokens for r in seen)], strict=False)
    )
    assert by_reports == pytest.approx(weighted, rel=1e-5), "a report's loss is the mean over its milestone"
    assert not (room.attempt(0, 1).path / "scratch").exists()


@pytest.mark.parametrize("cause", [StopCause.PRUNED, StopCause.INTERRUPTED])
def test_stopped(cause: StopCause, cache: Cache, tmp_path: Path) -> None:
    room = Room(tmp_path)
    outcome = run(room, cache, spec(), stop_after(5, cause))
    assert (outcome.kind, outcome.cause, outcome.reason, outcome.step) == (OutcomeKind.STOPPED, cause, "enough", 6)
    assert room.attempt(0, 1).checkpoint.exists() == cause.resumable


def test_an_interrupted_trial_goes_on_with_the_same_numbers(cache: Cache, tmp_path: Path) -> None:
    whole, halves = Room(tmp_path / "whole"), Room(tmp_path / "halves")
    run(whole, cache, spec(gradient_accumulation_steps=3))
    run(halves, cache, spec(gradient_accumulation_steps=3), stop_after(6, StopCause.INTERRUPTED))
    outcome = run(halves, cache, spec(2, gradient_accumulation_steps=3))
    assert outcome.resumed_from == 1
    assert steps(halves) + steps(halves, 2) == steps(whole)
    numbers = [(r.milestone, r.tokens, r.loss, r.val_loss) for r in reports(halves) + reports(halves, 2)]
    assert numbers == [(r.milestone, r.tokens, r.loss, r.val_loss) for r in reports(whole)]


def test_an_unreadable_checkpoint_is_skipped_with_a_word(cache: Cache, tmp_path: Path) -> None:
    room = Room(tmp_path)
    run(room, cache, spec(), stop_after(5, StopCause.INTERRUPTED))
    run(room, cache, spec(2), stop_after(2, StopCause.INTERRUPTED))
    room.attempt(0, 2).checkpoint.write_bytes(b"torn")
    outcome = run(room, cache, spec(3))
    assert (outcome.kind, outcome.resumed_from) == (OutcomeKind.COMPLETED, 1)
    assert "attempt 2's checkpoint is unreadable and was skipped" in outcome.reason


@pytest.mark.parametrize(
    ("changes", "guard", "reason"),
    [
        ({"optimizer__lr": 1e30, "clip_grad_norm": None}, Guard(), r"(loss|grad_norm) is (nan|inf)"),
        ({"optimizer__lr": 3.0}, Guard(loss_ratio=1.2), r"loss [\d.]+ is over 1.2 times its start of"),
        ({"optimizer__lr": 1.0}, Guard(grad_norm_ratio=5), r"grad_norm 27.* at step 3 is over 5 times its usual 3.5"),
    ],
)
def test_diverged(changes: dict[str, Any], guard: Guard, reason: str, cache: Cache, tmp_path: Path) -> None:
    import re

    room = Room(tmp_path)
    outcome = run(room, cache, replace(spec(**changes), guard=guard))
    assert outcome.kind is OutcomeKind.DIVERGED
    assert re.search(reason, outcome.reason), outcome.reason
    assert all(torch.isfinite(torch.tensor([r.loss, r.val_loss or 0.0])).all() for r in reports(room))


@pytest.mark.parametrize(
    ("changes", "failure", "words"),
    [
        ({"dataset__data_files": "/nowhere/train.jsonl"}, FailureKind.MISSING_FILE, "/nowhere/train.jsonl"),
        ({"checkpointer__checkpoint_dir": "/nowhere"}, FailureKind.MISSING_FILE, "/nowhere"),
        ({"model___component_": "os.system"}, FailureKind.BAD_CONFIG, "model._component_=os.system is not among"),
        ({"batch_size": 4000}, FailureKind.BAD_CONFIG, "trains zero steps"),
        ({"gradient_accumulation_steps": 13}, FailureKind.BAD_CONFIG, "trains zero steps"),
        ({"dtype": "fp16"}, FailureKind.BAD_CONFIG, "use bf16 or fp32"),
        ({"optimizer__no_such_option": 1}, FailureKind.BAD_CONFIG, "no_such_option"),
    ],
)
def test_failed(changes: dict[str, Any], failure: FailureKind, words: str, tmp_path: Path) -> None:
    outcome = run(Room(tmp_path), Cache(), spec(**changes))
    assert (outcome.kind, outcome.failure) == (OutcomeKind.FAILED, failure), outcome
    assert words in outcome.reason


def test_out_of_memory_fails_the_trial_and_not_the_worker(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patched:
        patched.setattr(LoraRecipe, "_micro_batch", explode)
        outcome = run(Room(tmp_path / "a"), cache, spec())
    assert (outcome.kind, outcome.failure) == (OutcomeKind.FAILED, FailureKind.OUT_OF_MEMORY)
    assert "Tried to allocate 2.00 GiB" in outcome.reason
    assert run(Room(tmp_path / "b"), cache, spec()).kind is OutcomeKind.COMPLETED


@pytest.mark.parametrize("what", ["checkpoint", "report"])
def test_a_full_disk_fails_the_trial_with_that_reason(
    what: str, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if what == "checkpoint":
        monkeypatch.setattr(checkpoint, "save", full)
    else:
        monkeypatch.setattr(RoomReporter, "report", full)
    outcome = run(Room(tmp_path), cache, spec())
    assert (outcome.kind, outcome.failure) == (OutcomeKind.FAILED, FailureKind.NO_SPACE)
    assert "No space left on device" in outcome.reason


def test_a_checkpoint_waits_for_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def full_twice(path: Path, data: bytes, root: Path) -> None:
        tries.append(len(data))
        if len(tries) < 3:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        write_atomic(path, data, root=root)

    monkeypatch.setattr(checkpoint, "write_atomic", full_twice)
    monkeypatch.setattr(space, "RETRY_SECONDS", 0.0)
    state: dict[str, object] = {part: {} for part in checkpoint.PARTS}
    checkpoint.save(tmp_path / "checkpoint.pt", state)
    assert len(tries) == 3
    assert checkpoint.load(tmp_path / "checkpoint.pt")["guard"] == {}
    tries.clear()
    monkeypatch.setattr(space, "SPACE_SECONDS", -1.0)
    with pytest.raises(OSError, match="quota"):
        checkpoint.save(tmp_path / "checkpoint.pt", state)


@pytest.mark.parametrize("saved_by", ["this version", "version 0.2"])
def test_an_attempt_with_nothing_left_to_train_makes_the_final_report_again(
    cache: Cache, tmp_path: Path, saved_by: str
) -> None:
    """The first one has lost its outcome, and with it the end of its reports if the checkpoint has the final one."""
    room = Room(tmp_path)
    run(room, cache, spec())
    whole, first = reports(room), room.attempt(0, 1)
    first.outcome.unlink(missing_ok=True)
    if saved_by == "this version":
        first.reports.write_text("".join(f"{encode(report)}\n" for report in whole[:-1]))
    else:
        state = checkpoint.load(first.checkpoint)
        del state["final"]
        checkpoint.save(first.checkpoint, state)
    outcome = run(room, cache, spec(2))
    assert (outcome.kind, outcome.resumed_from, outcome.step) == (OutcomeKind.COMPLETED, 1, 12)
    (again,) = reports(room, 2)
    assert replace(again, seconds=0.0) == replace(whole[-1], seconds=0.0)
    assert again.seconds <= outcome.seconds, "the seconds of the first attempt are not counted twice"
    assert steps(room, 2) == []


def test_an_end_whose_report_nobody_has_is_trained_again(cache: Cache, tmp_path: Path) -> None:
    """A checkpoint of version 0.2 whose final report is lost: the earlier attempts have none either."""
    room = Room(tmp_path)
    run(room, cache, spec())
    whole, first = reports(room), room.attempt(0, 1)
    first.reports.write_text("".join(f"{encode(report)}\n" for report in whole[:-1]))
    state = checkpoint.load(first.checkpoint)
    del state["final"]
    checkpoint.save(first.checkpoint, state)
    outcome = run(room, cache, spec(2))
    assert (outcome.kind, outcome.resumed_from, outcome.step) == (OutcomeKind.COMPLETED, None, 12)
    assert "the final report before it is lost" in outcome.reason
    assert [report.val_loss for report in reports(room, 2)] == [report.val_loss for report in whole]


def test_what_is_durable_is_so_before_what_follows_from_it(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Report, then its checkpoint; adapter, steps and reports, then the outcome; each file before its name."""
    room, names, fsync, replace_file = Room(tmp_path), [], os.fsync, Path.replace

    def synced(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        names.append(re.sub(r"\.[0-9a-f]{16}$", ".scratch", name))
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        names.append(f"→ {target.name}")
        return replace_file(path, target)

    write_atomic(room.attempt(0, 1).spec, encode(spec()))
    room.worker("w0001").assign(0, 1)
    write_atomic(room.worker("w0001").drain, "")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    Worker(room, "w0001", _cache=cache).run()
    durable = [name for name in names if "beat" not in name and "torchtune" not in name]
    scratch = ".checkpoint.pt.scratch"
    milestone = ["reports.jsonl", scratch, "→ checkpoint.pt", "1"]
    adapter = sorted(path.name for path in room.attempt(0, 1).adapter.iterdir())
    end = durable[3 * len(milestone) :]
    assert durable[: 3 * len(milestone)] == milestone * 3
    assert end[0] == "reports.jsonl"
    assert sorted(end[1 : 1 + len(adapter)]) == adapter
    assert end[1 + len(adapter) :] == [
        *("adapter", "1", scratch, "→ checkpoint.pt", "1", "steps.jsonl"),
        *(".outcome.json.scratch", "→ outcome.json", "1"),
    ]


def test_a_fenced_attempt_ends_and_keeps_nothing(cache: Cache, tmp_path: Path) -> None:
    """A newer attempt has taken over while this one, taken for lost, trained on."""
    room = Room(tmp_path)
    task = room.worker("w0001")
    write_atomic(room.attempt(0, 1).spec, encode(spec()))
    task.assign(0, 1)
    write_atomic(room.attempt(0, 1).fence, "0")
    write_atomic(task.drain, "")
    assert Worker(room, "w0001", _cache=cache).run() == "it was drained"
    outcome = decode(Outcome, room.attempt(0, 1).outcome.read_text())
    assert (outcome.cause, outcome.reason) == (StopCause.CANCELLED, "a newer attempt has replaced this one")
    assert not room.attempt(0, 1).checkpoint.exists()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts the graphs of torch.compile, which are only traced; its limits are those of a fresh process."""
    monkeypatch.setenv("TORCH_COMPILE_BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(cache_size_limit=8, accumulated_cache_size_limit=256):
        yield counters["stats"]
    torch._dynamo.reset()


def test_every_rank_is_compiled_in_a_warm_worker_and_an_equal_one_is_not_again(
    compiled: Counter[str], tmp_path: Path
) -> None:
    cache, graphs = Cache(), list[int]()
    for number, rank in enumerate((2, 4, 6, 8, 10, 12, 2, 10)):
        wanted = spec(compile=True, model__lora_rank=rank, dataset__split="train[:8]", dataset_val__split="train[:4]")
        before = compiled["unique_graphs"]
        assert run(Room(tmp_path / str(number)), cache, wanted).kind is OutcomeKind.COMPLETED
        graphs.append(compiled["unique_graphs"] - before)
    assert min(graphs[1:6]) == max(graphs[1:6]) > 0
    assert graphs[6:] == [0, 0]
    assert counters["frames"]["total"] == counters["frames"]["ok"], "none fell to eager"


def test_the_adapter_loads_with_peft_and_gives_the_trained_loss(cache: Cache, tmp_path: Path) -> None:
    """PEFT on transformers' own Llama, against the validation loss that the trial reported."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    room = Room(tmp_path)
    wanted = spec(optimizer__lr=2e-2)
    run(room, cache, wanted)
    adapter = room.attempt(0, 1).adapter
    described = json.loads((adapter / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"], described["peft_type"]) == (8, 16, "LORA")
    base = AutoModelForCausalLM.from_pretrained(described["base_model_name_or_path"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    total = tokens = 0.0
    for batch in validation_batches(wanted):
        with torch.no_grad():
            logits = model(input_ids=batch["tokens"]).logits[:, :-1].flatten(0, 1)
        labels = batch["labels"][:, 1:].flatten()
        total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        tokens += float((labels != -100).sum())
    reported = reports(room)[-1].val_loss
    assert total / tokens == pytest.approx(reported, rel=1e-4)
    untrained = 4.5
    assert reported is not None and reported < untrained - 0.3, "the adapter did something"


def validation_batches(wanted: TrialSpec) -> list[dict[str, torch.Tensor]]:
    from omegaconf import OmegaConf
    from torchtune import config
    from torchtune.data import padded_collate_sft

    cfg = OmegaConf.create(dict(wanted.config))
    tokenizer = config.instantiate(cfg.tokenizer)
    data = config.instantiate(cfg.dataset_val, tokenizer)
    return [padded_collate_sft([data[i]], padding_idx=tokenizer.pad_id, ignore_idx=-100) for i in range(len(data))]


def test_an_adapter_is_no_pickle_whatever_the_checkpointer_says(tmp_path: Path) -> None:
    """torchtune would write PEFT's form as `adapter_model.bin`, which no reader of a room opens."""
    config = OmegaConf.create(embedded_config(**{"checkpointer.safe_serialization": False}))
    recipe = LoraRecipe(config, Cache(), tmp_path / "scratch")
    assert recipe.save_adapter(tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert config.checkpointer.safe_serialization is False


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"enable_activation_offloading": True}, "needs device=cuda, and this is cpu"),
        ({"dtype": "fp16"}, "dtype=fp16 is not supported"),
    ],
)
def test_what_torchtune_refuses_is_refused(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        LoraRecipe(OmegaConf.create(embedded_config(**changes)), Cache(), tmp_path)
