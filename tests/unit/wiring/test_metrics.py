"""The metrics of a configuration: what is composed by itself, what is frozen, and what is refused in one sentence."""

from __future__ import annotations

import copy
import functools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from sweep.config.grammar import parse_value
from sweep.config.metrics import SOURCES, Generate, constraints_of, metric_of, read_metric
from sweep.config.overrides import section_of
from sweep.config.section_reader import read_section
from sweep.config.sections import SECTIONS
from sweep.config.settings import Settings, settings_from_json
from sweep.errors import ConfigError
from sweep.model.identifiers import AttemptId
from sweep.model.objectives import Direction, Objective, Spread
from sweep.resources import conf_dir
from sweep.wiring.compose import check, compose_config, freeze
from sweep.wiring.metric_definitions import check_metrics, compose_metrics, metric_names
from sweep.wiring.specifications import spec_factory, trial_spec
from trainer.contract import TrialSpec, decode, encode

EXACT = "objective.metrics.exact_match.direction=maximize"
# What a shipped file leaves to the user.
MORE = {
    "command": [f"metric.command.command=[{sys.executable},score.py]"],
    "lm_eval": ["metric.lm_eval.tasks=[hellaswag]"],
    "logged": ["wandb.hook=my.hook", "recipe.components=[my]"],
    "regex": [r"metric.regex.pattern='\d+'"],
}


def settings(*words: str, config_dir: Path | None = None) -> Settings:
    return freeze(compose_config(list(words), config_dir), "s", config_dir).settings


@functools.cache
def plain() -> tuple[DictConfig, Settings]:
    """A composition without metrics, and its settings."""
    cfg = compose_config([])
    return cfg, freeze(cfg, "s").settings


def changed(*words: str) -> Settings:
    """The same with these words, in which only what concerns metrics is checked: Hydra takes its time."""
    cfg = copy.deepcopy(plain()[0])
    for word in words:
        key, _, text = word.partition("=")
        OmegaConf.update(cfg, key, parse_value(text).value(), merge=False, force_add=True)
    sections: dict[str, Any] = {
        name: read_section(kind, section_of(cfg, name), name) for name, kind in SECTIONS.items()
    }
    sections |= {"recipe": replace(plain()[1].recipe, components=sections["recipe"].components)}
    found = replace(plain()[1], **sections, metrics=compose_metrics(cfg, None))
    check_metrics(found)
    return found


@pytest.mark.parametrize("name", [name for name in metric_names() if name != "lm_eval"])
def test_every_shipped_metric_is_composed_by_its_name(name: str) -> None:
    found = changed(f"objective.metrics.{name}.direction=maximize", *MORE.get(name, []))
    assert found.metric == name
    assert found.objectives[0].direction is Direction.MAXIMIZE
    assert [metric.name for metric in found.measured] == [name]


def test_every_source_has_a_shipped_metric() -> None:
    files = [path.read_text() for path in (conf_dir() / "metric").glob("*.yaml")]
    assert {line.removeprefix("source: ") for text in files for line in text.splitlines() if "source: " in line} == set(
        SOURCES
    )


def test_a_metric_is_laid_over_its_file_and_one_without_a_file_is_defined_whole(tmp_path: Path) -> None:
    (tmp_path / "metric").mkdir()
    (tmp_path / "metric" / "mine.yaml").write_text("source: generate\nscore: f1\nrows: ${objective.milestones}\n")
    (tmp_path / "metric" / "f1.yaml").write_text("source: generate\nscore: f1\nrows: 7\n")
    found = settings(EXACT, "metric.exact_match.rows=32", "metric.mine.every=3", "metric.f1={}", config_dir=tmp_path)
    sections = found.metrics
    assert [sections[name].rows for name in ("exact_match", "mine", "f1")] == [32, 12, 7]  # type: ignore[attr-defined]
    assert found.objectives == (Objective("exact_match", Direction.MAXIMIZE, Spread.SHARE, rows=32),)
    own = changed("objective.metrics.style.direction=minimize", "metric.style.source=run")
    assert own.objectives == (Objective("style", Direction.MINIMIZE, Spread.POSITIVE),)


def test_words_of_a_command_line_reach_metrics_without_a_plus() -> None:
    found = settings("objective.metrics={exact_match: {direction: maximize}}", "metric.exact_match.data=null")
    assert found.metric == "exact_match"
    with pytest.raises(ConfigError, match=r"objective.metrics.f1.direction=up is not allowed"):
        settings("objective.metrics.f1.direction=up")


