"""What every `Backend` must keep, over all of them and the one of docs/queues.md."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweep.config.queues import Queue, queue_kinds, section_class
from sweep.config.settings import Settings, read_queue, settings_from_json
from sweep.controller.ports import WorkerSpec
from sweep.model.identifiers import AttemptId
from sweep.queues import Backend, backend
from sweep.wiring.compose import compose_config, freeze
from tests.helpers.own_queue import install_own_queue
from tests.helpers.tables import write_table
from trainer.room import Room

WORDS = {
    "local": ("queue=local", "queue.workers=3", "wandb=offline"),
    "slurm": ("queue=slurm_cpu", "queue.workers=3", "wandb=offline"),
    "launch": ("queue=launch_local_process", "queue.workers=3", "wandb.entity=team"),
    "launch over W&B": ("queue=launch_local_process", "queue.workers=3", "wandb.entity=team", "queue.channel=wandb"),
    "simulated": ("queue=simulated", "queue.table={table}", "queue.workers=3", "objective=loss", "pruner=asha"),
    "wrapped": ("queue=nice", "queue.workers=3", "wandb=offline"),
}
SPACE = (
    "space.optimizer.lr=tag(log,interval(1e-4,1e-2))",
    "space.gradient_accumulation_steps=null",
    "space.model.lora_rank=null",
    "derive.model.lora_alpha=null",
)


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of configuration groups with the document's queue, which this process finds."""
    with pytest.MonkeyPatch.context() as patched:
        yield install_own_queue(tmp_path_factory.mktemp("own") / "conf", patched)


@pytest.fixture(params=list(WORDS), scope="module")
def settings(request: pytest.FixtureRequest, conf: Path) -> Settings:
    """Of a sweep on each kind of queue."""
    words = [word.format(table=conf / "curves.npz") for word in WORDS[request.param]]
    if request.param == "simulated":
        write_table(conf / "curves.npz")
        words += SPACE
    return freeze(compose_config(words, conf), "s", conf).settings


@pytest.fixture(autouse=True)
def nothing_can_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a scheduler nor W&B."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "nice").symlink_to("/usr/bin/nice")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


@pytest.fixture
def tested(settings: Settings) -> Backend:
    return backend(settings.queue.kind)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    created = Room(tmp_path / "room")
    created.root.mkdir()
    return created


def test_every_kind_is_under_contract(conf: Path) -> None:
    assert {name.partition(" ")[0] for name in WORDS} == set(queue_kinds())


def test_the_section_is_of_its_kind_and_survives_the_room(settings: Settings, tested: Backend) -> None:
    assert section_class(settings.queue.kind) is tested.section is type(settings.queue)
    assert isinstance(settings.queue, Queue)
    raw = json.loads(json.dumps(settings.to_json()))
    assert settings_from_json(raw, "sweep.json").queue == settings.queue
    assert read_queue(dataclasses.asdict(settings.queue)) == settings.queue


def test_every_range_is_of_a_key(tested: Backend) -> None:
    assert set(tested.section.RANGES) <= {field.name for field in dataclasses.fields(tested.section)}
    assert set(Queue.RANGES) <= set(tested.section.RANGES)


def test_opening_starts_nothing_writes_nothing_and_asks_nobody(settings: Settings, tested: Backend, room: Room) -> None:
    queue = tested.open(room, settings)
    assert queue.dispatcher.poll() == {}
    assert queue.channel.observe([], []) == ({}, {})
    assert list(room.root.iterdir()) == []


def test_a_preview_names_the_worker_and_starts_nothing(settings: Settings, tested: Backend, room: Room) -> None:
    dispatcher = tested.open(room, settings).dispatcher
    assert "w0001" in dispatcher.preview([WorkerSpec("w0001", 0)])
    assert dispatcher.poll() == {}
    assert list(room.root.iterdir()) == []


def test_a_viewer_shows_the_workers_and_never_fails(settings: Settings, tested: Backend, room: Room) -> None:
    """Of a sweep whose queue cannot be reached."""
    assert tested.viewer(room, settings)() == {}
    if settings.queue.simulated:
        return  # its workers are in no file
    room.worker("w0001").path.mkdir(parents=True)
    room.worker("w0001").job.write_text(json.dumps({"place": 2, "name": "s-w0001", "index": 0}))
    files = {path: path.read_bytes() for path in room.root.rglob("*") if path.is_file()}
    jobs = tested.viewer(room, settings)()
    assert {name: job.place for name, job in jobs.items()} == {"w0001": 2}
    assert {path: path.read_bytes() for path in room.root.rglob("*") if path.is_file()} == files


def test_what_changes_as_a_job_ends_does_not_repeat_itself(settings: Settings, tested: Backend, room: Room) -> None:
    """Or, where nothing is known of that, each value is another."""
    ended = tested.open(room, settings).ended
    first, second = ended(), ended()
    assert (first == second) == isinstance(first, int)


def test_settings_that_fit_are_accepted_and_frozen_as_they_are(settings: Settings, tested: Backend) -> None:
    tested.check(settings)
    assert tested.freeze(settings) == settings


def test_it_counts_its_workers(settings: Settings, tested: Backend) -> None:
    assert (tested.worker_count(settings), tested.on_gpu(settings)) == (3, False)


def test_no_process_is_forked_before_it_is_needed(settings: Settings, tested: Backend) -> None:
    prefork = tested.prefork(settings)
    assert prefork._processes == []
    prefork.close()


def test_a_queue_for_evaluations_has_one_worker_with_one_slot(settings: Settings) -> None:
    queue = settings.queue.for_evaluations("s")
    assert (type(queue), queue.workers, queue.slots) == (type(settings.queue), 1, 1)
    assert read_queue(dataclasses.asdict(queue)) == queue
    assert queue.threads == (1 if queue.on_this_machine else settings.queue.threads)


def test_doctor_lists_its_checks_without_making_one(settings: Settings, tested: Backend, tmp_path: Path) -> None:
    checks = tested.doctor(settings, tmp_path / "rooms")
    assert len({name for name, _ in checks}) == len(checks)
    assert all(callable(check) for _, check in checks)
    assert not (tmp_path / "rooms").exists()


def test_a_controller_that_was_never_a_job(settings: Settings, tested: Backend, room: Room) -> None:
    job = tested.controller_job(room, settings, print)
    if job is not None:
        assert (job.status(), job.cancel(), job.log(), job.replaced_by()) == ("", "", None, "")
    assert list(room.root.iterdir()) == []


def test_only_a_simulation_has_recorded_trials_and_a_clock(settings: Settings, tested: Backend, room: Room) -> None:
    simulated = settings.queue.simulated
    recording, build = tested.recording(settings.queue), tested.spec_builder(settings)
    assert [part is not None for part in (recording, build, tested.seconds(room))] == [simulated] * 3
    assert (tested.open(room, settings).clock is not None) == simulated
    if recording is not None and build is not None:
        assert (settings.objective.milestones, settings.trial_tokens) == (recording.milestones, recording.trial_tokens)
        spec = build(AttemptId(3, 2, "w0007"), {"optimizer.lr": 1e-3}, final_seed=5)
        assert (spec.trial, spec.attempt, spec.worker) == (3, 2, "w0007")
        assert (spec.config["optimizer.lr"], spec.config["seed"]) == (1e-3, 5)
