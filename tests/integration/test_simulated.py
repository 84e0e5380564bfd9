"""Whole sweeps through the simulated queue: at some scale, through the verbs, and after a controller's death."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf

from sweep.cli.foreground import drive
from sweep.cli.main import main
from sweep.cli.run_control import RunControl, control_path
from sweep.config.space_grammar import parse_space
from sweep.controller.ledger import read_ledger
from sweep.controller.loop import Controller
from sweep.errors import ConfigError
from sweep.model.effects import Ask, Effect, Finish, Stop
from sweep.model.identifiers import AttemptId
from sweep.model.limits import Limits
from sweep.model.objectives import Objective
from sweep.model.states import Finished, Mode
from sweep.queues.simulated.dispatcher import simulated_ports
from sweep.queues.simulated.section import SimulationModel
from sweep.queues.simulated.tables import load_table
from sweep.queues.simulated.world import World
from sweep.search.forecast_sampler import ForecastSampler
from sweep.search.journal import journal_storage
from sweep.search.storage import memory_storage
from sweep.search.strategy.freeze_thaw import FreezeThaw
from sweep.search.strategy.halving import AsynchronousHalving
from sweep.search.strategy.protocol import Promotion
from sweep.search.study import OptunaStudy
from sweep.search.study_config import StudyConfig
from sweep.wiring import backends, creation, session
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.rooms import find_room, load_settings
from sweep.wiring.simulate import Silent, simulate
from sweep.wiring.specifications import trial_spec
from tests.bench.replay_agreement import PRUNERS, compare
from tests.bench.simulated_scale import SPACE, run
from tests.helpers.tables import write_table
from trainer.contract import OutcomeKind, StopCause, TrialSpec
from trainer.room import write_atomic


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("curves") / "curves.npz")


def config(pruner: Any, seed: int = 1, sampler: Any = optuna.samplers.TPESampler) -> StudyConfig:
    return StudyConfig(
        name="s",
        space=parse_space(SPACE),
        objective=Objective("val_loss"),
        seed=seed,
        sampler=lambda number: sampler(seed=number),
        pruner=pruner,
        milestones=8,
    )


@pytest.mark.slow
def test_a_hundred_workers_lose_nothing(table: Path) -> None:
    found = run(load_table(str(table)), trials=1000, workers=100)
    assert (found.complete, found.lost, found.twice) == (1000, 0, 0)
    assert found.crashes > 0
    assert found.attempts == 1000 + found.crashes
    assert found.throughput >= 0.95


def test_pausing_over_crashes_and_preemptions_loses_nothing(table: Path) -> None:
    study = OptunaStudy(config(AsynchronousHalving("val_loss", 1, 2)), memory_storage())
    simulation_model = SimulationModel(crashes=0.1, preemptions=0.1, stragglers=0.1)
    world = World(load_table(str(table)), simulation_model, slots=3)
    simulate(study, world, Limits(trials=60, workers=4, slots=3, max_attempts=20))
    facts = study.facts()
    assert (facts.asked, facts.open, facts.suspended, facts.failed) == (60, (), (), 0)
    assert facts.complete > 0
    assert facts.pruned > 0
    last = [attempts[max(attempts)] for attempts in world.attempts.values()]
    for attempt in last:
        assert attempt.outcome is not None
        paused = attempt.outcome.cause is StopCause.PAUSED
        assert attempt.outcome.kind is OutcomeKind.COMPLETED or paused
    resumed = [a for attempts in world.attempts.values() if len(attempts) > 1 for a in list(attempts.values())[1:]]
    assert any(attempt.reports and attempt.reports[0].milestone > 1 for attempt in resumed), "from a checkpoint"


class Moves(Silent):
    """Which trials were paused and promoted, and when a new one (-1) was asked for."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.just_promoted = False

    def done(self, effect: Effect) -> None:
        if isinstance(effect, Stop) and effect.cause is StopCause.PAUSED:
            self.seen.append(("paused", effect.trial))
        elif isinstance(effect, Ask):
            if not self.just_promoted:
                self.seen.append(("asked", -1))
            self.just_promoted = False

    def promoted(self, promotion: Promotion) -> None:
        self.seen.append(("promoted", promotion.trial))
        self.just_promoted = True


