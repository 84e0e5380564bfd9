"""What a sweep's runs are called in W&B and how they begin: from the settings alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sweep.config.settings import Settings
from sweep.errors import ConfigError
from sweep.model.identifiers import AttemptId
from sweep.queues.launch.jobs import payload
from sweep.tracking import runs
from sweep.tracking.runs import WandbLocation
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.specifications import trial_spec
from trainer.room import Room

OLD = "torchtune.utils.metric_logging.WandBLogger"
NEW = "torchtune.training.metric_logging.WandBLogger"


@cache
def composed(*words: str) -> Settings:
    return freeze(compose_config(["experiment=demo", *words]), "s").settings


def settings(*words: str, logger: dict[str, Any] | None = None, **more: Any) -> Settings:
    found = replace(composed(*words), created=1.5, **more)
    return replace(found, torchtune={**found.torchtune, **({"metric_logger": logger} if logger else {})})


def launch(*words: str) -> Settings:
    return settings("queue=launch_local_process", "wandb.entity=team", *words)


# --- the recipe's own logger -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [OLD, NEW])
def test_the_recipe_s_own_wandb_logger_keeps_meaning_what_it_says(path: str) -> None:
    logger = {"_component_": path, "project": "theirs", "entity": "team", "group": "g", "name": "run", "notes": "why"}
    found = settings(logger={**logger, "tags": ["a"], "log_dir": "/logs", "dir": "/logs"})
    assert runs.mode(found, {}) == "online"
    assert runs.wandb_location(found) == WandbLocation("team", "theirs", "g")
    init = runs.init_arguments(found, "s-7", "trial")
    assert init == {
        "project": "theirs",
        "entity": "team",
        "group": "g",
        "name": "run-s-7",
        "notes": "why",
        "tags": ["a"],
        "job_type": "trial",
    }, "where its files lie is the room's matter"


@pytest.mark.parametrize("path", [OLD, NEW])
def test_the_logger_s_project_is_torchtune_s_default(path: str) -> None:
    assert runs.wandb_location(settings(logger={"_component_": path})) == WandbLocation(None, "torchtune", "s")


def test_the_sweep_s_own_words_come_before_the_logger_s() -> None:
    words = ["wandb.project=ours", "wandb.entity=we", "wandb.group=h", "wandb.tags=[b]", "wandb.init={notes: so}"]
    logger = {
        "_component_": NEW,
        "project": "theirs",
        "entity": "team",
        "group": "g",
        "notes": "why",
        "tags": ["a", "b"],
    }
    found = settings(*words, logger=logger)
    assert runs.wandb_location(found) == WandbLocation("we", "ours", "h")
    init = runs.init_arguments(found, "s-7", "trial")
    assert (init["notes"], init["tags"], init["name"]) == ("so", ["a", "b"], "s-7")


@pytest.mark.parametrize("logger", [{"_component_": "torchtune.training.metric_logging.DiskLogger"}, {}])
def test_another_logger_tracks_nothing(logger: dict[str, Any]) -> None:
    found = settings(logger=logger)
    assert runs.logger_arguments(found.torchtune) is None
    assert runs.mode(found, {"WANDB_MODE": "online"}) == "disabled"
    assert runs.tracking_of(found, 7, {}) is None


# --- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "logger", "env", "mode"),
    [
        ((), {"_component_": NEW}, {}, "online"),
        ((), {"_component_": NEW}, {"WANDB_MODE": "offline"}, "offline"),
        ((), {"_component_": NEW, "mode": "disabled"}, {"WANDB_MODE": "offline"}, "disabled"),
        (("queue.offline=true",), {"_component_": NEW}, {}, "offline"),
        (("queue.offline=true",), {"_component_": NEW, "mode": "disabled"}, {}, "disabled"),
        (("wandb=offline",), {"_component_": NEW}, {"WANDB_MODE": "online"}, "offline"),
        (("wandb=disabled",), {"_component_": NEW}, {}, "disabled"),
        (("wandb=online",), None, {}, "online"),
        (("wandb=online", "queue.offline=true"), None, {}, "online"),
        (("queue=launch_local_process",), None, {}, "online"),
    ],
)
def test_mode(words: tuple[str, ...], logger: dict[str, Any] | None, env: dict[str, str], mode: str) -> None:
    assert runs.mode(settings(*words, logger=logger), env) == mode


# --- ids -------------------------------------------------------------------------------------------------------------


def test_a_run_s_id_is_the_sweep_s_and_the_trial_s_and_nothing_else_s() -> None:
    found = settings("wandb=online")
    assert runs.run_id(found, 7) == runs.run_id(replace(found, trial_tokens=9), 7)
    others = [replace(found, name="t"), replace(found, created=2.5)]
    ids = [runs.run_id(one, 7) for one in (found, *others)] + [runs.run_id(found, 8)]
    assert len(set(ids)) == 4
    assert all(one.startswith(f"{sweep}-") for one, sweep in zip(ids, ["s", "t", "s", "s"], strict=True))
    assert ids[0].endswith("-00007")


def test_a_run_that_was_asked_to_stop_is_not_gone_on_in() -> None:
    found = settings("wandb=online")
    first = runs.run_id(found, 7)
    second = runs.run_id(found, 7, {first})
    third = runs.run_id(found, 7, {first, second, "another"})
    assert (second, third) == (f"{first}-2", f"{first}-3")
    assert runs.run_id(found, 7, {"another"}) == first


def test_names_are_what_wandb_takes() -> None:
    found = replace(settings("wandb=online"), name="größe & ähnlich/" + "x" * 80)
    run = runs.run_id(found, 7)
    assert run.isascii()
    assert len(run) <= 64
    assert not set(run) & set(" /&")
    assert runs.adapter_name(replace(found, name="a b")) == "a-b-adapter"
    assert runs.worker_run_id(found, "w0001").endswith("-w0001")


@pytest.mark.parametrize("name", ["llama3_2_1b_alpaca-1", "_a.b", "__", "x" * 80, "größe", "a" * 39 + "_b"])
def test_a_sagemaker_job_s_run_has_a_name_that_a_training_job_may_have(name: str) -> None:
    found = settings("queue=launch_sagemaker", "queue.variables={role: r, bucket: b}", name=name)
    trial = runs.run_id(found, 7)
    ids = [trial, runs.run_id(found, 7, {trial})]
    ids += [runs.worker_run_id(found, worker) for worker in ("w0003", "controller-1234")]
    for one in ids:
        assert re.fullmatch("[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", one), one
        assert len(one) <= 63
    assert len(set(ids)) == 4
    assert runs.run_id(replace(found, created=2.5), 7) != trial


def test_runs_of_sweeps_that_there_are_keep_their_ids() -> None:
    """As the version before it gave them: a room remembers its sweep's name and creation, and no id."""
    sagemaker = ("queue=launch_sagemaker", "queue.variables={role: r, bucket: b}")
    ids = [
        runs.run_id(settings("wandb=online", name="llama3_2.1"), 7),
        runs.run_id(replace(launch(), name="llama3_2.1"), 7, {"llama3_2.1-cc43fe11-00007"}),
        runs.worker_run_id(settings(*sagemaker, name="demo--" + "x" * 33 + "-" * 60 + "x"), "w0003"),
    ]
    assert ids == [
        "llama3_2.1-cc43fe11-00007",
        "llama3_2.1-cc43fe11-00007-2",
        "demo--xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx--633fabbf-w0003",
    ]


