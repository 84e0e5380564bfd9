"""What version 0.1 wrote is read, exported and resumed: rooms, pickled jobs, and jobs pushed to W&B Launch.

`tests/rooms_of_0_1/README.md` says how each was made.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from submitit.core.utils import DelayedSubmission

from sweep.controller.ledger import RoomLedger
from sweep.controller.loop import Controller
from sweep.controller.ports import Ports
from sweep.model.identifiers import AttemptId
from sweep.model.states import Mode
from sweep.queues.launch import jobs as launch_jobs
from sweep.queues.local.dispatcher import LocalDispatcher
from sweep.resources import embedded_dir
from sweep.search.build import MOVED, build_pruner, build_sampler
from sweep.store.channel import open_store_channel
from sweep.store.remote import download
from sweep.wiring import session
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.rooms import controller_lock, load_settings
from sweep.wiring.simulate import Silent
from sweep.wiring.specifications import trial_spec
from tests.helpers.cli import sweep
from tests.helpers.stores import worker_command
from tests.helpers.warm import warm_processes
from trainer.contract import Outcome, OutcomeKind, TrialSpec, decode, encode
from trainer.entry.launch_job import read_job
from trainer.room import Room, hold, write_atomic

FIXTURES = Path(__file__).resolve().parents[1] / "rooms_of_0_1"
pytestmark = pytest.mark.usefixtures("warm")
BINARY = {".pt", ".safetensors", ".pkl", ".db"}
# What `sweep status` says since, of a room in which nothing is wrong.
SINCE = {"waits": "", "unseen": "", "unsure": "", "notes": [], "metrics": [], "base_scores": {}, "problems": []}
LIMITS_SINCE = {"first_alone": False, "needs_complete": True}
JOBS = ["trial_room", "trial_wandb", "warm_store", "warm_wandb", "controller_store"]


@pytest.fixture
def restore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Unpacks a fixture with this machine's paths, and makes its rooms those of the command line."""

    def unpack(name: str) -> Path:
        with tarfile.open(FIXTURES / f"{name}.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
        root = tmp_path / name
        monkeypatch.setenv("SWEEP_ROOMS", str(root / "rooms"))
        for path in root.rglob("*"):
            if path.is_file() and path.suffix not in BINARY:
                path.write_text(with_paths(path.read_text(encoding="utf-8"), root), encoding="utf-8")
        return root

    return unpack


def with_paths(text: str, root: Path) -> str:
    paths = {
        "@ROOT@": str(root / "rooms"),
        "@STORE@": str(root / "stores"),
        "@EMBEDDED@": str(embedded_dir()),
        "@PYTHON@": sys.executable,
    }
    for token, path in paths.items():
        text = text.replace(token, path)
    return text


def status(name: str) -> dict[str, Any]:
    """What `sweep status` says, without the seconds: these are the age of a file."""
    state: dict[str, Any] = json.loads(sweep("status", name, "--json").stdout)
    return {key: value for key, value in state.items() if key != "seconds"}


def then(root: Path, name: str) -> Any:
    said = json.loads((root / f"{name}.json").read_text())
    return {key: value for key, value in said.items() if key != "seconds"}


def as_now(written: dict[str, Any]) -> dict[str, Any]:
    """What `sweep status` of version 0.1 said, with what it says since."""
    objective = {"name": written["metric"], "direction": "minimize"}
    since = {**SINCE, "direction": "minimize", "objectives": [objective]}
    return {**written, **since, "limits": {**written["limits"], **LIMITS_SINCE}}


@pytest.mark.parametrize("name", ["finished", "halfway", "sqlite"])
def test_a_room_is_read_as_the_version_that_wrote_it_read_it(restore: Any, name: str) -> None:
    root = restore(name)
    written = then(root, "status")
    assert status(name) == as_now(written)
    objective = {"metric": written["metric"], "direction": "minimize", "metrics": {}, "base_scores": {}}
    assert json.loads(sweep("best", name, "--json").stdout) == {**then(root, "best"), **objective}
    assert sweep("export", name, "-o", "-").stdout == (root / "export.yaml").read_text()


def test_a_room_in_a_store_is_read_and_left_as_it_was(restore: Any) -> None:
    root = restore("store")
    url = f"file://{root}/stores/stored"
    before = {path: path.read_bytes() for path in (root / "stores").rglob("*") if path.is_file()}
    written = then(root, "status")
    assert status(url) == as_now(written)
    assert sweep("export", url, "-o", "-").stdout == (root / "export.yaml").read_text()
    assert {path: path.read_bytes() for path in (root / "stores").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_sweep_with_paused_trials_is_resumed_to_the_same_end(restore: Any) -> None:
    root = restore("halfway")
    sweep("resume", "halfway")
    rows = {row["number"]: row for row in status("halfway")["rows"]}
    before = {row["number"]: row for row in then(root, "resumed_status")["rows"]}
    assert rows.keys() == before.keys()
    assert {number: row["params"] for number, row in rows.items()} == {n: row["params"] for n, row in before.items()}
    assert rows[6]["state"] == "complete"
    assert rows[6]["value"] == pytest.approx(before[6]["value"], rel=1e-6)  # from its checkpoint; another CPU may round
    assert sweep("export", "halfway", "-o", "-").stdout.startswith("#")


@dataclass(slots=True)
class StoreDispatcher(LocalDispatcher):
    """Starts workers that reach the store only, as processes of this machine, in place of the sweep's Launch queue."""

    url: str = ""

    def _command(self, name: str) -> list[str]:
        return worker_command(self.url, self.room.root / "copies" / name, name)


@pytest.mark.slow
def test_a_sweep_in_a_store_is_resumed_from_its_checkpoints(restore: Any, tmp_path: Path) -> None:
    """Until the trial that was interrupted has ended; W&B and its agents are left out."""
    root = restore("store")
    url = f"file://{root}/stores/stored"
    room, queue = download(url, tmp_path / "controller"), Room(tmp_path / "queue")
    for name in room.workers():  # these jobs have ended
        write_atomic(queue.worker(name).job, json.dumps({"queue": "local", "place": 0}))
    settings = load_settings(room)
    interrupted = next(row for row in then(root, "status")["rows"] if row["state"] == "waiting")["number"]
    attempts = room.attempts(interrupted)

    def mode() -> Mode:
        newer = [number for number in room.attempts(interrupted) if number not in attempts]
        ended = any(room.attempt(interrupted, number).outcome.exists() for number in newer)
        return Mode.STOP if ended else Mode.RUN

    with hold(controller_lock(room), "test"), open_store_channel(room, url, "test") as channel, warm_processes():
        channel.min_interval = 0.2
        study = session.open_study(room, settings)
        Controller(
            ports=Ports(study, channel, StoreDispatcher(queue, (), 1, url=url), session.BootClock()),
            limits=settings.limits(1),
            spec=lambda t, a, w: replace(trial_spec(settings, study.params(t), AttemptId(t, a, w)), tracking=None),
            listener=Silent(),
            mode=mode,
            created=session.created_at(settings),
            poll_seconds=0.2,
            ledger=RoomLedger(room),
        ).run()
    number = room.attempts(interrupted)[-1]
    outcome = decode(Outcome, room.attempt(interrupted, number).outcome.read_text())
    assert outcome.resumed_from == attempts[-1]
    assert sweep("export", url, "-o", "-").stdout.startswith("#")


@pytest.mark.parametrize("old", MOVED)
def test_what_a_frozen_configuration_names_is_found_where_it_stands_now(old: str) -> None:
    settings = freeze(compose_config(["experiment=demo"]), "x").settings
    if "Sampler" in old:
        built = build_sampler(replace(settings, sampler={"_target_": old}), 0)
    else:
        built = build_pruner(replace(settings, pruner={"_target_": old}))
    assert f"{type(built).__module__}.{type(built).__name__}" == MOVED[old]


@pytest.mark.slow
def test_a_job_that_waited_in_slurm_runs(restore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickled worker, as a node loads it; it was told to end before it began."""
    root = restore("submitit")
    room = Room(root / "rooms" / "slurmed")
    job = DelayedSubmission.load(room.root / "submitit" / "4241_0_submitted.pkl")
    assert (job.function.__module__, job.function.__qualname__) == ("trainer.entry.slurm_job", "serve")
    write_atomic(room.worker("w0001").drain, "")
    code = (
        "import sys; from submitit.core.utils import DelayedSubmission; "
        "job = DelayedSubmission.load(sys.argv[1]); job.args = (sys.argv[2], *job.args[1:]); job.result()"
    )
    words = [str(room.root / "submitit" / "4241_0_submitted.pkl"), str(room.root)]
    subprocess.run([sys.executable, "-c", code, *words], check=True, timeout=300)
    assert "drain" in json.loads(room.worker("w0001").exit.read_text())["reason"]


def test_a_controllers_job_that_waited_in_slurm_is_found(restore: Any) -> None:
    root = restore("submitit")
    job = DelayedSubmission.load(root / "rooms" / "slurmed" / "submitit" / "4240_submitted.pkl")
    assert job.function.__name__ == "control"
    assert callable(job.function)


def test_a_check_of_a_node_that_waited_in_slurm_runs(restore: Any, tmp_path: Path) -> None:
    root = restore("submitit")
    job = DelayedSubmission.load(root / "doctor" / "submitit" / "4243_submitted.pkl")
    job.args = (str(tmp_path), *job.args[1:])

    def answer() -> None:
        while not (tmp_path / "hello").exists():
            time.sleep(0.01)
        write_atomic(tmp_path / "ping", "")

    with hold(tmp_path / "lock", "doctor"):
        thread = threading.Thread(target=answer)
        thread.start()
        job.result()
        thread.join()
    assert json.loads((tmp_path / "answer.json").read_text())["error"] == ""


def pushed(name: str, root: Path) -> dict[str, Any]:
    """The run's configuration that an agent hands to a job."""
    text = with_paths((FIXTURES / "job_artifact.json").read_text(), root)
    config: dict[str, Any] = json.loads(text)["pushes"][name]["item"]["overrides"]["run_config"]
    return config


@pytest.mark.parametrize("name", JOBS)
def test_a_pushed_job_is_understood(name: str, tmp_path: Path) -> None:
    job = read_job({"WANDB_CONFIG": json.dumps(pushed(name, tmp_path))})
    assert job.worker or job.controller
    for raw in job.specs:
        assert decode(TrialSpec, json.dumps(raw)).sweep == name


def test_jobs_of_an_older_artifact_understand_what_is_pushed_now(tmp_path: Path) -> None:
    """An artifact holds its own version of the trainer, which refuses a word that it does not know."""
    known = set().union(*(pushed(name, tmp_path)["sweep_job"] for name in JOBS))
    settings = freeze(compose_config(["experiment=demo", "queue=launch_local_process"]), "x").settings
    [job] = launch_jobs.payload(settings, Room(tmp_path / "x"), "w0001", [], gpu=False).values()
    assert job.keys() <= known


@pytest.mark.slow
def test_the_entry_point_of_a_job_artifact_trains_a_trial(tmp_path: Path) -> None:
    entry = json.loads((FIXTURES / "job_artifact.json").read_text())["ENTRY_POINT"]
    config = pushed("trial_room", tmp_path)
    [raw] = config["sweep_job"]["specs"]
    spec = dataclasses.replace(decode(TrialSpec, json.dumps(raw)), tracking=None)  # there is no W&B here
    room = Room(tmp_path / "rooms" / "trial_room")
    write_atomic(room.attempt(spec.trial, spec.attempt).spec, encode(spec))
    room.worker(spec.worker).assign(spec.trial, spec.attempt)
    words = entry.split() if isinstance(entry, str) else entry
    env = {**os.environ, "WANDB_CONFIG": json.dumps(config), "WANDB_MODE": "disabled"}
    subprocess.run([sys.executable, *words[1:]], env=env, check=True, timeout=600)
    outcome = decode(Outcome, room.attempt(spec.trial, spec.attempt).outcome.read_text())
    assert outcome.kind is OutcomeKind.COMPLETED
