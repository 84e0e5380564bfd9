"""The YAML of a trial has what torchtune needs, what the trial was trained with, and else only what the user wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from sweep.config import exported_yaml as exports
from sweep.config.exported_yaml import exported_yaml
from sweep.config.torchtune import OPTIONAL_KEYS, REQUIRED_KEYS, has_key, load_torchtune_config, resolve, value_at
from sweep.errors import ConfigError
from sweep.resources import embedded_dir
from tests.helpers.torchtune_source import PACKAGES, RECIPE, TRAINER, defaults, read_keys, required_arguments

EMBEDDED = embedded_dir() / "lora_cpu.yaml"
TRAINING = PACKAGES / "torchtune" / "training"
OURS = [TRAINER / f"{name}.py" for name in ("recipe", "base", "data", "adapter_export")]


# --- torchtune's source -------------------------------------------------------------------------------------------


def test_every_key_that_torchtune_reads_is_required_or_added() -> None:
    """Another version of torchtune shows its difference here."""
    needed = read_keys(RECIPE)
    assert needed == {
        *{key for key in REQUIRED_KEYS if "." not in key},
        *{key.split(".")[0] for key in REQUIRED_KEYS if "." in key},
        *{key for key in REQUIRED_KEYS if key.startswith("model.") and not key.endswith("_component_")},
        *exports.RECIPE_NEEDS,
        "checkpointer.model_type",  # an argument that torchtune's checkpointers need in a trial too
        "metric_logger",
        "seed",  # a sweep without one has its own
    }


def test_what_we_add_is_what_we_train_without_it() -> None:
    """Where torchtune has a default too, it is ours."""
    theirs, ours = defaults(RECIPE), defaults(*OURS)
    for key, value in exports.RECIPE_NEEDS.items():
        assert key not in theirs
        assert bool(ours.get(key)) == bool(value)
    shared = theirs.keys() & ours.keys()
    assert shared == {
        "clip_grad_norm",
        "collate_fn",
        "cudnn_deterministic_mode",
        "enable_activation_checkpointing",
        "enable_activation_offloading",
        "low_cpu_ram",
    }
    assert {key for key in shared if theirs[key] != ours[key] and (theirs[key] or ours[key])} == set()
    # what only we read; with the trainer's defaults nothing of it changes how a trial is trained
    assert ours.keys() - shared - exports.RECIPE_NEEDS.keys() == {
        "batch_size_val",
        "dataset_val",
        "model.apply_lora_to_output",
    }
    assert {key: theirs[key] for key in exports.NOT_NULL} == exports.NOT_NULL
    assert set(OPTIONAL_KEYS) <= {"seed", *ours}


def test_loggers_and_checkpointers_find_every_argument() -> None:
    loggers = required_arguments(TRAINING / "metric_logging.py")
    assert {name: keys for name, keys in loggers.items() if keys} == {
        name: set(needs) for name, needs in exports.LOGGER_NEEDS.items()
    }
    checkpointers = required_arguments(TRAINING / "checkpointing" / "_checkpointer.py")
    single = {name: keys for name, keys in checkpointers.items() if name.startswith("FullModel")}
    assert len(single) == 3
    for keys in single.values():  # the others a trial needs as well
        assert keys - exports.CHECKPOINTER_NEEDS.keys() == {"checkpoint_dir", "checkpoint_files", "model_type"}


# --- what is added ------------------------------------------------------------------------------------------------


def export(text: str, params: dict[str, Any] | None = None, derive: dict[str, Any] | None = None, **added: Any) -> str:
    """The text exported for a trial with these hyperparameters."""
    raw: Any = OmegaConf.to_container(OmegaConf.create(text))
    trained = {**resolve(raw, params or {}, derive or {}), **added}
    return exported_yaml(text, params or {}, added, trained, "note")


def keys(config: Any, at: str = "") -> list[str]:
    """Every dotted key of nested mappings."""
    if not isinstance(config, dict):
        return []
    names = [(f"{at}.{key}" if at else key, value) for key, value in config.items()]
    return [found for name, value in names for found in (name, *keys(value, name))]


def lines_of(text: str) -> list[str]:
    return text.splitlines()


@pytest.mark.parametrize("key", keys(yaml.safe_load(EMBEDDED.read_text())))
def test_without_a_key_a_configuration_is_refused_or_completed(key: str, tmp_path: Path) -> None:
    config = yaml.safe_load(EMBEDDED.read_text())
    parent, _, name = key.rpartition(".")
    del (value_at(config, parent) if parent else config)[name]
    path = tmp_path / "less.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    try:
        load_torchtune_config(path, {})
        seed: dict[str, Any] = {"seed": 0} if key == "seed" else {}
        text = export(path.read_text(), **seed)
    except ConfigError as error:
        assert key in str(error) or key in ("root", "output_dir")  # other values refer to these
        return
    exported = OmegaConf.create(text)
    for needed in read_keys(RECIPE):
        if key != "checkpointer.model_type":
            assert has_key(OmegaConf.to_container(exported), needed), needed
    assert resolve(OmegaConf.to_container(exported), {}, {})["checkpointer"]["output_dir"]  # type: ignore[arg-type]
    assert exported.metric_logger.log_dir == f"{exported.output_dir}/logs"
    added = set(keys(OmegaConf.to_container(exported))) - set(keys(config))
    said = {line[4:].split(" = ")[0] for line in lines_of(text) if line.startswith("#   ")}
    assert added - {f"{name}.{part}" for name in said for part in ("_component_", "log_dir")} == said


def test_a_complete_configuration_stays_as_it_is() -> None:
    assert export(EMBEDDED.read_text()) == f"# note\n{EMBEDDED.read_text()}"


def test_added_keys_stand_at_the_end_and_are_named() -> None:
    text = "\n".join(line for line in lines_of(EMBEDDED.read_text()) if not line.startswith(("compile:", "max_steps")))
    gone = text.replace("  output_dir: ${output_dir}\n", "").replace("metric_logger:", "unused:") + "\n"
    exported = export(gone)
    assert exported.startswith(
        "# note\n# Added, since `tune run` needs these keys:\n#   compile = false\n#   max_steps_per_epoch = null\n"
        "#   checkpointer.output_dir = ${output_dir}\n#   metric_logger = {"
    )
    body = exported.partition('log_dir": "${output_dir}/logs"}\n')[2]
    assert body.replace("  output_dir: ${output_dir}\n", "").startswith(gone)
    assert lines_of(exported)[-5:] == [
        "compile: false",
        "max_steps_per_epoch: null",
        "metric_logger:",
        f"  _component_: {exports.DEFAULT_LOGGER['_component_']}",
        "  log_dir: ${output_dir}/logs",
    ]


LOGGING = "metric_logger:\n  _component_: torchtune.training.metric_logging.DiskLogger\n  log_dir: ${output_dir}/logs\n"


@pytest.mark.parametrize(
    ("logger", "expected"),
    [
        ("metric_logger:\n", exports.DEFAULT_LOGGER),
        ("metric_logger: {}\n", exports.DEFAULT_LOGGER),
        ("metric_logger: {log_dir: x}\n", {"_component_": exports.DEFAULT_LOGGER["_component_"], "log_dir": "x"}),
        (
            "metric_logger:\n  _component_: torchtune.utils.metric_logging.TensorBoardLogger\n",
            {"_component_": f"{exports.LOGGERS}TensorBoardLogger", "log_dir": "./lora-out/embedded/logs"},
        ),
        (
            "metric_logger:\n  _component_: torchtune.training.metric_logging.WandBLogger\n  project: p\n",
            {"_component_": f"{exports.LOGGERS}WandBLogger", "project": "p"},
        ),
        ("metric_logger: {_component_: mine.Logger}\n", {"_component_": "mine.Logger"}),
        (
            f"metric_logger: {{_component_: {exports.LOGGERS}DiskLogger, log_dir: l, filename: f.txt}}\n",
            {"_component_": f"{exports.LOGGERS}DiskLogger", "log_dir": "l", "filename": "f.txt"},
        ),
    ],
)
def test_the_logger_is_the_users_with_what_it_needs(logger: str, expected: dict[str, Any]) -> None:
    text = EMBEDDED.read_text()
    assert LOGGING in text
    exported = resolve(OmegaConf.to_container(OmegaConf.create(export(text.replace(LOGGING, logger)))), {}, {})  # type: ignore[arg-type]
    default = {**exports.DEFAULT_LOGGER, "log_dir": "./lora-out/embedded/logs"}
    assert exported["metric_logger"] == (default if expected is exports.DEFAULT_LOGGER else expected)


def test_a_null_that_torchtune_cannot_take_becomes_its_default() -> None:
    text = EMBEDDED.read_text().replace("log_every_n_steps: 1", "log_every_n_steps: null")
    exported = export(text)
    assert "#   log_every_n_steps = 1\n" in exported
    assert "\nlog_every_n_steps: 1\n" in exported


# --- the values of the trial ----------------------------------------------------------------------------------------

SMALL = """\
output_dir: out  # mine
rank: 8
model:
  lora_rank: ${rank}
  lora_alpha: ${mul:2,${model.lora_rank}}
  path: ${oc.env:SOME_PATH}
  note: ${output_dir}/a
