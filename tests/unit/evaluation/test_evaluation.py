"""Evaluations as configuration, as specifications, and together with the trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweep.config.evaluate import Command, Heldout, NoEvaluation, Torchtune
from sweep.config.settings import Settings, settings_from_json
from sweep.controller.loop import Controller
from sweep.controller.ports import ObservedAttempt, ObservedWorker, Ports, WorkerSpec
from sweep.controller.room_channel import RoomChannel
from sweep.errors import ConfigError, GiveUp
from sweep.evaluation.controller import (
    CombinedController,
    EvaluationEnding,
    EvaluationMode,
    EvaluationStudy,
    read_ending,
)
from sweep.evaluation.jobs import evaluation_settings, evaluation_spec, evaluations_room
from sweep.model.effects import Ask, Assign, Effect, Finish, Tell
from sweep.model.facts import Job, View
from sweep.model.identifiers import AttemptId
from sweep.model.limits import Limits
from sweep.model.states import Ending, Finished, JobState, Mode
from sweep.queues.launch.api import ObservedRun
from sweep.queues.launch.channel import WandbChannel
from sweep.queues.launch.jobs import payload, run_of
from sweep.queues.launch.runs import Runs
from sweep.report.reader import read_evaluation
from sweep.search.strategy.protocol import Promotion
from sweep.tracking.runs import run_id
from sweep.wiring.compose import compose_config, freeze
from trainer.contract import (
    JOB_KEY,
    OUTCOME_KEY,
    Evaluation,
    FailureKind,
    Outcome,
    OutcomeKind,
    Report,
    StopCause,
    Tracking,
    TrialSpec,
    decode,
    encode,
)
from trainer.evaluation.evaluate import lm_eval_config
from trainer.evaluation.external import EvaluationError, fill_placeholders, numbers, read_scores, table_scores
from trainer.room import Room, write_atomic
from trainer.store.objects import open_store
from trainer.tracking.scores import fetch_adapter


def composed(*words: str) -> Settings:
    return freeze(compose_config(words), "s").settings


# --- the section ---------------------------------------------------------------------------------------------------


def test_a_section_is_read_by_its_kind_and_keeps_no_file(tmp_path: Path) -> None:
    assert isinstance(composed().evaluate, NoEvaluation)
    assert composed("evaluate=heldout", "evaluate.max_tokens=5").evaluate == Heldout(max_tokens=5)
    words = composed("evaluate=command", "evaluate.command='score \"a b\" {adapter}'").evaluate
    assert words == Command(command=["score", "a b", "{adapter}"])
    data = composed("evaluate=heldout", "evaluate.dataset._component_=torchtune.datasets.alpaca_dataset")
    assert data.evaluate == Heldout(dataset={"_component_": "torchtune.datasets.alpaca_dataset"})
    own = tmp_path / "eval.yaml"
    own.write_text("output_dir: x\nmodel: {_component_: torchtune.models.llama3.llama3}\nout: ${output_dir}\n")
    made = composed("evaluate=torchtune", f"evaluate.config={own}", "evaluate.overrides={seed: 3}")
    own.unlink()
    found = settings_from_json(json.loads(json.dumps(made.to_json())), "here").evaluate
    assert isinstance(found, Torchtune)
    assert found.config["out"] == "${output_dir}"
    assert (found.recipe, found.overrides) == ("eleuther_eval", {"seed": 3})


def test_a_sweep_of_before_evaluations_is_read() -> None:
    raw = composed().to_json()
    del raw["evaluate"]
    assert isinstance(settings_from_json(raw, "here").evaluate, NoEvaluation)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["evaluate=perplexity"], "evaluate=perplexity does not exist; allowed: command, heldout, lm_eval, none"),
        (["evaluate.kind=x"], "evaluate.kind=x is not allowed"),
        (["evaluate=heldout", "evaluate.tasks=[a]"], "evaluate: there is no key tasks"),
        (["evaluate=heldout", "evaluate.max_tokens=0"], "evaluate.max_tokens=0 is not allowed; it must be at least 1"),
        (["evaluate=heldout", "evaluate.max_tokens=x"], "evaluate.max_tokens"),
        (
            ["evaluate=heldout", "recipe.overrides.dataset_val=null", "objective=loss"],
            "evaluate=heldout needs held-out",
        ),
        (["evaluate=heldout", "evaluate.dataset=5"], "evaluate.dataset=5 is no data set"),
        (["evaluate=heldout", "evaluate.dataset._component_=os.system"], "os.system is not among the allowed"),
        (["evaluate=torchtune"], "evaluate.config is not set"),
        (["evaluate=torchtune", "evaluate.config=nowhere"], "evaluate.config=nowhere is no file"),
        (
            ["evaluate=torchtune", "evaluate.config=eleuther_evaluation", "evaluate.overrides={a: '{adaptor}'}"],
            "evaluate.overrides: {adaptor} is no placeholder; allowed: {adapter}, {base}",
        ),
        (["evaluate=command"], "evaluate.command=None is no command"),
        (["evaluate=command", "evaluate.command='a \"b'"], "cannot be split into words"),
        (["evaluate=command", "evaluate.command=[a,'{out}']"], "evaluate.command: {out} is no placeholder"),
        (["evaluate=lm_eval", "evaluate.tasks=[]"], "evaluate.tasks is empty"),
    ],
)
def test_what_could_not_run_is_refused_before_any_job(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed(*words)
    assert text in str(error.value)


def test_lm_eval_that_is_absent_is_refused_by_the_name_of_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweep.evaluation.jobs.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sweeps-on-launch\[lm-eval\]'"):
        composed("evaluate=lm_eval")
    composed("evaluate=lm_eval", "queue=launch_local_process")
    with pytest.raises(ConfigError, match="lm-eval"):
        composed("evaluate=lm_eval", "queue=slurm")
    monkeypatch.setattr("sweep.evaluation.jobs.importlib.util.find_spec", lambda name: object())
    composed("evaluate=lm_eval")


# --- what a job is told --------------------------------------------------------------------------------------------


def room_with_a_trial(tmp_path: Path, settings: Settings, tracking: Tracking | None = None) -> Room:
    room = Room(tmp_path / "s")
    spec = TrialSpec(settings.name, 3, 2, "w0001", {"model": {"lora_rank": 4}}, 10, tracking=tracking)
    write_atomic(room.attempt(3, 2).spec, encode(spec))
    return room


def test_the_specification_names_adapter_kind_and_the_trial_s_own_run(tmp_path: Path) -> None:
    settings = replace(composed("evaluate=heldout", "evaluate.max_tokens=7"), created=1.0)
    tracking = Tracking("r-00003", "offline", {"project": "p"})
    room = room_with_a_trial(tmp_path, settings, tracking)
    spec = evaluation_spec(settings, room, AttemptId(3, 1, "w0005"))
    assert spec.evaluate == Evaluation(
        "heldout",
        {"dataset": None, "batch_size": None, "max_tokens": 7, "seconds": None},
        adapter=str(tmp_path / "s" / "trials" / "00003" / "2" / "adapter"),
        tracking=tracking,
    )
    assert (spec.trial, spec.attempt, spec.worker, spec.tracking) == (3, 1, "w0005", None)
    assert spec.config == {"model": {"lora_rank": 4}}
    assert decode(TrialSpec, encode(spec)) == spec


def test_options_of_any_type_and_scores_travel() -> None:
    odd = {"dataset": {"$x": float("inf"), "n": None, "l": [1, "a"]}}
    spec = TrialSpec("s", 1, 1, "w", {}, 1, evaluate=Evaluation("heldout", odd))
    assert decode(TrialSpec, encode(spec)) == spec
    outcome = Outcome(OutcomeKind.COMPLETED, scores={"perplexity": float("inf"), "loss": 1.5})
    assert decode(Outcome, encode(outcome)) == outcome
    assert Outcome(OutcomeKind.FAILED, failure=FailureKind.PASSING).resumable


def test_a_launch_job_has_a_run_of_its_own_and_sees_the_room_as_jobs_do(tmp_path: Path) -> None:
    words = ("queue=launch_local_process", "evaluate=heldout", "queue.room=/mnt/s", "wandb.entity=e")
    settings = replace(composed(*words), created=1.0)
    room = room_with_a_trial(tmp_path, settings)
    spec = evaluation_spec(settings, room, AttemptId(3, 1, "w0001"))
    assert spec.evaluate is not None
    assert spec.evaluate.adapter == "/mnt/s/s/trials/00003/2/adapter"
    assert spec.tracking is not None
    assert spec.tracking.run != run_id(settings, 3)
    assert (spec.tracking.init["group"], spec.tracking.init["job_type"]) == ("s", "evaluation")
    inner = evaluation_settings(settings)
    assert run_of(inner, "w0001", [spec]) == spec.tracking.run
    job = payload(inner, evaluations_room(room), "w0001", [spec], False)[JOB_KEY]
    assert (job["room"], job["options"]["slots"]) == ("/mnt/s/s/evaluations", 1)
    several = replace(settings, queue=replace(settings.queue, trials_per_worker=None))
    assert run_of(evaluation_settings(several), "w0001", [spec]) != run_of(several, "w0001", [spec])


def test_in_an_object_store_the_job_is_told_where_the_adapter_lies_there(tmp_path: Path) -> None:
    words = ("queue=launch_local_process", "queue.room=s3://b/sweeps/", "evaluate=heldout", "wandb.entity=e")
    settings = replace(composed(*words), created=1.0)
    room = room_with_a_trial(tmp_path, settings)
    spec = evaluation_spec(settings, room, AttemptId(3, 1, "w0001"))
    assert spec.evaluate is not None
    assert spec.evaluate.adapter == "s3://b/sweeps/s/trials/00003/2/adapter"
    job = payload(evaluation_settings(settings), evaluations_room(room), "w0001", [spec], False)[JOB_KEY]
    assert job["room"] == f"{settings.store_url}/evaluations", "where `StoreChannel.within` looks"


def test_an_adapter_is_fetched_from_a_store_whole_or_said_to_be_absent(tmp_path: Path) -> None:
    url = (tmp_path / "store").as_uri()
    store = open_store(f"{url}/trials/00003/2/adapter")
    asked = Evaluation("heldout", adapter=f"{url}/trials/00003/2/adapter")
    with pytest.raises(FileNotFoundError, match="there is no adapter in file://"):
        fetch_adapter(asked, tmp_path / "to")
    store.put("adapter_config.json", b"{}")
    store.put("adapter_model.safetensors", b"weights")
    found = fetch_adapter(asked, tmp_path / "to")
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": b"weights",
    }


def test_where_wandb_is_all_that_is_shared_the_job_fetches_an_artifact(tmp_path: Path) -> None:
    words = ("queue=launch_local_process", "queue.channel=wandb", "evaluate=heldout", "wandb.entity=e")
    settings = replace(composed(*words), created=1.0)
    spec = evaluation_spec(settings, room_with_a_trial(tmp_path, settings), AttemptId(3, 1, "w0001"))
    assert spec.evaluate is not None
    assert (spec.evaluate.adapter, spec.evaluate.artifact) == ("", "e/sweep/s-adapter:trial-3")
    assert spec.tracking is not None
    assert spec.tracking.checkpoint, "its outcome comes back through its run"


def test_the_sweep_that_evaluates_has_one_worker_and_no_budget() -> None:
    settings = composed("evaluate=heldout", "search.trials=3", "search.target=1.0", "queue.workers=4", "queue.slots=4")
    inner = evaluation_settings(settings)
    limits = inner.limits(1)
    assert (limits.trials, limits.target, limits.slots, limits.max_failure_share) == (None, None, 1, 1.0)
    assert limits.max_attempts == settings.search.max_attempts
    assert (inner.queue.workers, inner.queue.threads) == (1, 1)
    assert inner.name != settings.name, "jobs and runs are named after it"


def test_lm_eval_runs_on_the_trial_s_own_model_without_its_adapter() -> None:
    trial = composed("evaluate=none").torchtune
    made = lm_eval_config({**trial, "tokenizer": {"_component_": "t", "max_seq_len": 64}}, {"tasks": ["a"], "limit": 2})
    assert made["model"]["_component_"] == "torchtune.models.llama3.llama3"
    assert not {"lora_rank", "lora_alpha", "lora_attn_modules"} & set(made["model"])
    assert (made["tokenizer"]["max_seq_len"], made["max_seq_length"]) == (None, trial["model"]["max_seq_len"])
    assert (made["tasks"], made["limit"]) == (["a"], 2)


class Wandb:
    """Runs as W&B shows them; asked for an adapter, it fails the test."""

    def __init__(self, facts: ObservedRun) -> None:
        self.facts = facts

    def runs(self, ids: Sequence[str]) -> Mapping[str, ObservedRun]:
        return {self.facts.id: self.facts}

    def fetch_adapter(self, name: str, directory: str) -> None:
        raise AssertionError("an evaluation has no adapter of its own")


def test_scores_come_back_through_wandb_where_that_is_all_that_is_shared(tmp_path: Path) -> None:
    words = ("queue=launch_local_process", "queue.channel=wandb", "evaluate=heldout", "wandb.entity=e")
    settings = replace(composed(*words), created=1.0)
    spec = evaluation_spec(settings, room_with_a_trial(tmp_path, settings), AttemptId(3, 1, "w0001"))
    assert spec.tracking is not None
    outcome = Outcome(OutcomeKind.COMPLETED, scores={"loss": 1.5})
    said = json.dumps({"attempt": 1, "worker": "w0001", "outcome": encode(outcome)})
    facts = ObservedRun(
        spec.tracking.run, "finished", sweep={"attempt": 1, "worker": "w0001"}, summary={OUTCOME_KEY: said}
    )
    api: Any = Wandb(facts)
    evaluations, runs = Room(tmp_path / "s" / "evaluations"), Runs(api, 0.0)
    evaluations.root.mkdir()
    channel = WandbChannel(evaluations, RoomChannel(evaluations), api, runs, lambda run: None)
    channel.assign(spec)
    channel.observe([3], ["w0001"])
    runs.look()
    attempts, _ = channel.observe([3], ["w0001"])
    assert attempts[3][0].outcome == outcome


# --- scores of programs --------------------------------------------------------------------------------------------

TABLE = """
INFO: |not|a|table|
|   Tasks   |Version|Filter|n-shot|Metric|   |Value |   |Stderr|
|-----------|------:|------|-----:|------|---|-----:|---|-----:|
|arc_easy   |      1|none  |     0|acc   |↑  |0.7500|±  |0.0971|
|           |       |none  |     0|acc_norm|↑|0.5000|±  |0.1147|
| - inner   |      2|none  |     0|ppl   |↓  |  12.5|±  |   N/A|
done
"""


def test_scores_are_read_from_json_or_else_from_tables(tmp_path: Path) -> None:
    assert table_scores(TABLE) == {"arc_easy/acc": 0.75, "arc_easy/acc_norm": 0.5, "inner/ppl": 12.5}
    assert numbers({"a": {"acc,none": 1, "on": True, "text": "x"}, "b": 2.5}) == {"a/acc": 1.0, "b": 2.5}
    said, output = tmp_path / "said", tmp_path / "out.json"
    said.write_text(TABLE)
    assert read_scores(output, said)["arc_easy/acc"] == 0.75
    output.write_text('{"results": {"t": {"f1": 0.1}}, "config": {"seed": 1}}')
    assert read_scores(output, said) == {"t/f1": 0.1}
    output.write_text("[]")
    with pytest.raises(EvaluationError, match="has no score"):
        read_scores(output, said)
    output.write_text("{")
    with pytest.raises(EvaluationError, match="no JSON"):
        read_scores(output, said)


def test_only_known_placeholders_are_filled() -> None:
    assert fill_placeholders(["{a}/x", '{"b": "{a}"}', "{c}"], {"a": "1"}) == ["1/x", '{"b": "1"}', "{c}"]
    assert fill_placeholders(["{a} {b}"], {"a": "/{b}/x", "b": "\\1"}) == ["/{b}/x \\1"]


# --- which trials ----------------------------------------------------------------------------------------------------


def test_the_newest_winner_comes_first_and_each_once(tmp_path: Path) -> None:
    room, winners = Room(tmp_path), [0, 2]
    study = EvaluationStudy(room, lambda: winners)
    assert not study.facts().exhausted
    assert study.ask() == 2
    assert EvaluationStudy(room, lambda: winners).facts().open == (2,), "what was asked is known to the next controller"
    winners.append(5)
    assert [study.ask(), study.ask()] == [5, 0]
    assert study.facts().exhausted
    study.tell(Tell(2, Ending.COMPLETE, ""), 0)
    study.tell(Tell(5, Ending.FAIL, "why"), 0)
    study.tell(Tell(2, Ending.FAIL, "late"), 0)
    for known in (study, EvaluationStudy(room, lambda: winners)):
        facts = known.facts()
        assert (facts.open, facts.complete, facts.failed) == ((0,), 1, 1)
    assert read_ending(room, 5) == EvaluationEnding(Ending.FAIL, "why")


def test_what_a_person_stopped_in_wandb_is_not_judged_again(tmp_path: Path) -> None:
    study = EvaluationStudy(Room(tmp_path), lambda: [1])
    study.ask()
    study.tell(Tell(1, Ending.FAIL, "it was stopped in W&B", cancelled=True), 0)
    for known in (study, EvaluationStudy(Room(tmp_path), lambda: [1])):
        assert known.facts().exhausted
        assert known.facts().open == ()


# --- in turn ---------------------------------------------------------------------------------------------------------


class World:
    """A queue, a channel and a clock: a worker is ready at once, and ends an attempt when it is told to."""

    def __init__(self, bad: bool = False) -> None:
        self.time, self.bad = 0.0, bad
        self.jobs: dict[str, Job] = {}
        self.attempts: dict[int, dict[int, ObservedAttempt]] = {}
        self.drained: set[str] = set()
        self.finished: set[int] = set()

    def start(self, workers: Sequence[WorkerSpec]) -> None:
        if self.bad:
            raise GiveUp("the queue refuses")
        self.jobs |= {worker.name: Job(worker.place, JobState.RUNNING) for worker in workers}

    def poll(self) -> Mapping[str, Job]:
        for name in self.drained:
            busy = any(a.worker == name and a.outcome is None for t in self.attempts.values() for a in t.values())
            if not busy:
                self.jobs[name] = replace(self.jobs[name], state=JobState.GONE)
        return self.jobs

    def cancel(self, workers: Sequence[str]) -> None:
        self.jobs |= {name: replace(self.jobs[name], state=JobState.GONE) for name in workers}

    def preview(self, workers: Sequence[WorkerSpec]) -> str:
        return ""

    def assign(self, spec: TrialSpec) -> None:
        attempt = ObservedAttempt(spec.attempt, spec.worker, True, True, None, "", None, ())
        self.attempts.setdefault(spec.trial, {})[spec.attempt] = attempt

    def stop(self, trial: int, attempt: int, cause: StopCause, reason: str) -> None:
        stopped = Outcome(OutcomeKind.STOPPED, reason, cause=cause)
        self.attempts[trial][attempt] = replace(self.attempts[trial][attempt], stop=cause, outcome=stopped)

    def drain(self, worker: str) -> None:
        self.drained.add(worker)

    def forget(self, trial: int) -> None:
        pass

    def observe(
        self, trials: Sequence[int], workers: Sequence[str]
    ) -> tuple[dict[int, list[ObservedAttempt]], dict[str, ObservedWorker]]:
        for trial in self.finished & set(self.attempts):
            number, attempt = max(self.attempts[trial].items())
            if attempt.outcome is None:
                self.attempts[trial][number] = replace(attempt, outcome=Outcome(OutcomeKind.COMPLETED))
        found = {trial: list(self.attempts.get(trial, {}).values()) for trial in trials}
        return found, {name: ObservedWorker(name, "1", 0, name in self.drained) for name in workers}

    def wait(self, clock: Any, seconds: float) -> None:
        self.time += seconds

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class Notes:
    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.errors: list[str] = []

    def reported(self, trial: int, report: Report) -> None:
        pass

    def done(self, effect: Effect) -> None:
        self.effects.append(effect)

    def waited(self, view: View) -> None:
        pass

    def promoted(self, promotion: Promotion) -> None:
        pass

    def round_failed(self, message: str) -> None:
        self.errors.append(message)


class Turns:
    """A sweep's controller and that of its evaluations over two made-up worlds."""

    def __init__(self, tmp_path: Path, waits: bool, bad: bool = False) -> None:
        self.mode = Mode.RUN
        self.trials, self.judges = World(), World(bad)
        self.log, self.notes = Notes(), Notes()
        self.study = EvaluationStudy(Room(tmp_path / "main"), lambda: [0, 1])  # two trials to train, and then to judge
        self.evaluation_mode = EvaluationMode(lambda: self.mode)
        self.evaluations = EvaluationStudy(Room(tmp_path / "evaluations"), lambda: sorted(self.won()))
        main = self.controller(self.study, self.trials, self.log, lambda: self.mode)
        self.combined = CombinedController(
            main,
            self.controller(self.evaluations, self.judges, self.notes, self.evaluation_mode),
            self.evaluation_mode,
            waits,
        )

    def won(self) -> set[int]:
        return {number for number in (0, 1) if read_ending(self.study.room, number)}

    def controller(self, study: EvaluationStudy, world: World, notes: Notes, mode: Any) -> Controller:
        def spec(trial: int, attempt: int, worker: str) -> TrialSpec:
            return TrialSpec("s", trial, attempt, worker, {}, 1)

        limits = Limits(workers=1, max_failure_share=1.0)
        return Controller(Ports(study, world, world, world), limits, spec, notes, mode, 0.0)


