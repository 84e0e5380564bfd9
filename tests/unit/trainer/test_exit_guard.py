"""A process that spoke to W&B ends, also where W&B's service does not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# What W&B's client does: a service of its own, which it waits for when the interpreter exits.
CLIENT = """
import atexit, subprocess, sys, types
from trainer.exit_guard import limit_exit
sys.modules["wandb"] = types.ModuleType("wandb")
service = subprocess.Popen([sys.argv[1], "600"], start_new_session=True)
print(service.pid, flush=True)
limit_exit(0.2)
def wait():
    print(service.wait(), flush=True)
atexit.register(wait)
sys.exit(3)
"""


def run(program: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CLIENT, str(program)], stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_a_service_that_does_not_end_is_killed_and_the_exit_code_stays(tmp_path: Path) -> None:
    service = tmp_path / "wandb-core"
    service.symlink_to(shutil.which("sleep") or "sleep")
    process = run(service)
    said, _ = process.communicate(timeout=60)
    assert said.split()[1] == str(-signal.SIGKILL)
    assert process.returncode == 3


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_other_children_are_left_alone(tmp_path: Path) -> None:
    process = run(Path(shutil.which("sleep") or "sleep"))
    assert process.stdout is not None
    child = int(process.stdout.readline())
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2.0)
    os.kill(child, signal.SIGTERM)
    assert process.stdout.read().strip() == str(-signal.SIGTERM)
    assert process.wait(60) == 3
