"""How a kind of queue is found, and what version 0.1 wrote of each."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

import sweep.queues
from sweep.config.queues import Queue, queue_kinds, section_class
from sweep.config.settings import read_queue
from sweep.errors import ConfigError
from sweep.queues import backend

SHARED = (
    "workers slots trials_per_worker threads env offline idle_seconds silence_seconds start_seconds "
    "stop_grace_seconds poll_seconds kind"
)
# The keys of each section as version 0.1 froze them into `sweep.json`, beside those that all share.
FROZEN = {
    "local": "",
    "slurm": "timeout_min cpus_per_task gpus_per_node mem_gb slurm_account slurm_additional_parameters "
    "slurm_array_parallelism slurm_comment slurm_constraint slurm_cpus_per_gpu slurm_dependency slurm_exclude "
    "slurm_exclusive slurm_gpus_per_task slurm_gres slurm_mail_type slurm_mail_user slurm_mem slurm_mem_per_cpu "
    "slurm_mem_per_gpu slurm_nodelist slurm_partition slurm_qos slurm_setup slurm_signal_delay_s slurm_srun_args "
    "slurm_teardown slurm_wckey python query_seconds controller",
    "launch": "name entity project project_queue resource job docker_image priority variables resource_args template "
    "template_variables prioritization max_jobs channel room query_seconds pending_seconds",
    "simulated": "trial_seconds slot_cost startup_seconds startup_spread wait_seconds speed_spread stragglers "
    "straggler_factor crashes preemptions stop_seconds table columns seed look_seconds charge",
}


@pytest.mark.parametrize("kind", FROZEN)
def test_sections_that_version_0_1_froze_are_read_as_they_are(kind: str) -> None:
    keys = {*SHARED.split(), *FROZEN[kind].split()}
    section = section_class(kind)
    assert {field.name for field in dataclasses.fields(section)} >= keys
    frozen = {key: value for key, value in dataclasses.asdict(section()).items() if key in keys}
    assert read_queue(frozen) == section()


def test_a_section_without_a_kind_is_of_this_machine() -> None:
    assert type(read_queue({"workers": 2})) is section_class("local")


@pytest.mark.parametrize("kind", ["lsf", "", "backend", "../local", None, 3])
def test_an_unknown_kind_is_one_sentence_with_those_that_there_are(kind: object) -> None:
    with pytest.raises(ConfigError) as refused:
        read_queue({"kind": kind})
    expected = f"queue.kind={kind} is not allowed; it must be launch or local or simulated or slurm"
    assert str(refused.value) == expected


BACKEND = """
from dataclasses import dataclass
from sweep.config.queues import Queue
from sweep.queues import Backend

@dataclass
class Section(Queue):
    kind: str = "theirs"
    minutes: int = 5

class Theirs(Backend):
    section = Section
    def open(self, room, settings, prefork=None):
        raise NotImplementedError

BACKEND = Theirs()
"""


def test_a_package_installs_its_queue_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_package.py").write_text(BACKEND)
    metadata = tmp_path / "their_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[sweep.queues]\ntheirs = their_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_package", raising=False)
    assert queue_kinds() == ["launch", "local", "simulated", "slurm", "theirs"]
    section = read_queue({"kind": "theirs", "minutes": 7, "workers": 2})
    assert isinstance(section, backend("theirs").section)
    assert dataclasses.asdict(section)["minutes"] == 7


def test_a_folder_on_the_look_up_path_is_a_queue_and_a_module_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text(BACKEND)
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(sweep.queues, "__path__", [*sweep.queues.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "sweep.queues.theirs", raising=False)
    assert queue_kinds() == ["launch", "local", "simulated", "slurm", "theirs"]
    assert issubclass(section_class("theirs"), Queue)
    del sys.modules["sweep.queues.theirs"]