@pytest.mark.parametrize("trials", [3, 8])
def test_a_trial_is_not_paused_for_one_that_cannot_be_had(trials: int, tmp_path: Path) -> None:
    table = load_table(str(write_table(tmp_path / "curves.npz", milestones=24)))
    forecasting = replace(
        config(FreezeThaw("val_loss"), seed=2, sampler=partial(ForecastSampler, milestones=24)), milestones=24
    )
    moves = Moves()
    study = OptunaStudy(forecasting, memory_storage())
    simulate(study, World(table, SimulationModel()), Limits(trials=trials, workers=1), listener=moves)
    last_asked = max(at for at, (verb, _) in enumerate(moves.seen) if verb == "asked")
    rest = moves.seen[last_asked + 1 :]
    assert any(verb == "promoted" for verb, _ in rest)
    for (verb, trial), (following, other) in pairwise(rest):
        assert (verb, following) != ("paused", "promoted") or trial != other


def test_without_the_sampler_s_time_a_sweep_depends_on_its_seeds_alone(table: Path) -> None:
    def outline() -> list[tuple[Any, ...]]:
        study = OptunaStudy(config(AsynchronousHalving("val_loss")), memory_storage())
        world = World(load_table(str(table)), SimulationModel(crashes=0.05), seed=3)
        simulate(study, world, Limits(trials=30, workers=4))
        return [(t.state.name, t.params, t.value) for t in study.frozen()] + [(world.now,)]

    assert outline() == outline()


class Dies(Silent):
    """A listener that ends its controller after a number of effects."""

    def __init__(self, after: int) -> None:
        self.left = after

    def done(self, effect: Effect) -> None:
        self.left -= not isinstance(effect, Finish)
        if self.left <= 0:
            raise KeyboardInterrupt


def test_the_world_goes_on_under_the_next_controller(table: Path, tmp_path: Path) -> None:
    """Each controller dies after a few effects; workers, paused trials and the study outlive it."""
    world = World(load_table(str(table)), SimulationModel(crashes=0.05))
    pruner = AsynchronousHalving("val_loss", 1, 2)
    lives, finished = 0, False
    while not finished and lives < 400:
        lives += 1
        study = OptunaStudy(config(pruner), journal_storage(tmp_path / "journal"))
        controller = Controller(
            ports=simulated_ports(world, study, charge=False),
            limits=Limits(trials=12, workers=3, max_attempts=20),
            spec=lambda t, a, w, study=study: TrialSpec("s", t, a, w, study.params(t), 1),  # type: ignore[misc]
            listener=Dies(1),
            mode=lambda: Mode.RUN,
            created=0.0,
            poll_seconds=60.0,
        )
        try:
            controller.run()
            finished = True
        except KeyboardInterrupt:
            pass
    assert finished
    assert lives > 10
    facts = study.facts()
    assert (facts.asked, facts.open, facts.suspended, facts.failed) == (12, (), (), 0)
    for number, attempts in world.attempts.items():
        overlapping = [a for a in attempts.values() if a.running]
        assert overlapping == [], f"trial {number} still runs"


WORDS = ["space.optimizer.lr=tag(log,interval(1e-5,1e-1))", "objective=val_loss", "queue.workers=3"]


