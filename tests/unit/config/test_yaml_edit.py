"""Editing single values of a YAML text: the others, comments and blank lines stay as they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sweep.config.yaml_edit import edit_yaml

TEXT = """\
# head
model:
  _component_: a.b.lora  # why
  lora_rank: 8
  lora_attn_modules: ['q_proj', 'v_proj']

  apply: True
# between
optimizer: {lr: 3e-4, fused: True}  # flow
files: [
  one,
  two,
]
datasets:
  - source: x
    split: train
  - source: y
empty:
tail: null
"""


@pytest.mark.parametrize(
    ("text", "changes", "edited"),
    [
        # scalars
        ("a: 1\nb: 2\n", {"a": 3}, "a: 3\nb: 2\n"),
        ("a: 1\nb: 2\n", {}, "a: 1\nb: 2\n"),
        ("a: 1   # why\n\nb: 2\n", {"a": "x"}, "a: x   # why\n\nb: 2\n"),
        ("a: 'x'\n", {"a": True}, "a: true\n"),
        ("a: x\n", {"a": None}, "a: null\n"),
        ("a: null\n", {"a": 0.5}, "a: 0.5\n"),
        ("a: 3e-4\n", {"a": 1e-5}, "a: 1.0e-05\n"),
        ("a: 1\n", {"a": "y: z"}, "a: 'y: z'\n"),
        ("a: 1\n", {"a": "on"}, "a: 'on'\n"),
        ("a: 1\n", {"a": ""}, "a: ''\n"),
        ("a: 1\n", {"a": float("inf")}, "a: .inf\n"),
        ("a:\n  b:\n    c: 1\n  d: 2\n", {"a.b.c": 9}, "a:\n  b:\n    c: 9\n  d: 2\n"),
        # nothing behind the colon
        ("a:\nb: 1\n", {"a": 3}, "a: 3\nb: 1\n"),
        ("a:   # why\nb: 1\n", {"a": 3}, "a: 3   # why\nb: 1\n"),
        ("b: 1\na:", {"a": [1]}, "b: 1\na: [1]"),
        # lists and mappings
        ("a: [x, y]\nb: 1\n", {"a": ["z"]}, "a: [z]\nb: 1\n"),
        ("a: [x, y]\n", {"a.1": "z"}, "a: [x, z]\n"),
        ("a: [\n  x,\n  y,\n]\nb: 1\n", {"a": []}, "a: []\nb: 1\n"),
        ("a:\n  - x\n  - y\nb: 1\n", {"a": ["z"]}, "a: [z]\nb: 1\n"),
        ("a:\n  - x\n  - y\n", {"a.0": "z"}, "a:\n  - z\n  - y\n"),
        ("a: {x: 1, y: {z: 2}}\n", {"a.y.z": 3}, "a: {x: 1, y: {z: 3}}\n"),
        ("a: 1\n", {"a": {"b": 1}}, "a: {b: 1}\n"),
        ("a:\n  b: 1\n\n# c\nd: 1\n", {"a": None}, "a: null\n\n# c\nd: 1\n"),
        # new keys
        ("a: 1\n", {"b": 2}, "a: 1\nb: 2\n"),
        ("a: 1", {"b": 2}, "a: 1\nb: 2\n"),
        ("a: 1  # c", {"b": 2}, "a: 1  # c\nb: 2\n"),
        ("a: 1\n\n# end\n", {"b": 2}, "a: 1\nb: 2\n\n# end\n"),
        ("a: 1\n", {"b.c.d": 2, "b.c.e": [1, None]}, "a: 1\nb:\n  c:\n    d: 2\n    e:\n    - 1\n    - null\n"),
        ("a:\n  b: 1\n  # of a\n\nc: 1\n", {"a.d": 2}, "a:\n  b: 1\n  d: 2\n  # of a\n\nc: 1\n"),
        ("a:\n    b: 1\nc: 1\n", {"a.d.e": 2}, "a:\n    b: 1\n    d:\n      e: 2\nc: 1\n"),
        (
            "a:\n  b: 1\nc:\n  d: 1\n",
            {"a.x": 1, "c.x": 2, "a.y": 3},
            "a:\n  b: 1\n  x: 1\n  y: 3\nc:\n  d: 1\n  x: 2\n",
        ),
        ("a: {b: 1}  # c\nd: 1\n", {"a.e": 2}, "a: {b: 1, e: 2}  # c\nd: 1\n"),
        ("a: {}\n", {"a.b": {"c": 1}}, "a: {b: {c: 1}}\n"),
        ("{a: 1}", {"b": 2}, "{a: 1, b: 2}"),
        ("a:\n  - x: 1\n  - y: 1\n", {"a.0.z": 2, "a.1.z": 3}, "a:\n  - x: 1\n    z: 2\n  - y: 1\n    z: 3\n"),
        ("---\na: 1\n...\n", {"b": 2}, "---\na: 1\nb: 2\n...\n"),
    ],
)
def test_edits(text: str, changes: dict[str, Any], edited: str) -> None:
    assert edit_yaml(text, changes) == edited
    assert yaml.safe_load(edited) == expected(text, changes)


@pytest.mark.parametrize(
    ("text", "changes", "edited"),
    [
        # inside of a flow mapping or list
        ("a: {x: 1}\n", {"a.x": "train[:64]"}, "a: {x: 'train[:64]'}\n"),
        ("a: {x: 1}\n", {"a.x": "${b}/x"}, "a: {x: '${b}/x'}\n"),
        ("a: {x: 1}\n", {"a.x": "p, q", "a.y": "r: s"}, "a: {x: 'p, q', y: 'r: s'}\n"),
        ("a: [x, y]\n", {"a.0": "p, q"}, "a: ['p, q', y]\n"),
        ("a: {\n  x: 1,\n}\n", {"a.y": 2}, "a: {\n  x: 1, y: 2,\n}\n"),
        ("a: {x: 1  # one, two\n}\n", {"a.y": 2}, "a: {x: 1, y: 2  # one, two\n}\n"),
        ("a: {x, y: 1}\n", {"a.x": 2}, "a: {x: 2, y: 1}\n"),
        # blocks below their key
        ("a:\n- x\n- y\nb: 1\n", {"a": ["z"]}, "a: [z]\nb: 1\n"),
        ("a:  # why\n# more\n- x\n- y  # gone\n# end", {"a": ["z"]}, "a: [z]  # why\n# more\n# end"),
        ("a:\n- x\n- y", {"a": 1}, "a: 1\n"),
        ("a:\n- x: 1\n  y: 2\n- 3\n", {"a.0": 1, "a.1": {"p": "q"}}, "a:\n- 1\n- {p: q}\n"),
        ("a:\n- - x\n  - y\n", {"a.0": [], "b": 1}, "a:\n- []\nb: 1\n"),
        ("a:\n  -\n  - 2\n", {"a.0": 5}, "a:\n  - 5\n  - 2\n"),
        # texts of several lines
        ("a: |\n  x\nb: 1\n", {"a": 2}, "a: 2\nb: 1\n"),
        ("a: >-\n  x\n  y\n\nb: 1\n", {"a": 2}, "a: 2\n\nb: 1\n"),
        ("a:\n  x: |\n    x\nb: 1\n", {"a.y": 2}, "a:\n  x: |\n    x\n  y: 2\nb: 1\n"),
        ("a: 1\n", {"a": "x\ny: z"}, 'a: "x\\ny: z"\n'),
        # nothing there yet
        ("a: null  # why\nb: 1\n", {"a.x": 1, "a.y": 2}, "a: {x: 1, y: 2}  # why\nb: 1\n"),
        ("a:\nb: 1\n", {"a.x": 1, "a.y.z": 2}, "a: {x: 1, y: {z: 2}}\nb: 1\n"),
        ("", {"a.b": 1, "a.c": 2}, "a:\n  b: 1\n  c: 2\n"),
        ("# only this", {"a": 1}, "# only this\na: 1\n"),
        ("---\n", {"a": 1}, "---\n {a: 1}"),
        # anchors and aliases
        ("a: &n 1\nb: *n\n", {"b": 2}, "a: &n 1\nb: 2\n"),
        ("a: &n 1\nb: *n\n", {"a": 2}, "a: 2\nb: 1\n"),
        ("a: &n {x: 1e-3}\nb: *n\n", {"b.x": 2}, "a: &n {x: 1e-3}\nb: {x: 2}\n"),
        ("a: &n\n  x: 1\nb:\n  <<: *n\n  y: 2\n", {"b.x": 3}, "a: &n\n  x: 1\nb:\n  <<: *n\n  y: 2\n  x: 3\n"),
        ("a: &n\n  x: 1\nb:\n  <<: *n\n", {"a.x": 3}, "a: &n\n  x: 3\nb:\n  <<: {x: 1}\n"),
        ("a: &n [1]\nb:\n  c: *n\nd: 1\n", {"b.e": 2}, "a: &n [1]\nb:\n  c: *n\n  e: 2\nd: 1\n"),
    ],
)
def test_edits_of_rarer_yaml(text: str, changes: dict[str, Any], edited: str) -> None:
    assert edit_yaml(text, changes) == edited
    assert yaml.safe_load(edited) == expected(text, changes)


def test_an_edit_that_would_change_something_else_is_refused() -> None:
    """The last line of a text that keeps its blank lines."""
    with pytest.raises(KeyError, match="b cannot be set without changing more"):
        edit_yaml("a: |+\n  x\n\n\n", {"b": 1})


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("a: 1\n", {"a.b": 2}),
        ("a: [x]\n", {"a.y": 2}),
        ("a: [x]\n", {"a.1": 2}),
        ("a:\n  - x\n", {"a.b.c": 2}),
    ],
)
def test_a_key_below_something_else_than_a_mapping_is_refused(text: str, changes: dict[str, Any]) -> None:
    with pytest.raises(KeyError):
        edit_yaml(text, changes)


@pytest.mark.parametrize(
    "value",
    [
        1e-5,
        3e-4,
        1.5e-7,
        1e16,
        1e300,
        0.1,
        123456789.0,
        -2.0,
        7,
        True,
        None,
        "8",
        "null",
        "true",
        "0x1f",
        "1:30",
        "${root}/data",
        "a\nb",
        "日本",
        ["a.b", 1e-5],
        "1e-3",
        "1.5e3",
        ".5e3",
        "1_000",
        "1_0e2",
        "2020-01-01",
        "inf",
        ".inf",
    ],
)
def test_a_value_is_read_by_omegaconf_as_it_was_meant(value: Any) -> None:
    """torchtune reads with OmegaConf, whose floats PyYAML's own loader takes for texts."""
    for text, key in (("a: 1\n", "a"), ("a: 1\n", "b"), ("b:\n  c: x\n", "b.c")):
        cfg = OmegaConf.create(edit_yaml(text, {key: value}))
        node: Any = OmegaConf.to_container(cfg)
        for part in key.split("."):
            node = node[part]
        assert node == value
        assert type(node) is type(value)


