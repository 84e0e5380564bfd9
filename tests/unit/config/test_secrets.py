"""Secrets that a configuration names never reach the room, W&B or a queue in clear."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sweep.config.resolvers import environment_stays
from sweep.config.secrets import check_environment, check_torchtune, check_wandb
from sweep.config.torchtune import resolve, resolve_here
from sweep.errors import ConfigError
from sweep.model.identifiers import AttemptId
from sweep.tracking.runs import inputs_of
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.specifications import trial_spec
from trainer.contract import encode

SECRET = "hf_a_value_that_nobody_may_read"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("ROWS", "3")
    monkeypatch.delenv("NOPE", raising=False)


@pytest.mark.parametrize(
    ("text", "resolved", "here"),
    [
        ("${oc.env:HF_TOKEN}", "${oc.env:HF_TOKEN}", SECRET),
        ("x-${oc.env:HF_TOKEN}", "x-${oc.env:HF_TOKEN}", f"x-{SECRET}"),
        ("${other}", "${oc.env:HF_TOKEN}", SECRET),
        ("${add:a,${other}}", "a${oc.env:HF_TOKEN}", f"a{SECRET}"),
        ("${oc.decode:${other}}", "${oc.env:HF_TOKEN}", SECRET),
        ("${oc.decode:${oc.env:ROWS}}", 3, 3),
        ("${mul:2,${oc.decode:${oc.env:ROWS}}}", 6, 6),
        ("${int:${oc.env:ROWS}}", 3, 3),
        ("${oc.env:NOPE,null}", "${oc.env:NOPE,null}", None),
        ("${oc.env:NOPE,some text}", '${oc.env:NOPE,"some text"}', "some text"),
        ("${oc.env:NOPE,3}", '${oc.env:NOPE,"3"}', "3"),
    ],
)
def test_a_resolved_configuration_refers_to_the_environment(text: str, resolved: Any, here: Any) -> None:
    config = {"value": text, "other": "${oc.env:HF_TOKEN}"}
    assert resolve(config, {}, {})["value"] == resolved
    assert resolve_here(config)["value"] == here


def test_outside_of_a_torchtune_configuration_omegaconf_reads_the_environment() -> None:
    cfg = OmegaConf.create({"a": "${oc.env:HF_TOKEN}", "b": "${oc.decode:${oc.env:ROWS}}"})
    assert (cfg.a, cfg.b) == (SECRET, 3)
    with environment_stays():
        assert (cfg.a, cfg.b) == ("${oc.env:HF_TOKEN}", 3)
    assert cfg.a == SECRET


def test_a_variable_that_is_not_set_here_is_named() -> None:
    with pytest.raises(ConfigError, match=r"a=.*NOPE is not set"):
        resolve_here({"a": "${oc.env:NOPE}"})


def test_an_escaped_interpolation_is_refused() -> None:
    """The check would see the escaped text, and torchtune resolve it."""
    with pytest.raises(ConfigError, match=r"model=torchtune\.\$\{evil\} still has"):
        resolve({"evil": "utils._device.os.system", "model": "torchtune.\\${evil}"}, {}, {})


def test_nothing_that_is_stored_or_sent_has_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "recipe.overrides.+dataset.token=${oc.env:HF_TOKEN}",
        "evaluate=heldout",
        "+evaluate.dataset={_component_: torchtune.datasets.alpaca_dataset, token: '${oc.env:HF_TOKEN}'}",
        "wandb=online",
        "search.trials=2",
    ]
    composed = freeze(compose_config(words), "x")
    spec = trial_spec(composed.settings, {}, AttemptId(0, 1, "w0001"))
    stored = json.dumps(composed.settings.to_json()) + encode(spec) + composed.recipe_text
    assert SECRET not in stored
    assert spec.config["dataset"]["token"] == "${oc.env:HF_TOKEN}"
    assert stored.count("${oc.env:HF_TOKEN}") >= 3


def test_paths_of_the_environment_are_no_inputs_of_a_run(tmp_path: Path) -> None:
    config = {
        "checkpointer": {"checkpoint_dir": "${oc.env:BASE}/x"},
        "dataset": [{"data_files": "${oc.env:DATA}"}, {"data_files": str(tmp_path / "a.json")}],
    }
    assert list(inputs_of(config)) == ["data-a.json"]


@pytest.mark.parametrize(
    "word",
    [
        "queue.env.TOKEN_OF_MINE=${oc.env:HF_TOKEN}",
        "queue.env.X=${oc.env:HF_TOKEN}",
        "+wandb.init.notes=${oc.env:HF_TOKEN}",
        "storage=postgresql://u:${oc.env:HF_TOKEN}@h/d",
    ],
)
def test_a_section_that_is_frozen_with_its_values_may_not_refer_to_a_secret(word: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(word.partition("=")[0].lstrip("+"))) as caught:
        freeze(compose_config([word, "search.trials=2"]), "x")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "my_token"])
def test_secrets_are_no_environment_of_a_queue(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"queue\.env\.{name} would be written into the room"):
        check_environment("queue.env", {"OMP_NUM_THREADS": "1", name: "value"})


def test_other_variables_are() -> None:
    check_environment("queue.env", {"TOKENIZERS_PARALLELISM": "false", "KEYBOARD": "us", "NCCL_DEBUG": "INFO"})


@pytest.mark.parametrize("config", [{"dataset": {"token": SECRET}}, {"dataset": [{"use_auth_token": SECRET}]}])
def test_a_literal_secret_in_a_torchtune_configuration_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"token holds a secret.*oc\.env:") as caught:
        check_torchtune(config)
    assert SECRET not in str(caught.value)


def test_keys_that_only_sound_like_secrets_are_taken() -> None:
    check_torchtune({"tokenizer": {"eos_token": "</s>", "path": "token"}, "dataset": {"token": True, "x": None}})
    check_torchtune({"dataset": {"token": "${oc.env:HF_TOKEN}"}})


def test_the_key_of_wandb_is_no_argument() -> None:
    with pytest.raises(ConfigError, match=r"wandb\.init\.settings\.api_key would be written") as caught:
        check_wandb({"settings": {"api_key": SECRET}}, "wandb.init")
    assert SECRET not in str(caught.value)
    check_wandb({"settings": {"console": "off"}, "notes": "token"}, "wandb.init")


@pytest.mark.parametrize(
    "key",
    ["base_url", "app_url_override", "https_proxy", "x_proxies", "insecure_disable_ssl", "x_extra_http_headers"],
)
@pytest.mark.parametrize("section", ["wandb.init", "metric_logger"])
def test_no_configuration_says_where_the_key_of_wandb_goes(key: str, section: str) -> None:
    """Whoever wrote it would be sent the key of whoever runs it."""
    with pytest.raises(ConfigError, match=rf"^{section}\.settings\.{key} is not allowed: it decides where"):
        check_wandb({"settings": {"console": "off", key: "https://elsewhere.example"}}, section)
