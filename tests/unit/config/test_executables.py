"""A program that is here and may not be executed is refused before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sweep.config.executables import check_executable
from sweep.errors import ConfigError


def test_a_file_that_may_not_be_executed_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o644)
    with pytest.raises(ConfigError, match=r"queue\.python=.*may not be executed"):
        check_executable("queue.python", str(program))
    program.chmod(0o755)
    check_executable("queue.python", f"{program} -I")


@pytest.mark.parametrize("command", ["", "'", "/tmp"])
def test_what_is_no_program_is_refused(command: str) -> None:
    with pytest.raises(ConfigError, match=r"queue\.python"):
        check_executable("queue.python", command)


@pytest.mark.parametrize("command", [sys.executable, "python", "/only/on/the/nodes/python", "srun python"])
def test_what_this_machine_cannot_judge_is_allowed(command: str) -> None:
    check_executable("queue.python", command)
