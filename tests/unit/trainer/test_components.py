"""Which code a torchtune configuration may name."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.resources import torchtune_recipes
from trainer.components import ALLOWED, MOVED, ComponentError, check_components, components, current_path

FINE = {"_component_": "torchtune.models.llama3.lora_llama3"}
EVIL = {"_component_": "os.system"}


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({}, []),
        ({"epochs": 1, "device": "cpu", "nothing": None}, []),
        ({"model": FINE}, [("model._component_", FINE["_component_"])]),
        (FINE, [("_component_", FINE["_component_"])]),
        ({"a": {"b": {"c": EVIL}}}, [("a.b.c._component_", "os.system")]),
        ({"a": [1, EVIL, [EVIL]]}, [("a[1]._component_", "os.system"), ("a[2][0]._component_", "os.system")]),
        ([EVIL], [("[0]._component_", "os.system")]),
        ({"a": (EVIL,)}, [("a[0]._component_", "os.system")]),
        ({"a": {**FINE, "b": EVIL}}, [("a._component_", FINE["_component_"]), ("a.b._component_", "os.system")]),
        ({"collate_fn": "os.system"}, [("collate_fn", "os.system")]),
        ({"dataset": {"collate_fn": "os.system"}}, [("dataset.collate_fn", "os.system")]),
        ({"collate_fn": EVIL}, [("collate_fn._component_", "os.system")]),
        ({"_component_": None}, [("_component_", "None")]),
    ],
)
def test_components_are_found_at_every_depth(config: Any, found: list[tuple[str, str]]) -> None:
    assert list(components(config)) == found


@pytest.mark.parametrize("prefix", ALLOWED)
def test_every_allowed_prefix_is_allowed(prefix: str) -> None:
    check_components({"a": {"_component_": f"{prefix}thing"}, "collate_fn": f"{prefix}other"})


@pytest.mark.parametrize(
    "path", ["os.system", "torch", "torch.hub.load", "torchtunes.x", "mytorchtune.x", "torchtune", "", " torchtune.x"]
)
@pytest.mark.parametrize("wrap", ["top", "nested", "in a list", "collate_fn"])
def test_everything_else_is_refused_wherever_it_stands(path: str, wrap: str) -> None:
    named = {"_component_": path}
    config: dict[str, Any] = {
        "top": named,
        "nested": {"dataset": {"inner": named}},
        "in a list": {"dataset": {"datasets": [FINE, named]}},
        "collate_fn": {"collate_fn": path},
    }
    with pytest.raises(ComponentError) as caught:
        check_components({"model": FINE, **config[wrap]} if wrap != "top" else named)
    text = str(caught.value)
    assert f"={path} is not among the allowed components" in text
    assert "recipe.components" in text
    assert all(prefix in text for prefix in ALLOWED)


@settings(deadline=None, max_examples=60)
@given(
    keys=st.lists(st.none() | st.sampled_from(["dataset", "0", "a.b"]), max_size=6),
    beside=st.sampled_from([{}, FINE, {"x": [FINE]}]),
)
def test_no_depth_hides_a_component(keys: list[str | None], beside: dict[str, Any]) -> None:
    """None stands for a list."""
    config: Any = dict(EVIL)
    for key in keys:
        config = [FINE, config] if key is None else {**beside, key: config}
    with pytest.raises(ComponentError, match=r"os\.system"):
        check_components(config)


def test_extra_prefixes_are_allowed_and_named() -> None:
    mine = {"dataset": {"_component_": "mine.data.rows"}}
    check_components(mine, ["mine.data."])
    with pytest.raises(ComponentError, match=r"dataset._component_=mine.data.rows .*yours\."):
        check_components(mine, ["yours."])


@pytest.mark.parametrize(
    ("template", "allowed"),
    [
        ("evil.module.Template", False),
        ("os.getcwd", False),
        ("torchtune.data.ChatMLTemplate", True),
        (None, True),
        ({"user": ["### Question: ", "os.system\n"]}, True),  # tags by role, which nobody imports
    ],
)
def test_a_prompt_template_is_code_too(template: Any, allowed: bool) -> None:
    config = {"tokenizer": {**FINE, "prompt_template": template}}
    if allowed:
        check_components(config)
        return
    with pytest.raises(ComponentError, match=r"tokenizer\.prompt_template="):
        check_components(config)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("torchtune.utils._device.os.system", "_device"),
        ("torchtune.training.checkpointing.os.system", "os"),
        ("torch.nn.modules.module.torch.hub.load", "torch"),
        ("torch.optim.optimizer.functools.partial", "functools"),
        ("torchtune.__builtins__", "__builtins__"),
    ],
)
def test_a_path_does_not_lead_out_of_its_package(path: str, part: str) -> None:
    with pytest.raises(ComponentError, match=f"a._component_={path} leads through {part},"):
        check_components({"a": {"_component_": path}})
    check_components({"a": {"_component_": path}}, [path])


def test_an_extra_prefix_may_be_private() -> None:
    check_components({"a": {"_component_": "mine._data.rows"}}, ["mine._data."])
    with pytest.raises(ComponentError, match="leads through subprocess"):
        check_components({"a": {"_component_": "mine._data.subprocess.run"}}, ["mine._data."])


def test_torchtunes_own_configurations_name_public_paths() -> None:
    """All that a LoRA recipe could take; a classifier for reinforcement learning is private."""
    for path in sorted(torchtune_recipes().rglob("*lora*.yaml")):
        named = re.findall(r"^\s*_component_: ([\w.]+)", path.read_text(), re.MULTILINE)
        check_components([{"_component_": name} for name in named])


@pytest.mark.parametrize(
    ("path", "current"),
    [
        (
            "torchtune.utils.metric_logging.WandBLogger",
            "torchtune.training.metric_logging.WandBLogger",
        ),
        ("torchtune.training.metric_logging.DiskLogger", "torchtune.training.metric_logging.DiskLogger"),
        ("torchtune.utils.metric_loggings", "torchtune.utils.metric_loggings"),
        ("my.torchtune.utils.metric_logging.DiskLogger", "my.torchtune.utils.metric_logging.DiskLogger"),
        ("torch.optim.AdamW", "torch.optim.AdamW"),
    ],
)
def test_current_path(path: str, current: str) -> None:
    assert current_path(path) == current
    assert current_path(current) == current


def test_what_has_moved_stays_within_the_allow_list() -> None:
    for old, new in MOVED.items():
        assert old.startswith(ALLOWED)
        assert new.startswith(ALLOWED)