def asked_before_the_trials_ended(turns: Turns) -> bool:
    for _ in range(30):
        turns.combined.trials.round()
        turns.combined.evaluation_round(False)
        turns.trials.finished.add(1)  # the newer one ends at once, the other trains on
    return any(isinstance(effect, Ask) for effect in turns.notes.effects)


@pytest.mark.parametrize("waits", [False, True])
def test_evaluations_wait_for_the_trials_only_where_they_share_gpus(tmp_path: Path, waits: bool) -> None:
    turns = Turns(tmp_path, waits)
    assert asked_before_the_trials_ended(turns) is not waits
    turns.trials.finished = turns.judges.finished = {0, 1}
    assert turns.combined.run().how is Finished.DONE
    assert turns.evaluations.facts().complete == 2, "the sweep ends once they have"


def test_a_failure_of_the_evaluations_never_ends_the_sweep_and_is_reported_once(tmp_path: Path) -> None:
    turns = Turns(tmp_path, waits=False, bad=True)
    turns.trials.finished = {0, 1}
    assert turns.combined.run().how is Finished.DONE
    assert turns.study.facts().complete == 2
    assert turns.notes.errors == ["GiveUp: the queue refuses; `sweep resume` starts evaluations again"]


@pytest.mark.parametrize(
    ("mode", "how"),
    [
        (Mode.STOP, Finished.STOPPED),
        (Mode.CANCEL, Finished.CANCELLED),
        (Mode.DETACH, Finished.DETACHED),
        (Mode.HANDOVER, Finished.HANDED_OVER),
    ],
)
def test_a_requested_mode_ends_evaluations_too_and_a_later_controller_goes_on(
    tmp_path: Path, mode: Mode, how: Finished
) -> None:
    turns = Turns(tmp_path, waits=False)
    turns.trials.finished = {0, 1}
    while not any(isinstance(effect, Assign) for effect in turns.notes.effects):
        turns.combined.trials.round()
        turns.combined.evaluation_round(False)
    while turns.study.facts().complete < 2:
        turns.combined.trials.round()
    turns.mode = mode
    assert turns.combined.run().how is how
    assert turns.evaluations.facts().open
    turns.mode = Mode.RUN
    turns.judges.finished = {0, 1}
    assert turns.combined.run().how is Finished.DONE
    assert turns.evaluations.facts().complete == 2