def test_more_first_trials_than_a_sagemaker_job_s_environment_holds_are_refused(rooms: Path) -> None:
    """Reckoned before there is a trial, held against what a job of so many trials is given."""
    words = ("experiment=demo", "queue=launch_sagemaker", "queue.variables={role: r, bucket: b}")
    with pytest.raises(
        ConfigError, match=r"queue.slots=16: .* 16 trials of this recipe do not fit; set it to \d+ at"
    ) as no:
        composed(*words, "queue.trials_per_worker=null", "queue.slots=16")
    most = int(str(no.value).split()[-3])

    def variables(slots: int) -> int:
        found = settings(*words, "queue.trials_per_worker=null", "queue.slots=2", trial_tokens=100_000)
        params = {"model.lora_rank": 8, "optimizer.lr": 1.2345678901234567e-4, "gradient_accumulation_steps": 4}
        specs = [trial_spec(found, params, AttemptId(number, 1, "w0001")) for number in range(slots)]
        text = json.dumps(payload(found, Room(rooms / "s"), "w0001", specs, True))
        return 16 + -(-len(text) // 512)

    assert variables(most) <= 100 < variables(16)
    composed(*words, "queue.trials_per_worker=null", f"queue.slots={most}")
    composed(*words, "queue.trials_per_worker=4", "queue.slots=16")
    composed(*words, "queue.trials_per_worker=null", "queue.slots=auto")
    with pytest.raises(ConfigError, match="do not fit"):
        variable = "queue.template.Environment={" + ", ".join(f"A{n}: x" for n in range(40)) + "}"
        composed(*words, "queue.trials_per_worker=null", f"queue.slots={most}", f"+{variable}")


# --- the tracking of a trial -----------------------------------------------------------------------------------------


def test_a_trial_s_tracking() -> None:
    found = settings(
        "wandb=online", "wandb.project=p", "wandb.entity=team", "wandb.tags=[lora]", "wandb.job_type=train"
    )
    said = runs.tracking_of(found, 7, {})
    assert said is not None
    assert said.run == runs.run_id(found, 7)
    assert (said.mode, said.adapter, said.hook, said.checkpoint) == ("online", "s-adapter", "", "")
    assert said.init == {
        "project": "p",
        "entity": "team",
        "group": "s",
        "name": "s-7",
        "job_type": "train",
        "tags": ["lora"],
    }


def test_without_artifacts_nothing_is_declared_or_uploaded() -> None:
    said = runs.tracking_of(
        settings("wandb=online", "wandb.artifacts=none"), 7, {"checkpointer": {"checkpoint_dir": "/b"}}
    )
    assert said is not None
    assert (said.adapter, said.inputs) == ("", {})


def test_inputs_are_the_base_and_the_data_by_reference() -> None:
    config = {
        "checkpointer": {"checkpoint_dir": "/models/Llama 3.2"},
        "dataset": [{"source": "json", "data_files": "/data/train.jsonl"}, {"source": "tatsu-lab/alpaca"}],
        "dataset_val": {"source": "org/held-out"},
    }
    assert runs.inputs_of(config) == {
        "base-Llama-3.2": {"type": "base-model", "uri": "file:///models/Llama%203.2"},
        "data-train.jsonl": {"type": "dataset", "uri": "file:///data/train.jsonl"},
        "data-alpaca": {"type": "dataset", "uri": "hf://datasets/tatsu-lab/alpaca"},
        "data-held-out": {"type": "dataset", "uri": "hf://datasets/org/held-out"},
    }
    assert runs.inputs_of({}) == {}


def test_only_where_wandb_is_all_they_share_a_checkpoint_travels_through_it() -> None:
    assert not launch().queue.reports_over_wandb
    alone = launch("queue.channel=wandb")
    assert alone.queue.reports_over_wandb
    first = runs.tracking_of(alone, 7, {})
    assert first is not None
    second = runs.tracking_of(alone, 7, {}, {first.run})
    assert second is not None
    assert first.run != second.run
    assert first.checkpoint == second.checkpoint == f"{first.run}-checkpoint", "a run of its own goes on from it too"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("wandb.init={id: x}",), r"wandb\.init\.id is set by the sweep; use wandb\.project"),
        (("wandb.init={project: x}",), r"wandb\.init\.project is set by the sweep"),
        (("wandb=disabled", "wandb.registry=best"), r"wandb\.registry=best needs W&B; set wandb=online"),
        (
            ("queue=launch_local_process", "wandb=offline"),
            r"wandb\.mode=offline, but a Launch queue's jobs are W&B runs",
        ),
        (
            ("queue=launch_local_process", "queue.channel=wandb", "wandb.artifacts=none"),
            r"wandb\.artifacts=none, but with queue\.channel=wandb",
        ),
        (("wandb=online", "wandb.hook=os.system"), r"wandb\.hook.*os\.system"),
    ],
)
def test_refusals(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        runs.check(settings(*words))


def test_a_hook_from_the_user_s_own_components_is_taken() -> None:
    said = settings("wandb=online", "wandb.hook=mine.metrics.norms", "recipe.components=[mine]")
    runs.check(said)
    found = runs.tracking_of(said, 7, {})
    assert found is not None
    assert found.hook == "mine.metrics.norms"