@pytest.mark.slow
def test_the_verbs(table: Path, rooms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["run", "name=s", "queue=simulated", f"queue.table={table}", "pruner=asha", "search.trials=12", *WORDS]
    assert main(sweep) == 0
    assert "all 12 trials have ended" in capsys.readouterr().out
    assert main(["status", "s", "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert {row["state"] for row in state["rows"]} == {"complete", "pruned"}
    assert all(len(row["reports"]) == 8 for row in state["rows"] if row["state"] == "complete")
    room = find_room("s")
    entries = read_ledger(room)
    assert {entry.ruling for entry in entries} >= {"pause"}
    assert all(entry.basis for entry in entries)
    assert main(["replay", "s", "pruner=none", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["winner_fate"] == "complete"
    assert found["tokens"] == found["tokens_then"], "nothing is known beyond what was recorded"
    assert main(["report", "s"]) == 0
    assert "Ledger" in (room.root / "report.html").read_text()
    assert main(["resume", "s", "search.trials=16"]) == 0
    assert "all 16 trials have ended" in capsys.readouterr().out


@pytest.mark.slow
def test_a_replay_says_what_another_pruner_would_have_done(
    table: Path, rooms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["run", "queue=simulated", f"queue.table={table}", "pruner=none", "search.trials=12", *WORDS]
    assert main([*sweep, "name=finals", "search.finalists=2", "search.seeds=3"]) == 0
    capsys.readouterr()
    assert main(["replay", "finals", "pruner=none", "--json"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert (same["trials"], same["tokens"]) == (12, same["tokens_then"]), "finals are nothing that a pruner judges"
    assert main([*sweep, "name=full"]) == 0
    capsys.readouterr()
    for pruner, spends_less in (("none", False), ("asha", True), ("threshold", True)):
        words = [f"pruner={pruner}", *(["pruner.upper=0.1"] if pruner == "threshold" else [])]
        assert main(["replay", "full", *words, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["tokens"] < found["tokens_then"]) is spends_less
        assert found["cut"] == 0, "every trial was recorded to its end"
    assert (found["winner_fate"], found["best"]) == ("pruned", None)
    assert main(["replay", "full", "sampler=random"]) == 2
    assert "a replay keeps the sweep's trials" in capsys.readouterr().err


@pytest.mark.slow
def test_with_one_worker_a_replay_agrees_with_the_pruner_s_own_sweep(table: Path, tmp_path: Path) -> None:
    found = compare(table, tmp_path, seed=5, workers=1, trials=12)
    assert len(found) == len(PRUNERS)
    for replayed, real in found.values():
        assert replayed == real
    assert len({real.tokens for _, real in found.values()}) > 1, "they are not all the same"


def test_pruners_and_samplers_are_told_the_milestones_of_the_table(table: Path) -> None:
    words = ["queue=simulated", f"queue.table={table}", "sampler=forecast", *WORDS]
    settings = freeze(compose_config([*words, "pruner=hyperband"]), "s").settings
    assert settings.pruner["max_resource"] == settings.sampler["milestones"] == 8
    given = freeze(compose_config([*words, "pruner=hyperband", "pruner.max_resource=5"]), "s").settings
    assert given.pruner["max_resource"] == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["space.optimizer.lr=tag(log,interval(1e-6,1e-2))"], "space.optimizer.lr: 1e-06 is outside the table"),
        (["space.model.lora_rank=choice(4,7)"], "space.model.lora_rank: 7 is not in the table"),
        (["space.optimizer.weight_decay=interval(0.0,0.1)"], "space.optimizer.weight_decay: the table"),
        (["queue.table=/nowhere.npz"], "cannot be read"),
        (["queue.slots=auto"], "needs numbers"),
    ],
)
def test_a_space_off_the_grid_is_refused(words: list[str], message: str, table: Path) -> None:
    with pytest.raises(ConfigError) as error:
        freeze(compose_config(["queue=simulated", f"queue.table={table}", *words]), "s")
    assert message in str(error.value)


def test_a_resumed_room_takes_up_what_another_process_left(
    table: Path, rooms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweep.queues.simulated import recorder

    words = ["queue=simulated", f"queue.table={table}", "pruner=asha", "search.trials=10", "queue.charge=false", *WORDS]
    room = creation.create_room(freeze(compose_config(words), "s"), 8000)
    settings = freeze(compose_config(words), "s").settings
    stopping = RunControl(room, Mode.RUN)
    monkeypatch.setattr(RunControl, "__call__", lambda self: Mode.STOP if len(room.trials()) > 4 else Mode.RUN)
    drive(room, stopping, backends.make_prefork(settings))
    before = {trial: room.attempts(trial) for trial in room.trials()}
    assert before
    monkeypatch.undo()
    monkeypatch.setenv("SWEEP_ROOMS", str(rooms))
    monkeypatch.setattr(recorder, "_worlds", {})  # as in another process
    finish = drive(room, RunControl(room), backends.make_prefork(settings))
    assert finish.reason == "all 10 trials have ended"
    assert len(room.trials()) == 10
    assert all(room.attempts(trial)[: len(attempts)] == attempts for trial, attempts in before.items())


def test_a_stop_while_the_study_is_being_opened_is_obeyed_and_an_earlier_one_is_not(
    table: Path, rooms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["queue=simulated", f"queue.table={table}", "pruner=asha", "search.trials=3", *WORDS]
    composed = freeze(compose_config(words), "s")
    room = creation.create_room(composed, 8000)
    opened = session.open_study

    def slowly(*words: Any) -> OptunaStudy:
        write_atomic(control_path(room), Mode.STOP.value)
        return opened(*words)

    with monkeypatch.context() as patched:
        patched.setattr(session, "open_study", slowly)
        assert drive(room, RunControl(room), backends.make_prefork(composed.settings)).how is Finished.STOPPED
    write_atomic(control_path(room), Mode.STOP.value)
    assert drive(room, RunControl(room), backends.make_prefork(composed.settings)).how is Finished.DONE


@pytest.mark.slow
def test_a_database_is_found_from_anywhere_and_holds_each_name_once(
    table: Path, rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file named from where `sweep run` was typed; else a resumed sweep would find, or make, another study."""
    words = ["queue=simulated", f"queue.table={table}", "pruner=none", "sampler=random", *WORDS]
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    assert main(["run", "name=s", "search.trials=2", "storage=sqlite:///sweeps.db", *words]) == 0
    monkeypatch.chdir(there)
    assert main(["status", "s", "--json"]) == 0
    before = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert main(["resume", "s", "search.trials=4", "search.seed=9"]) == 0
    assert main(["status", "s", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][:2] == before
    assert list(there.iterdir()) == []
    monkeypatch.setenv("SWEEP_ROOMS", str(there / "rooms"))
    assert main(["run", "name=s", "search.trials=2", f"storage=sqlite:///{here}/sweeps.db", *words]) == 2
    assert "holds a study named s already" in capsys.readouterr().err
    monkeypatch.setenv("SWEEP_ROOMS", str(rooms))
    (here / "sweeps.db").unlink()
    assert main(["resume", "s", "search.trials=6"]) == 1
    assert "no study named s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("nonsense", "must be an Optuna URL"),
        ("sqlite:////no/such/directory/x.db", "cannot be opened"),
        ("foo://bar", "cannot be opened"),
        ("redis://localhost", "cannot be opened"),
        ("sqlite://", "ends with the process"),
        ("sqlite:///:memory:", "ends with the process"),
        ("postgresql://me:hidden@host/x", "storage=postgresql://… has a password"),
    ],
)
def test_a_storage_that_cannot_be_is_refused_in_a_sentence(
    url: str, complaint: str, table: Path, rooms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["queue=simulated", f"queue.table={table}", "pruner=none", "search.trials=2", *WORDS]
    assert main(["run", "name=s", f"storage={url}", *words]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert "hidden" not in said
    assert not list(rooms.rglob("sweep.json"))


@pytest.mark.slow
def test_finalists_are_trained_again_over_seeds_and_ties_are_said(
    table: Path, rooms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["queue=simulated", f"queue.table={table}", "pruner=asha", "search.trials=10", *WORDS]
    assert main(["run", "name=s", "search.finalists=2", "search.seeds=3", *words]) == 0
    said = capsys.readouterr().out
    assert "finals over 3 seeds" in said
    assert "paired t-tests" in said
    assert main(["status", "s", "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    finals = [row for row in state["rows"] if row["final"]]
    ordinary = [row for row in state["rows"] if not row["final"]]
    assert len(ordinary) == 10
    best = sorted((row["value"], row["number"]) for row in ordinary if row["state"] == "complete")[:2]
    assert main(["export", "s", "--trial", str(best[0][1]), "-o", "-"]) == 0
    ordinary_seed = OmegaConf.create(capsys.readouterr().out).seed
    assert sorted(map(tuple, (row["final"] for row in finals))) == sorted((n, s) for _, n in best for s in range(3))
    assert all(row["state"] == "complete" for row in finals), "a final is never judged"
    assert all(row["params"] == state["rows"][row["final"][0]]["params"] for row in finals)
    assert state["best"] in {number for _, number in best}
    settings = load_settings(find_room("s"))
    for row in finals:
        assert main(["export", "s", "--trial", str(row["number"]), "-o", "-"]) == 0
        exported = OmegaConf.create(capsys.readouterr().out)
        spec = trial_spec(settings, row["params"], AttemptId(row["number"], 1, "w0001"), row["final"][1])
        assert exported.seed == spec.config["seed"] == ordinary_seed + 1 + row["final"][1]
    finalists = said[said.index("finals over 3 seeds") : said.index("best trial")].strip()
    assert main(["best", "s"]) == 0
    assert finalists in capsys.readouterr().out
    assert main(["best", "s", "--json"]) == 0
    other = ({number for _, number in best} - {state["best"]}).pop()
    tied = [other] if f"trial {other}:" in finalists and "tied with the first" in finalists else []
    assert json.loads(capsys.readouterr().out)["tied"] == tied
    for verb, path in (("report", rooms), ("export", rooms), ("report", "/proc/nowhere/r.html")):
        assert main([verb, "s", "-o", str(path)]) in (1, 2)
        assert str(path) in capsys.readouterr().err
    assert main(["report", "s"]) == 0
    page = (find_room("s").root / "report.html").read_text()
    assert "<h2>Finals</h2>" in page
    assert finalists in html.unescape(page)


def test_a_budget_in_gpu_hours_ends_a_sweep(table: Path, rooms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["queue=simulated", f"queue.table={table}", "pruner=none", "sampler=random", "search.trials=null", *WORDS]
    assert main(["run", "name=s", "search.gpu_hours=0.5", *words]) == 0
    assert "the budget of 0.5 GPU-hours is spent" in capsys.readouterr().out
    assert main(["run", "name=t", "search.min_gain_per_gpu_hour=20", *words]) == 0
    assert "expected to gain less than 20" in capsys.readouterr().out
