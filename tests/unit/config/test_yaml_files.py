"""Every YAML that a person can write is a configuration, or one sentence with file, line and column."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from sweep.config.yaml_files import MAX_BYTES, MAX_DEPTH, MAX_VALUES, load_yaml, parse_yaml, read_text_file
from sweep.errors import ConfigError

BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else '1'}]\n" for n in range(12))


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "own.yaml")
    said = str(caught.value)
    assert said.startswith("own.yaml")
    assert len(said) < 500
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\n\tb: 2\n", ["line 2, column 1", "a tab cannot indent"]),
        ("a: [1\nb: 2\n", ["line 2, column 2", "expected ',' or ']'", "begins in line 1, column 4"]),
        ("a: {b: 1\n", ["line 2, column 1", "expected ',' or '}'", "end of the file"]),
        ("a: 'x\n", ["line 2, column 1", "unexpected end"]),
        ("kind: local\nworkers: 2\n slots: 1\n", ["line 3, column 7", "not allowed here"]),
        ("a: 1\nb: 2\na: 3\n", ["line 3, column 1", "found duplicate key a"]),
        ("a:\n  b: 1\n  b: 2\n", ["line 3, column 3", "found duplicate key b"]),
        ("a: b: c\n", ["line 1, column 5", "mapping values are not allowed"]),
        ("a: @b\n", ["line 1, column 4", "cannot start any token"]),
        ("a: \x07\n", ["line 1, column 4", "U+0007", "not allowed"]),
        ("a: 1\nb: \x00\n", ["line 2, column 4", "U+0000"]),
        ("a: *b\n", ["line 1, column 4", "undefined alias"]),
        ("a: !!python/object:os.system x\n", ["line 1, column 4", "could not determine a constructor"]),
        ("a: !!float x\n", ["line 1, column 4", "'x' cannot be read as float"]),
        ("a: !!bool x\n", ["line 1, column 4", "'x' cannot be read as bool"]),
        ("a: !!timestamp x\n", ["line 1, column 4", "'x' cannot be read as timestamp"]),
        ("a: 0b_\n", ["line 1, column 4", "'0b_' cannot be read as int"]),
        (f"a: {'9' * 5000}\n", ["line 1, column 4", "cannot be read as int"]),
        ("? [a]\n: 1\n", ["line 1, column 3", "unhashable key"]),
        ("a: 1\n---\nb: 2\n", ["line 2, column 1", "single document"]),
        ('a: "\\ud800"\n', ["line 1, column 4", "half of a character"]),
        ("a: !!set {x}\n", ["a", "set"]),
        ("a: ${\n", ["a", "$"]),
        ("just a text\n", ["no YAML mapping"]),
        ("1\n", ["no YAML mapping"]),
        (f"a: {'[' * 100}{']' * 100}\n", ["line 1", f"more than {MAX_DEPTH} levels"]),
        (f"{'[' * 100_000}", ["line 1", f"more than {MAX_DEPTH} levels"]),
        ("a: &x [*x]\n", ["line 1", "stands for what it is a part of"]),
        (BOMB, ["line 7", f"more than {MAX_VALUES:,} values"]),
    ],
)
def test_each_mistake_is_one_sentence(text: str, words: list[str]) -> None:
    began = time.monotonic()
    said = refused(text)
    for word in words:
        assert word in said, said
    assert time.monotonic() - began < 60  # a bomb takes for ever


@pytest.mark.parametrize("text", ["a: 1\n\tb: 2\n", BOMB, "[" * 1000])
def test_without_libyaml_the_answers_are_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused(text)
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert refused(text) == said


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("a: 1\n", {"a": 1}),
        ("lr: 1e-3\n", {"lr": 0.001}),  # OmegaConf's floats, and not YAML 1.1's
        ("day: 2020-01-01\n", {"day": "2020-01-01"}),
        ("a: &x {b: 1}\nc: *x\n", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: ${b}\nb: 数据\n", {"a": "数据", "b": "数据"}),
        ("- 1\n- 2\n", [1, 2]),
        ("\ufeffa: 1\n", {"a": 1}),
    ],
)
def test_what_omegaconf_reads_is_read(text: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    assert OmegaConf.to_container(load_yaml(path), resolve=True) == value


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes("a: 1\nb: ü\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"own\.yaml, line 2, column 4: the byte 0xfc is no UTF-8"):
        read_text_file(path)
    with pytest.raises(ConfigError, match="cannot be read: is a directory"):
        read_text_file(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read: no such file"):
        read_text_file(tmp_path / "none.yaml")
    path.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="bytes; a configuration has"):
        read_text_file(path)
