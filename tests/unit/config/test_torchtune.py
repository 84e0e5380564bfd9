"""The torchtune configuration of a sweep: found, changed, resolved for a trial, and exported."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sweep.config.space_grammar import parse_space
from sweep.config.torchtune import (
    OPTIONAL_KEYS,
    REQUIRED_KEYS,
    check_key,
    check_space,
    check_trusted,
    equal_data,
    export_yaml,
    find_torchtune_config,
    has_key,
    load_torchtune_config,
    resolve,
    trial_changes,
)
from sweep.errors import ConfigError
from sweep.resources import embedded_dir, torchtune_recipes

EMBEDDED = embedded_dir() / "lora_cpu.yaml"
SHIPPED = sorted(
    str(path.relative_to(torchtune_recipes()))[:-5] for path in torchtune_recipes().rglob("*lora_single_device.yaml")
)
CONFIG: dict[str, Any] = {"a": 4, "b": {"c": "${a}", "d": 2.5}, "l": [1, {"x": 2}], "batch_size": 8}


# --- resolving ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${add:1,2}", 3),
        ("${sub:1,2}", -1),
        ("${mul:2,${a}}", 8),
        ("${mul:2,${b.d}}", 5.0),
        ("${div:7,2}", 3.5),
        ("${floordiv:7,2}", 3),
        ("${pow:2,3}", 8),
        ("${min:3,1,2}", 1),
        ("${max:1,${floordiv:6,${batch_size}}}", 1),
        ("${round:2.567,1}", 2.6),
        ("${int:${div:7,2}}", 3),
        ("${embedded:base}", str(embedded_dir() / "base")),
        ("${embedded:}", str(embedded_dir())),
        ("${b.c}", 4),
        ("r${a}", "r4"),
    ],
)
def test_every_resolver(text: str, value: Any) -> None:
    found = resolve(CONFIG, {}, {"x": text})["x"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("params", "derive", "expected"),
    [
        ({}, {}, {"a": 4, "b": {"c": 4, "d": 2.5}, "l": [1, {"x": 2}], "batch_size": 8}),
        ({"a": 5}, {}, {"a": 5, "b": {"c": 5, "d": 2.5}, "l": [1, {"x": 2}], "batch_size": 8}),
        ({"b.d": [1]}, {}, {"a": 4, "b": {"c": 4, "d": [1]}, "l": [1, {"x": 2}], "batch_size": 8}),
        ({"b": {"e": 1}}, {}, {"a": 4, "b": {"e": 1}, "l": [1, {"x": 2}], "batch_size": 8}),
        ({"l.1.x": 3}, {}, {"a": 4, "b": {"c": 4, "d": 2.5}, "l": [1, {"x": 3}], "batch_size": 8}),
        (
            {"new.key": 1},
            {"+more": "${mul:3,${new.key}}"},
            {"a": 4, "b": {"c": 4, "d": 2.5}, "l": [1, {"x": 2}], "batch_size": 8, "new": {"key": 1}, "more": 3},
        ),
        ({"a": 1}, {"a": "${int:7}"}, {"a": 7, "b": {"c": 7, "d": 2.5}, "l": [1, {"x": 2}], "batch_size": 8}),
    ],
)
def test_resolve(params: dict[str, Any], derive: dict[str, str], expected: dict[str, Any]) -> None:
    before = repr(CONFIG)
    assert resolve(CONFIG, params, derive) == expected
    assert repr(CONFIG) == before


@pytest.mark.parametrize(
    ("derive", "complaint"),
    [
        (
            {"x": "${nothing}"},
            r"configuration, x: \$\{nothing\} names a key that this configuration does not have; write the",
        ),
        ({"x": "${nothing:1}"}, "configuration, x: Unsupported interpolation type nothing"),
        ({"x": "${floordiv:6,0}"}, "configuration, x: ZeroDivisionError"),
        ({"x": "${add:1}"}, "configuration, x: TypeError"),
        ({"a": "${mul:2,${a}}"}, "configuration, a: Recursive interpolation"),
        ({"a": "${b.c}"}, "Recursive interpolation"),
        ({"b.x": "???"}, "configuration, b.x: Missing mandatory value"),
        ({"x": "${add:1"}, "derive: x=\\${add:1 cannot be set"),
    ],
)
def test_what_cannot_be_derived_is_one_line(derive: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        resolve(CONFIG, {}, derive)
    assert "\n" not in str(caught.value)


def test_trial_changes_are_the_hyperparameters_and_what_follows_from_them() -> None:
    derive = {"b.d": "${mul:2,${a}}", "+new": "${b.d}"}
    assert trial_changes(CONFIG, {"a": 3}, derive) == {"a": 3, "b.d": 6, "new": 6}
    assert trial_changes(CONFIG, {"l": [1]}, {}) == {"l": [1]}


# --- equal data ---------------------------------------------------------------------------------------------------


def rows(config: dict[str, Any], space: dict[str, Any], params: dict[str, Any]) -> int:
    """Rows of an epoch under a limit of optimizer steps."""
    found = resolve(config, params, equal_data(config, space))
    return int(found["max_steps_per_epoch"] * found["batch_size"] * found["gradient_accumulation_steps"])


def limited(batch_size: int = 8, accumulation: int = 2, limit: int | None = 16) -> dict[str, Any]:
    steps = {"gradient_accumulation_steps": accumulation, "max_steps_per_epoch": limit}
    return {"batch_size": batch_size, **steps}


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("accumulation", [1, 2, 4, 8, 16])
def test_every_trial_sees_the_same_rows(batch_size: int, accumulation: int) -> None:
    space = {"batch_size": "choice(1, 16)", "gradient_accumulation_steps": "choice(1, 16)"}
    params = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    assert rows(limited(), space, params) == 256


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 200))
def test_rows_differ_by_less_than_a_step(batch_size: int, accumulation: int, limit: int) -> None:
    params = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    found = rows(limited(8, 2, limit), {"batch_size": "choice(1, 2)"}, params)
    step = batch_size * accumulation
    wanted = limit * 16
    assert found == step or wanted - step < found <= wanted
    assert found >= step  # one step at least


@pytest.mark.parametrize(
    ("config", "space"),
    [
        (limited(limit=None), {"batch_size": "choice(1, 2)"}),
        (limited(), {"optimizer.lr": "interval(0, 1)"}),
        (limited(), {"batch_size": "choice(1, 2)", "max_steps_per_epoch": "choice(1, 2)"}),
        ({"batch_size": 1, "gradient_accumulation_steps": 1}, {"batch_size": "choice(1, 2)"}),
    ],
    ids=["no limit", "nothing varies it", "the limit varies itself", "no key"],
)
def test_nothing_is_derived_where_it_would_change_nothing(config: dict[str, Any], space: dict[str, Any]) -> None:
    assert equal_data(config, space) == {}


# --- keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "there"),
    [
        ("a", True),
        ("b.c", True),
        ("b", True),
        ("l.0", True),
        ("l.1.x", True),
        ("l.2", False),
        ("l.x", False),
        ("b.e", False),
        ("a.b", False),
        ("", False),
    ],
)
def test_has_key(key: str, there: bool) -> None:
    assert has_key(CONFIG, key) is there


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (
            "b.cc",
            [
                "here: there is no key b.cc",
                "did you mean b.c?",
                "allowed: b.c, b.d",
                "write +here.b.cc=… on the command line or +b.cc: in YAML",
            ],
        ),
        ("batchsize", ["no key batchsize", "did you mean batch_size?", "+batchsize"]),
        ("zzz", ["no key zzz", "allowed: a, b, batch_size, l"]),
        ("x.y", ["no key x.y", "+x.y"]),
    ],
)
def test_check_key_names_what_is_near(key: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_key(CONFIG, key, "here")
    for word in words:
        assert word in str(caught.value)
    check_key(CONFIG, "b.c", "here")


@pytest.mark.parametrize(
    ("space", "derive", "complaint"),
    [
        ({"b.d": "interval(0, 1)"}, {}, None),
        ({"+b.new": "interval(0, 1)"}, {}, None),
        ({"clip_grad_norm": "interval(0, 1)"}, {}, None),  # the trainer reads it, though this configuration lacks it
        ({"b.d": "interval(0, 1)"}, {"b.c": "${b.d}", "+b.e": "${b.d}", "seed": "${a}"}, None),
        ({"b.dd": "interval(0, 1)"}, {}, "space: there is no key b.dd .*did you mean b.d"),
        ({"b.d": "interval(0, 1)"}, {"b.e": "${a}"}, "derive: there is no key b.e"),
        ({"b.d": "interval(0, 1)"}, {"b.d": "${a}"}, "derive.b.d: the key is in the space too"),
        ({"+b.e": "interval(0, 1)"}, {"+b.e": "${a}"}, "b.e: the key is in the space too"),
    ],
)
def test_check_space(space: dict[str, Any], derive: dict[str, str], complaint: str | None) -> None:
    if complaint is None:
        check_space(CONFIG, parse_space(space), derive)
        return
    with pytest.raises(ConfigError, match=complaint):
        check_space(CONFIG, parse_space(space), derive)


# --- loading ------------------------------------------------------------------------------------------------------


def test_a_configuration_is_found_by_path_and_by_the_name_of_tune_ls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(EMBEDDED.read_text())
    monkeypatch.chdir(tmp_path)
    assert find_torchtune_config(str(own)) == find_torchtune_config("own.yaml") == own.resolve()
    named = find_torchtune_config("llama3_2/1B_lora_single_device")
    assert named == find_torchtune_config("llama3_2/1B_lora_single_device.yaml")
    assert named.is_file()


@pytest.mark.parametrize(
    ("name", "near"),
    [("llama3_2/1B_lora_singel", "llama3_2/1B_lora_single_device"), ("qwen2_5/3b", "qwen2_5/3B_lora_single_device")],
)
def test_a_name_that_is_nowhere_brings_near_ones(name: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_torchtune_config(name)
    assert f"recipe.config={name} is no file" in str(caught.value)
    assert near in str(caught.value)
    assert "`tune ls`" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        ({}, {}),
        ({"batch_size": 4}, {"batch_size": 4}),
        ({"model": {"lora_rank": 4}, "model.lora_alpha": 8}, {"model.lora_rank": 4, "model.lora_alpha": 8}),
        ({"+my.own.key": 1}, {"my.own.key": 1}),
        ({"optimizer": {"+momentum": 0.9}}, {"optimizer.momentum": 0.9}),
        ({"dataset": {"+column_map": {"input": "q"}}}, {"dataset.column_map.input": "q"}),
        ({"max_steps_per_epoch": None}, {"max_steps_per_epoch": None}),
        ({"root": "${embedded:}"}, {"root": str(embedded_dir())}),  # frozen, and torchtune knows no such resolver
        ({"output_dir": "${root}/out"}, {"output_dir": "${root}/out"}),
        ({"checkpointer.checkpoint_files.0": "x.safetensors"}, {"checkpointer.checkpoint_files.0": "x.safetensors"}),
    ],
)
def test_overrides_become_changes(overrides: dict[str, Any], changes: dict[str, Any]) -> None:
    plain, found = load_torchtune_config(EMBEDDED, overrides)
    assert found == changes
    for key, value in changes.items():
        node: Any = plain
        for part in key.split("."):
            node = node[int(part)] if isinstance(node, list) else node[part]
        assert node == value
    assert plain["tokenizer"]["path"] == "${root}/base/tokenizer.model"  # unresolved: a trial may change the root


@pytest.mark.parametrize("key", OPTIONAL_KEYS)
def test_keys_that_the_trainer_reads_need_no_plus(key: str, tmp_path: Path) -> None:
    path = tmp_path / "less.yaml"
    cfg = yaml.safe_load(EMBEDDED.read_text())
    cfg.pop(key, None)
    path.write_text(yaml.safe_dump(cfg))
    plain, _ = load_torchtune_config(path, {key: 3})
    assert plain[key] == 3


@pytest.mark.parametrize("key", REQUIRED_KEYS)
def test_a_configuration_that_lacks_a_key_of_the_recipe_is_refused(key: str, tmp_path: Path) -> None:
    cfg = yaml.safe_load(EMBEDDED.read_text())
    parent, _, name = key.rpartition(".")
    del (cfg[parent] if parent else cfg)[name]
    path = tmp_path / "less.yaml"
    path.write_text(yaml.safe_dump(cfg))
    with pytest.raises(ConfigError, match=f"less.yaml is no configuration of .*it lacks .*{key}"):
        load_torchtune_config(path, {})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", "line 1, column 5: expected"),
        ("- 1\n- 2\n", "holds no YAML mapping"),
        ("just text\n", "holds no YAML mapping"),
        ("", "it lacks model._component_"),
        ("epochs: 1\n", "is no configuration of torchtune's lora_finetune_single_device: it lacks"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_torchtune_config(path, {})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_override_of_no_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe.overrides \(lora_cpu.yaml\): there is no key batchsize"):
        load_torchtune_config(EMBEDDED, {"batchsize": 4})


@pytest.mark.parametrize("key", ["config", "self", "on", "1"])
def test_a_key_that_tune_run_cannot_take_is_refused(key: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(f"{EMBEDDED.read_text()}{key}: x\n")
    read = {"on": "True"}.get(key, key)
    with pytest.raises(ConfigError, match=f"odd.yaml has the key {read}, which `tune run` cannot take; give"):
        load_torchtune_config(path, {})


KD, DPO, QAT = "knowledge_distillation_single_device", "lora_dpo_single_device", "qat_lora_finetune_distributed"


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        *[(name, KD) for name in SHIPPED if "KD" in name],
        ("llama2/7B_lora_dpo_single_device", DPO),
        ("llama3_2/1B_qat_lora", QAT),
    ],
)
def test_the_configuration_of_another_recipe_is_refused(name: str, recipe: str) -> None:
    """Ours would leave a teacher, a preference loss or a quantizer out without a word."""
    with pytest.raises(ConfigError, match=f"{Path(name).name}.yaml is no configuration of .* which is {recipe}'s"):
        load_torchtune_config(find_torchtune_config(name), {})


def test_a_recipe_that_would_resume_by_itself_is_refused(tmp_path: Path) -> None:
    """Trials would not heed it, and `tune run` on what is exported would look for a checkpoint that nobody wrote."""
    path = tmp_path / "resumes.yaml"
    path.write_text(EMBEDDED.read_text().replace("resume_from_checkpoint: False", "resume_from_checkpoint: True"))
    with pytest.raises(ConfigError, match=r"resumes.yaml: resume_from_checkpoint=True must be False") as caught:
        load_torchtune_config(path, {})
    assert "\n" not in str(caught.value)
    config, _ = load_torchtune_config(path, {"resume_from_checkpoint": False})
    assert config["resume_from_checkpoint"] is False


def test_code_outside_the_allow_list_is_refused() -> None:
    config = {"dataset": {"_component_": "mine.rows"}}
    check_trusted(config, ["mine."])
    with pytest.raises(ConfigError, match=r"dataset\._component_=mine\.rows is not among the allowed components"):
        check_trusted(config, [])


# --- export -------------------------------------------------------------------------------------------------------


def difference(old: str, new: str) -> tuple[list[str], list[str]]:
    """Lines that went and lines that came."""
    lines = list(difflib.ndiff(old.splitlines(), new.splitlines()))
    gone = [line[2:] for line in lines if line.startswith("- ")]
    return gone, [line[2:] for line in lines if line.startswith("+ ")]


@pytest.mark.parametrize("name", ["embedded", *SHIPPED])
def test_an_export_differs_in_the_changed_lines_only(name: str) -> None:
    """All of torchtune's own LoRA configurations, whatever their style."""
    path = EMBEDDED if name == "embedded" else find_torchtune_config(name)
    original = path.read_text()
    changes = {"model.lora_rank": 77, "optimizer.lr": 1e-7, "dataset_new.split": "train[:64]"}
    text = export_yaml(original, changes, "one\ntwo")
    gone, came = difference(original, text)
    assert [line.split(":")[0].strip() for line in gone] == ["lora_rank", "lr"]
    assert came[:2] == ["# one", "# two"]
    assert [line.split("#")[0].strip() for line in came[2:]] == [
        "lora_rank: 77",
        "lr: 1.0e-07",
        "dataset_new:",
        "split: train[:64]",
    ]
    assert [line.partition("#")[2] for line in came[2:4]] == [line.partition("#")[2] for line in gone]
    cfg: Any = OmegaConf.create(text)
    assert (cfg.model.lora_rank, cfg.optimizer.lr, cfg.dataset_new.split) == (77, 1e-7, "train[:64]")


