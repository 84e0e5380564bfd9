"""What a finished sweep leaves, looked at and gone on with through the command line: one sweep for all these tests."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from sweep.report.reader import read_outcome
from tests.helpers.cli import SMALL, status, sweep
from tests.helpers.warm import warm_processes
from trainer.room import Room

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Room:
    """One finished sweep that several tests look at."""
    rooms = tmp_path_factory.mktemp("finished")
    os.environ["SWEEP_ROOMS"] = str(rooms)
    done = sweep(
        "run", *SMALL, "name=done", "search.trials=6", "pruner=median", "pruner.n_startup_trials=2", "queue.workers=1"
    )
    assert "done: all 6 trials have ended" in done.stdout
    return Room(rooms / "done")


@pytest.fixture
def done(finished: Room, monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.setenv("SWEEP_ROOMS", str(finished.root.parent))
    return finished


def test_the_best_trial_leaves_as_a_yaml_an_adapter_and_the_proof(done: Room) -> None:
    best = json.loads(sweep("best", "done", "--json").stdout)
    rows = {row["number"]: row for row in status("done")["rows"]}
    complete = [row["value"] for row in rows.values() if row["state"] == "complete"]
    assert best["value"] == min(complete)
    assert (Path(best["adapter"]) / "adapter_model.safetensors").exists()
    assert best["tune_run"] == f"tune run lora_finetune_single_device --config {best['yaml']}"
    exported = yaml.safe_load(Path(best["yaml"]).read_text())
    assert exported["model"]["lora_rank"] == best["params"]["model.lora_rank"]
    assert exported["model"]["lora_alpha"] == 2 * best["params"]["model.lora_rank"]
    verified = sweep("export", "done", "--verify")
    assert "reproduced by tune run" in verified.stdout


def test_tune_validate_accepts_the_export(done: Room) -> None:
    from sweep.report.export import TUNE

    path = sweep("export", "done").stdout.splitlines()[0]
    with warm_processes():
        result = subprocess.run([*TUNE, "validate", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "well-formed" in result.stdout + result.stderr


def test_pruned_trials_say_why_and_stopped_early(done: Room) -> None:
    pruned = [row for row in status("done")["rows"] if row["state"] == "pruned"]
    assert pruned, "the median rule stops some of six"
    for row in pruned:
        assert "MedianPruner at milestone" in row["reason"]
        outcome = read_outcome(done, row["number"])
        assert outcome is not None


def test_the_report_is_one_file_that_loads_nothing(done: Room) -> None:
    path = Path(sweep("report", "done").stdout.strip())
    html = path.read_text()
    for heading in (
        "History",
        "Learning curves",
        "Importance",
        "Slices",
        "Parallel coordinates",
        "Why trials were pruned",
    ):
        assert f"<h2>{heading}</h2>" in html
    assert "Not drawn" not in html, html[html.index("Not drawn") :][:200]
    assert 'src="http' not in html
    assert "MedianPruner at milestone" in html


def test_logs_and_status_are_readable(done: Room) -> None:
    assert "trial 0 attempt 1 starts" in sweep("logs", "done", "--trial", "0").stdout
    text = sweep("status", "done").stdout
    assert "complete" in text
    assert "no controller" in text
    assert "complete" in sweep("watch", "done").stdout


def test_running_the_same_sweep_again_only_shows_its_end(done: Room) -> None:
    words = ("name=done", "search.trials=6", "pruner=median", "pruner.n_startup_trials=2", "queue.workers=1")
    assert "all 6 trials have ended" in sweep("run", *SMALL, *words).stdout
    refused = sweep("run", *SMALL, "name=done", "search.trials=7", code=2)
    assert "there is a sweep done already, with another pruner, queue, search" in refused.stderr


def test_a_larger_budget_goes_on_where_the_sweep_ended(done: Room) -> None:
    assert "search.trials=x" not in sweep("resume", "done", "search.trials=0", code=2).stdout
    sweep("resume", "done", "search.trials=7")
    assert len(status("done")["rows"]) == 7


def test_optuna_dashboard_opens_the_study(done: Room) -> None:
    from optuna_dashboard import wsgi

    from sweep.wiring.rooms import load_settings
    from sweep.wiring.session import reading_storage

    app = wsgi(reading_storage(done, load_settings(done)))
    answers: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/api/studies",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": None,
        "QUERY_STRING": "",
    }
    body = b"".join(app(environ, lambda code, *_: answers.append(code)))
    assert answers == ["200 OK"]
    assert json.loads(body)["study_summaries"][0]["study_name"] == "done"


def test_warm_start_tries_given_configurations_and_learns_from_an_earlier_sweep(done: Room) -> None:
    first = "{model.lora_rank: 8, optimizer.lr: 5e-3, gradient_accumulation_steps: 1}"
    words = (*SMALL, "search.trials=2", "name=next", f"warm_start.enqueue=[{first}]", "warm_start.import_from=[done]")
    sweep("run", *words, f"storage=sqlite:///{done.root.parent}/next.db")
    rows = status("next")["rows"]
    imported = len(status("done")["rows"])
    assert len(rows) == 2
    assert rows[0]["params"] == {"model.lora_rank": 8, "optimizer.lr": 5e-3, "gradient_accumulation_steps": 1}
    assert {rows[0]["number"], rows[1]["number"]} == {0, imported + 1}
