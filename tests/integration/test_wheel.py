"""An installed wheel finds its configuration, its queues and its base."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def test_a_wheel_plans_the_demo_far_from_the_checkout(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("sweeps_on_launch-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    for wanted in (
        "sweep/_conf/config.yaml",
        "sweep/_launch_queues/local.yaml",
        "trainer/embedded/base/model.safetensors",
        "sweep/report/templates/report.html.jinja",
        "sweep/report/templates/sections.html.jinja",
        "sweep/report/templates/report.css",
        "sweep/report/templates/report.js",
        "sweep/py.typed",
        "trainer/py.typed",
    ):
        assert wanted in names
    assert not any(name.startswith("tests/") for name in names)
    env = {**os.environ, "PYTHONPATH": str(site)}
    look = "import sweep; print(sweep.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", look], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(str(site))
    plan = [sys.executable, "-m", "sweep.cli", "plan", "experiment=demo", "queue=local"]
    said = subprocess.run(plan, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "512 rows" in said.stdout
