"""Relative paths mean the directory of the first command, from wherever a sweep is resumed or its export trained."""

from __future__ import annotations

import inspect
import pkgutil
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.config.paths import DATA, FORMATS, PATHS, PATHS_IN, anchored, anchored_keys, unescaped
from sweep.config.torchtune import export_yaml, path_changes, resolve
from sweep.errors import ConfigError

NAMES = [
    "a b",
    "a,b",
    "a#b",
    "a%b",
    "a=b",
    "it's",
    'say "it"',
    "a\nb",
    "ünï",
    "数据",
    "a:b",
    "a&b",
    "{a}",
    "a\\b",
    "a$b",
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a few files, which is not the current one."""
    place = tmp_path / "first"
    (place / "data").mkdir(parents=True)
    (place / "data" / "a.jsonl").touch()
    (place / "local").mkdir()
    (place / "$odd").mkdir()
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("PART", "parts")
    monkeypatch.delenv("NOPE", raising=False)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    return place


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("checkpointer.checkpoint_dir", "base", "{home}/base"),
        ("checkpointer.checkpoint_dir", "./base/", "{home}/base"),
        ("checkpointer.checkpoint_dir", "../base", "{home}/../base"),
        ("checkpointer.checkpoint_dir", ".", "{home}"),
        ("checkpointer.checkpoint_dir", "/models/base", "/models/base"),
        ("checkpointer.checkpoint_dir", "~/base", "/home/me/base"),
        ("checkpointer.checkpoint_dir", "$SCRATCH/base", "${{oc.env:SCRATCH}}/base"),
        ("checkpointer.checkpoint_dir", "$PART/base", "{home}/${{oc.env:PART}}/base"),
        ("checkpointer.checkpoint_dir", "/x/$PART/base", "/x/${{oc.env:PART}}/base"),
        ("checkpointer.checkpoint_dir", "$odd", "{home}/$odd"),  # it exists as it is written
        ("checkpointer.checkpoint_dir", "${{oc.env:SCRATCH}}/base", "${{oc.env:SCRATCH}}/base"),
        ("checkpointer.checkpoint_dir", "${{oc.env:PART}}/base", "{home}/${{oc.env:PART}}/base"),
        ("checkpointer.checkpoint_dir", "${{oc.env:NOPE}}/base", "${{oc.env:NOPE}}/base"),
        ("checkpointer.checkpoint_dir", "s3://bucket/base", "s3://bucket/base"),
        ("checkpointer.checkpoint_dir", "", ""),
        ("checkpointer.checkpoint_dir", None, None),
        ("checkpointer.checkpoint_files", ["model.safetensors"], ["model.safetensors"]),  # in checkpoint_dir
        ("output_dir", "out", "{home}/out"),
        ("metric_logger.log_dir", "logs", "{home}/logs"),
        ("profiler.output_dir", "out/profile", "{home}/out/profile"),
        ("tokenizer.path", "base/tokenizer.model", "{home}/base/tokenizer.model"),
        ("tokenizer.merges_file", "base/merges.txt", "{home}/base/merges.txt"),
        ("tokenizer.tokenizer_json_path", "base/tokenizer.json", "{home}/base/tokenizer.json"),
        ("tokenizer.prompt_template", "torchtune.data.QuestionAnswerTemplate", "torchtune.data.QuestionAnswerTemplate"),
        ("model.path", "local", "local"),  # of a component that is not torchtune's
        ("batch_size", 4, 4),
        ("seed", None, None),
    ],
)
def test_what_is_a_path(key: str, value: Any, expected: Any, home: Path) -> None:
    if isinstance(value, str):
        value = value.format()
    if isinstance(expected, str):
        expected = expected.format(home=home)
    section, _, name = key.rpartition(".")
    given = {section: {name: value}} if section else {name: value}
    wanted = {section: {name: expected}} if section else {name: expected}
    assert anchored(given, str(home)) == wanted
    assert anchored(wanted, str(home)) == wanted
    assert anchored_keys(given, str(home)) == ({} if value == expected else {key: expected})


@pytest.mark.parametrize(
    ("dataset", "changed"),
    [
        ({"source": "json", "data_files": "data/a.jsonl"}, {"data_files": "{home}/data/a.jsonl"}),
        ({"source": "json", "data_files": "later.jsonl"}, {"data_files": "{home}/later.jsonl"}),
        ({"source": "json", "data_files": "data/*.jsonl"}, {"data_files": "{home}/data/*.jsonl"}),
        ({"source": "csv", "data_files": ["a", "/b"]}, {"data_files": ["{home}/a", "/b"]}),
        (
            {"source": "json", "data_files": {"train": "a", "test": ["b", "https://x/c"]}},
            {"data_files": {"train": "{home}/a", "test": ["{home}/b", "https://x/c"]}},
        ),
        (
            {"source": "json", "data_files": [{"split": "train", "path": "data/a.jsonl"}]},
            {"data_files": [{"split": "train", "path": "{home}/data/a.jsonl"}]},
        ),
        ({"source": "json", "data_files": "~/a.jsonl"}, {"data_files": "/home/me/a.jsonl"}),
        ({"source": "json", "data_files": "zip://*.jsonl::data.zip"}, {}),
        ({"source": "json", "data_files": "hf://datasets/me/mine/a.jsonl"}, {}),
        ({"source": "json", "data_dir": "data"}, {"data_dir": "{home}/data"}),
        ({"source": "json", "data_dir": "data", "data_files": "a.jsonl"}, {"data_dir": "{home}/data"}),
        ({"source": "tatsu-lab/alpaca"}, {}),
        ({"source": "tatsu-lab/alpaca", "data_files": "data/a.jsonl", "data_dir": "data"}, {}),  # of the repository
        ({"source": "local"}, {"source": "{home}/local"}),
        ({"source": "local", "data_files": "a.jsonl"}, {"source": "{home}/local"}),
        ({"source": "./nowhere"}, {"source": "{home}/nowhere"}),
        ({"source": "~/mine"}, {"source": "/home/me/mine"}),
        ({"source": "$SCRATCH/mine"}, {"source": "${{oc.env:SCRATCH}}/mine"}),
        ({"data_files": "data/a.jsonl"}, {"data_files": "{home}/data/a.jsonl"}),  # a component of the user's own
        ({"data_files": "data/nowhere.jsonl"}, {}),
        ({"source": None, "data_dir": "data"}, {"data_dir": "{home}/data"}),
        ({"source": ["json"], "data_files": "data/a.jsonl"}, {}),
        ({"source": "json", "data_files": None}, {}),
        ({"source": "json", "image_dir": "pictures"}, {"image_dir": "{home}/pictures"}),
    ],
)
@pytest.mark.parametrize("at", ["dataset", "dataset_val", "list"])
def test_what_data_mean(dataset: dict[str, Any], changed: dict[str, Any], at: str, home: Path) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        return list(map(filled, value)) if isinstance(value, list) else value.format(home=home)

    changed = filled(changed)
    config: dict[str, Any] = {"dataset": [{}, dataset]} if at == "list" else {at: dataset}
    prefix = "dataset.1" if at == "list" else at
    assert anchored_keys(config, str(home)) == {f"{prefix}.{key}": value for key, value in changed.items()}
    result = anchored(config, str(home))
    assert (result["dataset"][1] if at == "list" else result[at]) == {**dataset, **changed}
    assert anchored(result, str(home)) == result


def test_nothing_is_anchored_for_a_sweep_of_an_old_version(home: Path) -> None:
    config = {"output_dir": "~/out", "dataset": {"source": "json", "data_files": "$NOPE"}}
    assert anchored(config, "") == config


@pytest.mark.parametrize(
    ("value", "environment", "complaint"),
    [
        ("$NOPE/base", {}, "checkpointer.checkpoint_dir=$NOPE/base: the environment variable NOPE is not set"),
        ("~/base", {"HOME": None}, "checkpointer.checkpoint_dir=~/base: there is no home directory"),
    ],
)
def test_what_a_shell_could_not_expand_is_refused(
    value: str, environment: dict[str, None], complaint: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in environment:
        monkeypatch.delenv(name)
        monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(ConfigError) as refused:
        anchored({"checkpointer": {"checkpoint_dir": value}}, str(home))
    assert str(refused.value).startswith(complaint)


@pytest.mark.parametrize("odd", [*NAMES, "br[ack]et", "a*b", "a?b", "[", "[!a]"])
def test_odd_characters_stay_what_they_are(odd: str, tmp_path: Path) -> None:
    """In the directory, and in the names of files that exist; only for data they are escaped, as wildcards."""
    home = tmp_path / odd
    (home / odd).mkdir(parents=True)
    (home / odd / f"{odd}.jsonl").touch()
    relative = f"{odd}/{odd}.jsonl"
    config = {
        "output_dir": odd,
        "log_dir": "later",
        "dataset": {"source": "json", "data_files": [relative, str(home / relative)]},
    }
    result = anchored(config, str(home))
    assert result["output_dir"] == str(home / odd)
    assert result["log_dir"] == str(home / "later")
    first, second = result["dataset"]["data_files"]
    assert first == second
    assert unescaped(first) == str(home / relative)
    assert list(map(str, Path("/").glob(first[1:]))) == [str(home / relative)]
    assert anchored(result, str(home)) == result


def test_wildcards_of_the_user_s_own_stay(tmp_path: Path) -> None:
    home = tmp_path / "[x]"
    home.mkdir()
    for name in ("a1.jsonl", "a2.jsonl", "b1.jsonl"):
        (home / name).touch()
    pattern = anchored({"dataset": {"source": "json", "data_files": "a[12].*"}}, str(home))["dataset"]["data_files"]
    assert sorted(path.name for path in Path("/").glob(pattern[1:])) == ["a1.jsonl", "a2.jsonl"]


CONFIG = {
    "root": "mine",
    "output_dir": "out",
    "checkpointer": {"checkpoint_dir": "${root}/base", "output_dir": "${output_dir}"},
    "metric_logger": {"log_dir": "${output_dir}/logs"},
    "dataset": {"source": "json", "data_files": "data/a.jsonl"},
    "dataset_val": {"source": "json", "data_files": "${dataset.data_files}"},
    "lists": [1],
}


def test_a_trial_s_paths_are_anchored_wherever_they_come_from(home: Path) -> None:
    """The base, an interpolation, a choice that is a text, one that is a mapping, and a derivation."""
    params = {"dataset.data_files": "data/b.jsonl", "dataset_val": {"source": "csv", "data_files": ["c.csv"]}}
    config = resolve(CONFIG, params, {"+tokenizer.path": "${root}/tokenizer.model"}, str(home))
    assert config["checkpointer"] == {"checkpoint_dir": f"{home}/mine/base", "output_dir": f"{home}/out"}
    assert config["dataset"]["data_files"] == f"{home}/data/b.jsonl"
    assert config["dataset_val"]["data_files"] == [f"{home}/c.csv"]
    assert config["tokenizer"]["path"] == f"{home}/mine/tokenizer.model"


def test_an_export_changes_as_few_keys_as_it_needs(home: Path) -> None:
    """What follows from another key by an interpolation stays."""
    assert path_changes(CONFIG, {}, {}, str(home)) == {
        "output_dir": f"{home}/out",
        "checkpointer.checkpoint_dir": f"{home}/mine/base",
        "dataset.data_files": f"{home}/data/a.jsonl",
    }
    assert path_changes(CONFIG, {}, {}, "") == {}
    chosen = {"dataset_val": {"source": "json", "data_files": "b.jsonl"}, "root": "/abs"}
    assert path_changes(CONFIG, chosen, {}, str(home)) == {
        "output_dir": f"{home}/out",
        "dataset.data_files": f"{home}/data/a.jsonl",
        "dataset_val.data_files": f"{home}/b.jsonl",
    }
    text = "output_dir: out  # mine\ndataset:\n  - source: json\n    data_files: [a, b]\n"
    config = {"output_dir": "out", "dataset": [{"source": "json", "data_files": ["a", "b"]}]}
    exported = export_yaml(text, path_changes(config, {}, {}, "/x"), "")
    assert exported == "output_dir: /x/out  # mine\ndataset:\n  - source: json\n    data_files: [/x/a, /x/b]\n"


KEYS = st.sampled_from(sorted({*PATHS, *DATA, "path", "a"}))


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from([*PATHS, *DATA, "path", "a"]) | st.text(), inner)
        ),
    )
)
def test_any_value_is_taken_and_anchored_once(value: Any) -> None:
    try:
        result = anchored({"tokenizer": value}, "/nowhere/at all")
    except ConfigError:
        return
    assert repr(anchored(result, "/nowhere/at all")) == repr(result)


@pytest.mark.slow
def test_the_lists_are_those_of_the_libraries() -> None:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
    from torchtune import models, training

    families = []
    for info in pkgutil.iter_modules(models.__path__):
        with suppress(ModuleNotFoundError):  # those for pictures need torchvision
            families.append(import_module(f"torchtune.models.{info.name}"))
    assert set(_PACKAGED_DATASETS_MODULES) == FORMATS
    parameters = {
        name
        for module in (*families, training, import_module("torchtune.training.metric_logging"))
        for part in vars(module).values()
        if (inspect.isclass(part) or inspect.isfunction(part)) and part.__module__.startswith("torchtune")
        for name in inspect.signature(part).parameters
    }
    assert {"checkpoint_dir", "output_dir", "merges_file", "log_dir"} <= parameters
    named = {name for name in parameters if name.endswith(("_dir", "_path", "_file")) or name == "path"}
    not_paths = {"base_model_name_or_path"}
    assert named - not_paths <= PATHS | PATHS_IN["tokenizer"]