def test_a_finish_that_the_evaluations_alone_leave_open_says_so(tmp_path: Path) -> None:
    turns = Turns(tmp_path, waits=False)
    turns.trials.finished = {0, 1}
    for _ in range(30):
        turns.combined.trials.round()
        turns.combined.evaluation_round(False)
    turns.mode = Mode.STOP
    assert turns.combined.run() == Finish(
        Finished.STOPPED, "the trials have ended, their evaluations go on with `sweep resume`"
    )


# --- what a person sees ----------------------------------------------------------------------------------------------


def test_an_evaluation_s_state_is_read_from_its_room(tmp_path: Path) -> None:
    room = Room(tmp_path)
    evaluations = evaluations_room(room)
    study = EvaluationStudy(evaluations, lambda: [4])
    study.ask()
    assert read_evaluation(room, 4).state == "waiting"
    write_atomic(evaluations.attempt(4, 1).spec, "{}")
    write_atomic(evaluations.attempt(4, 1).reports, "")
    assert read_evaluation(room, 4).state == "running"
    write_atomic(evaluations.attempt(4, 1).outcome, encode(Outcome(OutcomeKind.COMPLETED, scores={"loss": 2.0})))
    study.tell(Tell(4, Ending.COMPLETE, ""), 0)
    assert (read_evaluation(room, 4).state, read_evaluation(room, 4).scores) == ("complete", {"loss": 2.0})
