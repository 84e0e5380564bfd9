"""Which code a torchtune configuration may name."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.resources import torchtune_recipes
from trainer.components import (
    ALLOWED,
    MOVED,
    ComponentError,
    check_components,
    components,
    current_path,
    load_components,
    load_function,
)

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


@pytest.mark.parametrize(
    "old",
    [
        "torchtune.utils.metric_logging.DiskLogger",
        "torchtune.utils.FullModelHFCheckpointer",
        "torchtune.utils.FullModelMetaCheckpointer",
        "torchtune.utils.FullModelTorchTuneCheckpointer",
        "torchtune.utils.setup_torch_profiler",
        "torchtune.modules.get_cosine_schedule_with_warmup",
        "torchtune.modules.tokenizers.SentencePieceBaseTokenizer",
        "torchao.prototype.low_bit_optim.AdamW8bit",
    ],
)
def test_an_old_name_is_taken_for_what_it_is_today(old: str) -> None:
    load_components({"checkpointer": {"_component_": old}})
    assert current_path(old) != old


@pytest.mark.parametrize("prefix", ["", ".", "my package.", "mine..", ".mine", "mine.*", "1st."])
def test_a_prefix_that_would_allow_everything_is_refused(prefix: str) -> None:
    with pytest.raises(ComponentError, match=r"recipe\.components has .* no dotted name"):
        check_components({}, [prefix])
    with pytest.raises(ComponentError, match=r"recipe\.components has"):
        load_components({"a": EVIL}, [prefix])


def test_a_prefix_is_the_name_of_a_module_and_not_the_beginning_of_one() -> None:
    check_components({"a": {"_component_": "mine.rows"}}, ["mine"])
    with pytest.raises(ComponentError, match=r"mineral\.rows is not among"):
        check_components({"a": {"_component_": "mineral.rows"}}, ["mine"])


@pytest.mark.parametrize("value", [True, 1, "yes"])
def test_a_data_set_s_own_code_is_refused(value: object) -> None:
    with pytest.raises(ComponentError, match=r"dataset\.0\.trust_remote_code="):
        check_components({"dataset": [{**FINE, "trust_remote_code": value}]})
    check_components({"dataset": {**FINE, "trust_remote_code": False}})


def test_a_data_set_of_pickles_is_refused() -> None:
    with pytest.raises(ComponentError, match=r"dataset\.0\.source=pandas would read data frames as pickles"):
        check_components({"dataset": [{**FINE, "source": "pandas"}]})
    check_components({"dataset": {**FINE, "source": "json", "data_files": "pandas"}})


# --- objects, where they are built ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "definer"),
    [
        ("torchtune.modules.early_exit_loss.np.load", "numpy"),
        ("torchao.prototype.parq.utils.import_module", "importlib"),
        ("torchtune.config.instantiate", "torchtune.config._instantiate"),
        ("torchtune.training.metric_logging.Path", "pathlib"),
        ("torchtune.data.load_image", "torchtune.data._utils"),
        ("torchtune.training.log_memory_stats", "torchtune.training.memory"),
        ("torchtune.data.Message.from_dict", "torchtune.data._messages"),
        ("torch.nn.utils.parametrize.register_parametrization", "torch.nn.utils.parametrize"),
        ("torch.optim.swa_utils.deepcopy", "copy"),
        ("torch.nn.init.uniform_", "torch.nn.init"),
        ("torch.nn.modules.module.Module.load_state_dict", "torch.nn.modules.module"),
        ("torchtune.modules", "builtins"),
    ],
)
def test_an_alias_is_trusted_by_what_it_leads_to(path: str, definer: str) -> None:
    config = {"dataset": {"inner": [{"_component_": path}]}}
    with pytest.raises(ComponentError, match=f"{re.escape(path)} .* {definer}.*recipe.components") as caught:
        load_components(config)
    assert str(caught.value).startswith("dataset.inner[0]._component_=")
    load_components(config, [path])  # the user names this very object


def test_all_components_of_torchtunes_lora_recipes_may_be_built() -> None:
    """Those of packages that are not installed are neither refused nor built."""
    for path in sorted(torchtune_recipes().rglob("*lora*.yaml")):
        for name in re.findall(r"^\s*_component_: ([\w.]+)", path.read_text(), re.MULTILINE):
            if "QAT" in name:  # of the recipe qat_lora_finetune_distributed, whose quantizer is never built here
                continue
            try:
                load_components({"a": {"_component_": name}})
            except ComponentError as error:
                assert "is not installed" in str(error)


@pytest.mark.parametrize(
    "path",
    [
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "torch.nn.CrossEntropyLoss",
        "torchao.optim.AdamW8bit",
        "torchtune.data.padded_collate_sft",
        "torchtune.data.ChatMLTemplate",
        "torchtune.datasets.alpaca_cleaned_dataset",  # a partial function
    ],
)
def test_what_a_recipe_builds_is_trusted(path: str) -> None:
    load_components({"a": {"_component_": path}})


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("torch.optim.AdamWW", "torch.optim has no AdamWW; did you mean AdamW?"),
        ("torchtune.modules.get_cosine_schedule", "torchtune.modules has no get_cosine_schedule"),
        ("torch.optim.AdamW.nope", "torch.optim.AdamW has no nope"),
        ("torch.optim.", "it is no dotted path"),
    ],
)
def test_what_does_not_exist_is_named(path: str, complaint: str) -> None:
    with pytest.raises(ComponentError, match=f"optimizer._component_={path} cannot be used: ") as caught:
        load_components({"optimizer": {"_component_": path}})
    assert complaint in str(caught.value)
    load_components({"metric_logger": {"_component_": path}})  # the trainer builds its own


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's own, which imports `os` and a function of another module."""
    (tmp_path / "users_code.py").write_text(
        "import os\nfrom os import system as shell\nfrom functools import partial\n"
        "def rows(): ...\nfew = partial(rows)\nclass Loss: ...\nloss = Loss()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_code", raising=False)
    return "users_code"


@pytest.mark.parametrize(
    ("name", "definer"), [("rows", None), ("few", None), ("Loss", None), ("loss", None), ("shell", "posix")]
)
def test_a_prefix_of_the_user_trusts_what_is_defined_below_it(mine: str, name: str, definer: str | None) -> None:
    if definer is None:
        load_components({"dataset": {"_component_": f"{mine}.{name}"}}, [mine])
        assert load_function("wandb.hook", f"{mine}.{name}", [f"{mine}."]) is not None
        return
    with pytest.raises(ComponentError, match=f"{mine}.{name} is a function that {definer} defines"):
        load_components({"dataset": {"_component_": f"{mine}.{name}"}}, [mine])
    with pytest.raises(ComponentError, match=f"wandb.hook={mine}.{name} is a function that {definer} defines"):
        load_function("wandb.hook", f"{mine}.{name}", [mine])


def test_a_module_of_the_user_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_code.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ComponentError, match=r"broken_code cannot be imported .ZeroDivisionError: division by zero"):
        load_components({"dataset": {"_component_": "broken_code.rows"}}, ["broken_code"])