@pytest.mark.parametrize("name", ["loss", "val_loss"])
def test_a_loss_by_name_is_the_sweep_that_minimises_it(name: str) -> None:
    found = changed(f"objective.metrics.{name}.direction=minimize")
    assert found.objectives == changed(f"objective.metric={name}").objectives == (Objective(name),)
    assert found.measured == ()


def test_a_frozen_sweep_is_what_it_was_and_one_without_metrics_has_no_new_key() -> None:
    found = settings(EXACT, "metric.f1.at=[4,8]", "objective.constraints.peak_memory_gib='<= 20'")
    again = settings_from_json(json.loads(json.dumps(found.to_json())), "sweep.json")
    assert (again.objectives, again.measured, again.constraints) == (
        found.objectives,
        found.measured,
        found.constraints,
    )
    check(again)
    bare = plain()[1].to_json()
    assert "metrics" not in bare
    assert set(bare["objective"]) == {"metric", "milestones", "milestone_tokens"}
    assert settings_from_json(bare, "sweep.json").objectives == (Objective("val_loss"),)


def test_a_target_of_a_maximised_metric_is_reached_from_below() -> None:
    assert changed(EXACT, "search.target=0.5").limits(1).target == -0.5
    assert changed("search.target=0.5").limits(1).target == 0.5
    assert Objective("em", Direction.MAXIMIZE).reaches(0.5, 0.5)
    assert not Objective("em").reaches(0.6, 0.5)


def test_a_trial_is_given_the_metrics_and_the_first_one_the_base(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "1+1", "reference": "2"}\n')
    words = [EXACT, f"metric.exact_match.data={data}", "metric.perplexity={}"]
    found = replace(changed(*words), directory="/sweeps")
    spec = trial_spec(found, {}, AttemptId(0, 1, "w0001"), measure_base=True)
    assert [metric.name for metric in spec.metrics] == ["exact_match", "perplexity"]
    assert spec.metrics[0].options["data"] == str(data)
    assert spec.measure_base
    assert decode(TrialSpec, encode(spec)).metrics == spec.metrics
    build = spec_factory(found, lambda trial: {}, lambda trial: None, measures_base=lambda trial: trial == 2)
    assert [build(trial, 1, "w0001").measure_base for trial in (1, 2)] == [False, True]
    assert not trial_spec(plain()[1], {}, AttemptId(0, 1, "w0001"), measure_base=True).measure_base


