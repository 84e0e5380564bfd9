"""Whole sweeps through the command line: real training, real workers, real torchtune at the end."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from sweep.report.reader import read_outcome, read_steps
from tests.helpers.cli import SMALL, outline, start, status, sweep
from tests.helpers.waiting import until
from trainer.room import Room, held, read_text

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]


def reported(room: Room, count: int) -> bool:
    files = room.root.glob("trials/*/*/reports.jsonl")
    return sum(len(path.read_text().splitlines()) for path in files) >= count


def no_worker_lives(room: Room) -> bool:
    return not any(held(room.worker(name).lock) for name in room.workers())


def test_one_worker_and_a_seed_give_the_same_sweep_warm_or_with_a_process_for_each_trial(rooms: Path) -> None:
    sweep("run", *SMALL, "queue.workers=1", "name=warm")
    sweep("run", *SMALL, "queue.workers=1", "name=cold", "queue.trials_per_worker=1")
    warm, cold = outline("warm"), outline("cold")
    assert [row[:3] for row in warm] == [row[:3] for row in cold]
    for ours, theirs in zip(warm, cold, strict=True):
        shorter = min(len(ours[4]), len(theirs[4]))  # a stop may arrive a milestone sooner or later
        assert ours[4][:shorter] == theirs[4][:shorter]
    assert len(Room(rooms / "cold").workers()) == 4
    assert len(Room(rooms / "warm").workers()) == 1


def test_ctrl_c_once_detaches_and_resume_goes_on(rooms: Path, tmp_path: Path) -> None:
    run = start("run", *SMALL, "name=c", "pruner=none", "search.trials=8", log=tmp_path / "log")
    room = Room(rooms / "c")
    until(lambda: any(room.root.glob("workers/*")), run)  # which still import torch while the second looks
    second = sweep("resume", "c", code=1)
    assert "another controller runs c already" in second.stderr
    until(lambda: reported(room, 1), run)
    run.send_signal(signal.SIGINT)
    assert run.wait(600) == 130
    assert "detached: running trials go on by themselves" in (tmp_path / "log").read_text()
    until(lambda: no_worker_lives(room))
    outcomes = [read_outcome(room, number) for number in room.trials()]
    assert all(outcome is not None and outcome.kind == "completed" for outcome in outcomes), "they went on to their end"
    sweep("resume", "c")
    assert [row["state"] for row in status("c")["rows"]] == ["complete"] * 8


def test_ctrl_c_twice_stops_with_a_checkpoint_and_the_numbers_stay_the_same(rooms: Path, tmp_path: Path) -> None:
    words = (*SMALL, "queue.workers=1", "pruner=none", "search.trials=1", "recipe.overrides.dataset.split=train[:256]")
    run = start("run", *words, "name=broken", log=tmp_path / "log")
    room = Room(rooms / "broken")
    until(lambda: reported(room, 1), run)
    run.send_signal(signal.SIGINT)
    time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    assert run.wait(600) == 130
    until(lambda: no_worker_lives(room))
    assert [row["state"] for row in status("broken")["rows"]] == ["waiting"]
    sweep("resume", "broken")
    sweep("run", *words, "name=whole")
    assert read_steps(room, 0) == read_steps(Room(rooms / "whole"), 0)
    assert status("broken")["rows"][0]["attempts"] == 2
    assert outline("broken") == outline("whole")


def test_a_killed_worker_s_trial_resumes_with_the_same_numbers(rooms: Path, tmp_path: Path) -> None:
    words = (*SMALL, "queue.workers=1", "pruner=none", "search.trials=1", "recipe.overrides.dataset.split=train[:256]")
    run = start("run", *words, "name=killed", log=tmp_path / "log")
    room = Room(rooms / "killed")
    until(lambda: reported(room, 2), run)
    os.kill(int((read_text(room.worker("w0001").lock) or "").split()[0]), signal.SIGKILL)
    assert run.wait(600) == 0
    sweep("run", *words, "name=whole")
    assert outline("killed") == outline("whole")
    assert read_steps(room, 0) == read_steps(Room(rooms / "whole"), 0)


def test_a_controller_killed_with_its_terminal_is_survived(rooms: Path, tmp_path: Path) -> None:
    run = start("run", *SMALL, "name=k", log=tmp_path / "log")
    room = Room(rooms / "k")
    until(lambda: reported(room, 1), run)
    run.kill()
    run.wait()
    sweep("resume", "k")
    assert len(status("k")["rows"]) == 4
    assert all(row["state"] in ("complete", "pruned") and row["attempts"] == 1 for row in status("k")["rows"])


def test_detached_watched_and_stopped_for_good(rooms: Path) -> None:
    said = sweep("run", *SMALL, "name=d", "--detach", "search.trials=50").stdout
    assert "d runs in the background" in said
    room = Room(rooms / "d")
    until(lambda: reported(room, 1))
    assert status("d")["controller"] is True
    sweep("stop", "d", "--cancel")
    until(lambda: no_worker_lives(room))
    found = status("d")
    assert found["controller"] is False
    assert {row["state"] for row in found["rows"]} <= {"complete", "pruned", "cancelled"}


WITH_LBFGS = ("recipe.overrides.optimizer._component_=torch.optim.LBFGS", "recipe.overrides.optimizer.fused=null")


def test_a_sweep_whose_first_trial_cannot_be_built_ends_and_says_why(rooms: Path) -> None:
    """Its data were not counted before, so that nothing was checked."""
    result = sweep("run", *SMALL, *WITH_LBFGS, "name=bad", "search.trials=20", "queue.workers=2", code=1)
    assert "the first trial cannot be built: TypeError: " in " ".join(result.stdout.split())
    rows = status("bad")["rows"]
    assert [row["state"] for row in rows] == ["failed"]
    assert "unexpected keyword" in rows[0]["reason"]


def test_what_no_trial_can_build_is_refused_before_a_room_is_made(rooms: Path) -> None:
    words = [word for word in SMALL if "milestone_tokens" not in word]
    refused = sweep("run", *words, *WITH_LBFGS, "name=bad", code=2).stderr
    assert "optimizer.fused=null is no argument of torch.optim.LBFGS" in refused
    assert not rooms.exists()


def test_a_conditional_space_trains_both_ways(rooms: Path) -> None:
    words = ("space=lora_optimizer", "space.gradient_accumulation_steps=null", "sampler=random", "search.trials=4")
    fused = "recipe.overrides.optimizer.fused=false"
    sweep("run", *SMALL, *words, fused, "name=cond", "derive.lr_scheduler.num_warmup_steps=null")
    rows = status("cond")["rows"]
    for row in rows:
        assert ("optimizer.momentum" in row["params"]) == row["params"]["optimizer._component_"].endswith("SGD")
        assert row["state"] in ("complete", "pruned"), row["reason"]
    assert len({row["params"]["optimizer._component_"] for row in rows}) == 2


@pytest.mark.shared
def test_the_pretrained_base_on_gsm8k(rooms: Path, shared_data: Path) -> None:
    words = (
        "experiment=gsm8k_base1m",
        f"recipe.overrides.root={shared_data}",
        "recipe.overrides.max_steps_per_epoch=8",
    )
    sweep("run", *words, "recipe.overrides.dataset_val.split=train[:16]", "search.trials=3", "name=gsm")
    assert "reproduced by tune run" in sweep("export", "gsm", "--verify").stdout


def test_a_plan_counts_measures_and_starts_nothing(rooms: Path) -> None:
    plan = json.loads(sweep("plan", *SMALL, "-n", "3", "--json").stdout)
    assert len(plan["samples"]) == 3
    assert all(sample["model.lora_alpha"] == 2 * sample["model.lora_rank"] for sample in plan["samples"])
    assert plan["data"]["trial_rows"] == 64
    assert plan["tokens"] == 4 * plan["data"]["trial_tokens"]
    assert plan["seconds"] > 0
    assert "trainer serve" in plan["queue"]["local"]
    elsewhere = ("plan", *SMALL, "recipe.overrides.checkpointer.checkpoint_dir=/nowhere", "--json")
    refused = sweep(*elsewhere, "objective.milestone_tokens=null", code=2)
    away = json.loads(refused.stdout)
    assert (away["data"], away["seconds"], away["refused"]) == (None, None, True)
    assert "checkpointer.checkpoint_dir=/nowhere is no directory" in away["unknown"]
    assert refused.stderr.startswith("sweep: sweep run refuses this configuration: the torchtune configuration cannot")
    away = json.loads(sweep(*elsewhere).stdout)
    assert (away["data"], away["refused"]) == (None, False), "the data may be on the queue's machines only"
    assert not rooms.exists()


def test_several_trials_in_one_worker(rooms: Path) -> None:
    """Packed on one base, pruned and refilled, by one process; the winner reproduces under `tune run`."""
    sweep("run", *SMALL, "name=packed", "queue.workers=1", "queue.slots=3", "search.trials=6")
    found = status("packed")
    assert {row["state"] for row in found["rows"]} <= {"complete", "pruned"}
    assert len(found["rows"]) == 6
    room = Room(rooms / "packed")
    assert len(room.workers()) == 1
    log = room.worker(room.workers()[0]).log.read_text()
    second, first_end = log.index("trial 1 attempt 1 starts"), log.index("trial 0 attempt 1 c")
    assert second < first_end, "they were trained side by side"
    assert "trains by itself" not in log
    assert "reproduced by tune run" in sweep("export", "packed", "--verify").stdout