def test_an_export_without_changes_is_the_original_below_its_header() -> None:
    original = EMBEDDED.read_text()
    assert export_yaml(original, {}, "note") == "# note\n" + original
    assert export_yaml(original, {}, "") == original


def test_an_export_of_every_kind_of_change_reads_back() -> None:
    changes = {
        "model.lora_attn_modules": ["q_proj"],
        "max_steps_per_epoch": 7,
        "optimizer._component_": "torch.optim.SGD",
        "optimizer.momentum": 0.9,
        "checkpointer.checkpoint_files.0": "x.safetensors",
        "compile": True,
    }
    plain = OmegaConf.to_container(OmegaConf.create(export_yaml(EMBEDDED.read_text(), changes, "")))
    expected, _ = load_torchtune_config(EMBEDDED, {"+" + key: value for key, value in changes.items()})
    assert plain == expected


LOGGER = "metric_logger:\n  _component_: torchtune.utils.metric_logging.DiskLogger  # old\n  log_dir: /tmp\n"


def test_a_logger_that_has_moved_is_named_where_it_is_now() -> None:
    assert export_yaml(LOGGER, {}, "") == LOGGER.replace("torchtune.utils.", "torchtune.training.")


@pytest.mark.parametrize("package", ["training", "utils"])
def test_a_logger_of_the_users_own_choice_stays(package: str) -> None:
    """Under its present name."""
    chosen = f"torchtune.{package}.metric_logging.WandBLogger"
    text = export_yaml(LOGGER, {"metric_logger._component_": chosen}, "")
    assert text == LOGGER.replace("torchtune.utils.metric_logging.DiskLogger", chosen.replace("utils", "training"))


def test_a_logger_in_a_list_has_moved_too() -> None:
    listed = "loggers:\n  - _component_: torchtune.utils.metric_logging.DiskLogger\n"
    assert export_yaml(listed, {}, "") == listed.replace("torchtune.utils.", "torchtune.training.")


def test_a_change_without_a_place_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"cannot be exported: a\.b leads through 'x'"):
        export_yaml("a: x\n", {"a.b": 1}, "")