def test_relative_data_and_a_file_of_scores_mean_the_directory_of_the_first_command() -> None:
    section = Generate(data="rows.jsonl", score="judge.py:grade")
    options = metric_of("em", section, "/first").options
    assert (options["data"], options["score"]) == ("/first/rows.jsonl", "/first/judge.py:grade")
    assert metric_of("em", Generate(score="pkg.judge:grade"), "/first").options["score"] == "pkg.judge:grade"
    assert set(options) == {
        *("data", "prompt", "reference", "rows", "max_new_tokens", "temperature", "top_k", "seed"),
        *("score", "pattern", "seconds"),
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["objective.metrics.exact_mach.direction=maximize"], "no metric exact_mach (did you mean exact_match?)"),
        (["objective.metrics.exact_match={}"], "objective.metrics.exact_match has no direction; set"),
        (["objective.metrics.exact_match=maximize"], "objective.metrics.exact_match has no direction; set"),
        (
            ["objective.metrics.exact_match.direction=up"],
            "direction=up is not allowed; it must be minimize",
        ),
        ([EXACT, "objective.metrics.exact_match.rows=3"], "exact_match.rows is no key of an objective"),
        (["objective.metrics.val_loss.direction=maximize"], "the metric is a loss; it must be minimize"),
        ([EXACT, "objective.metric=val_loss"], "objective.metric=val_loss is not allowed beside objective.metrics"),
        ([EXACT, "objective.metrics.f1.direction=maximize"], "objective.metrics has 2 metrics (exact_match, f1)"),
        (["objective.metrics={1a: {direction: maximize}}"], "1a can be no metric's name"),
        (["objective.constraints.peak_memory_gib=20"], "objective.constraints.peak_memory_gib=20 is no bound"),
        (["objective.constraints.peak_memory_gib='<= a'"], "peak_memory_gib=<= a is no bound; it must be a comparison"),
        (["objective.constraints.nothing='<= 1'"], "there is no metric nothing"),
        (["metric.x.rows=3"], "metric.x: there is no metric x"),
        (["metric.x.source=guess"], "metric.x.source=guess is not allowed; it must be validation or run"),
        ([EXACT, "metric.exact_match.row=3"], "metric.exact_match: there is no key row (did you mean rows?)"),
        ([EXACT, "metric.exact_match.rows=0"], "metric.exact_match.rows=0 is not allowed; it must be at least 1"),
        ([EXACT, "metric.exact_match.rows=many"], "metric.exact_match.rows"),
        ([EXACT, "metric.exact_match.at=[13]"], "names milestone 13; a trial has objective.milestones=12"),
        ([EXACT, "metric.exact_match.every=0"], "metric.exact_match.every=0 is not allowed"),
        ([EXACT, "metric.exact_match.score=my:f"], "is code of your own; add my to recipe.components"),
        ([EXACT, "metric.exact_match.score='a/judge.py:f'"], "add judge to recipe.components"),
        (
            [EXACT, "metric.exact_match.score=guess"],
            "exact_match.score=guess is not allowed; it must be exact_match",
        ),
        (["metric.regex={}"], "metric.regex.pattern is not set"),
        (["metric.regex.pattern='('"], "metric.regex.pattern=( is not allowed; it must be a regular expression"),
        ([EXACT, "metric.exact_match.data=absent.jsonl"], "data=absent.jsonl is no file; name a JSON-lines file"),
        ([EXACT, "metric.exact_match.data={source: json}"], "is no data set; it must have a _component_"),
        ([EXACT, "metric.exact_match.data={_component_: os.system}"], "os.system"),
        (["metric.command={}"], "metric.command.command=None is no command; write its words"),
        (["metric.command.command='true {nothing}'"], "{nothing} is no placeholder"),
        (["metric.logged={}"], "metric.logged.source=logged needs a function that returns the number: set wandb.hook"),
        (["metric.lm_eval={}"], "metric.lm_eval.tasks is empty"),
        (["metric.loss.source=run"], "metric.loss needs no definition"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        changed(*words)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_needs_validation_data_says_so() -> None:
    without = {key: value for key, value in plain()[1].torchtune.items() if key != "dataset_val"}
    bare = replace(changed(EXACT), torchtune=without)
    with pytest.raises(ConfigError, match=r"metric.exact_match needs prompts with references: set metric"):
        check(bare)
    other = replace(
        settings("metric.perplexity={}"), torchtune=bare.torchtune, objective=settings("objective=loss").objective
    )
    with pytest.raises(ConfigError, match=r"metric.perplexity.measure=perplexity needs validation data"):
        check_metrics(other)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no rows"),
        ("[1]\n", "line 1 is no JSON object"),
        ('{"prompt": "a", "reference": "b"}\n\nnot json\n', "line 3 is no JSON object"),
        ('{"question": "a", "answer": "b"}\n', "line 1 has no prompt under 'prompt'; it has question, answer"),
        ('{"prompt": "a"}\n', "line 1 has no reference under 'reference'"),
        ('{"prompt": "a", "reference": null}\n', "has no reference"),
        ("\xff", "is no UTF-8"),
    ],
)
def test_data_without_references_are_refused_before_any_job(text: str, said: str, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as error:
        changed(EXACT, f"metric.exact_match.data={data}")
    assert said in str(error.value)
    assert "metric.exact_match" in str(error.value)


def test_a_score_that_compares_with_nothing_needs_no_reference(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"q": "a"}\n')
    words = [f"metric.json_valid.data={data}", "metric.json_valid.prompt=q"]
    assert changed("objective.metrics.json_valid.direction=maximize", *words).metric == "json_valid"


@pytest.mark.parametrize("text", ["<= 20", ">=0.5", "< -1e-3", "> 4."])
def test_a_bound_is_read(text: str) -> None:
    (constraint,) = constraints_of({"peak_memory_gib": text})
    assert text.replace(" ", "").startswith(constraint.comparison)
    assert str(constraint) == f"peak_memory_gib {constraint.comparison} {constraint.bound:g}"


def test_a_definition_without_a_source_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"metric.x.source is not set; it must be validation or run or generate"):
        read_metric("x", {})