checkpointer: {output_dir: x}
metric_logger: {_component_: mine.Logger}
compile: False
resume_from_checkpoint: False
max_steps_per_epoch: null
"""


def test_values_that_only_we_can_resolve_are_written_out() -> None:
    """`tune run` has no resolver of ours; the user's other interpolations stay."""
    text = export(SMALL, {"rank": 4})
    assert text.startswith(
        "# note\n# Written out, with the values that the trial was trained with:\n#   model.lora_alpha = 8\n"
    )
    assert text.endswith(SMALL.replace("rank: 8", "rank: 4").replace("${mul:2,${model.lora_rank}}", "8"))


def test_a_value_that_the_trial_was_trained_with_otherwise_is_written_out() -> None:
    """For example a path that was anchored when the sweep was created. What refers to it stays if it may."""
    trained = resolve(yaml.safe_load(SMALL), {}, {})
    text = exported_yaml(SMALL, {}, {}, {**trained, "output_dir": "/data/out"}, "")
    assert "#   output_dir = /data/out\n#   model.lora_alpha = 16\n#   model.note = out/a\n" in text
    assert "\noutput_dir: /data/out  # mine\n" in text
    assert "\n  note: out/a\n" in text
    moved = {**trained, "output_dir": "/data/out", "model": {**trained["model"], "note": "/data/out/a"}}
    text = exported_yaml(SMALL, {}, {}, moved, "")
    assert "\noutput_dir: /data/out  # mine\n" in text
    assert "\n  note: ${output_dir}/a\n" in text
    with pytest.raises(ConfigError, match="cannot be exported"):
        exported_yaml(SMALL, {}, {}, {**trained, "a.b": 1}, "")


def test_what_yaml_cannot_hold_does_not_spoil_the_comment() -> None:
    trained = resolve(yaml.safe_load(SMALL), {}, {})
    text = exported_yaml(f"\ufeff{SMALL}", {}, {}, trained, "a\x1b[1m\ud800 é数")
    assert lines_of(text)[0] == "# a\\x1b[1m\\ud800 é数"
    assert OmegaConf.create(text).output_dir == "out"
    assert "\ufeff" not in text