# --- properties ---------------------------------------------------------------------------------------------------

safe_text = st.text(
    st.characters(codec="ascii", categories=("L", "N")) | st.sampled_from(" .:#'\"-_/&*!%@"), max_size=8
)
texts = safe_text | st.sampled_from(["train[:64]", "${root}/x", "a, b", "{", "日本", "a\nb", "|", "? x", "- x"])
scalars = st.none() | st.booleans() | st.integers(-9999, 9999) | st.floats(allow_nan=False)
values: st.SearchStrategy[Any] = st.recursive(
    scalars | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "y", "z"]), inner, min_size=1, max_size=2)
    ),
    max_leaves=4,
)
KNOWN = (
    "model",
    "model._component_",
    "model.lora_rank",
    "model.lora_attn_modules",
    "model.lora_attn_modules.1",
    "optimizer",
    "optimizer.lr",
    "files",
    "files.0",
    "datasets.0.split",
    "datasets.1",
    "empty",
    "tail",
)
NEW = ("new", "model.alpha", "model.deep.er", "model.deep.est", "optimizer.wd", "datasets.1.split", "top.a", "top.b.c")


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_an_edited_text_reads_as_the_updated_mapping(data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.sampled_from(KNOWN + NEW), min_size=1, max_size=4, unique=True))
    keys = [key for key in keys if not any(other != key and key.startswith(f"{other}.") for other in keys)]
    changes = {key: data.draw(values, label=key) for key in keys}
    assert yaml.safe_load(edit_yaml(TEXT, changes)) == expected(TEXT, changes)


@settings(deadline=None, max_examples=15)
@given(keys=st.lists(st.sampled_from((*NEW, "empty", "model.lora_rank")), min_size=1, max_size=4, unique=True))
def test_comments_and_other_lines_stay_in_their_order(keys: list[str]) -> None:
    edited = iter(edit_yaml(TEXT, dict.fromkeys(keys, 7)).splitlines())
    changed = ("lora_rank:", "optimizer:", "empty:")
    for line in TEXT.splitlines():
        if not line.strip().startswith(changed):
            assert line in edited  # consumes the iterator up to the line: the order counts


def expected(text: str, changes: dict[str, Any]) -> Any:
    """The plain value of the text with these dotted keys set."""
    root = copy.deepcopy(yaml.safe_load(text))
    for key, value in changes.items():
        node = root = root or {}
        *parents, last = key.split(".")
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else step(node, part)
        node[int(last) if isinstance(node, list) else last] = value
    return root


def step(node: dict[str, Any], part: str) -> Any:
    if node.get(part) is None:
        node[part] = {}
    node[part] = copy.deepcopy(node[part])  # an alias shares it
    return node[part]
