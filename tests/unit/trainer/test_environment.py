"""References to environment variables in a resolved configuration."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainer.components import ComponentError
from trainer.configuration import trusted_config
from trainer.environment import (
    InterpolationLeftError,
    MissingVariableError,
    check_plain,
    mask,
    reference,
    references,
    reveal,
)

ENV = {"HF_TOKEN": "hf_secret_value", "N": "3"}


@pytest.mark.parametrize(
    ("value", "revealed"),
    [
        ("${oc.env:HF_TOKEN}", "hf_secret_value"),
        ("Bearer ${oc.env:HF_TOKEN}-${oc.env:N}", "Bearer hf_secret_value-3"),
        ({"a": ["${oc.env:N}", 1, None, True]}, {"a": ["3", 1, None, True]}),
        ("${oc.env:NOPE,null}", None),
        ("x${oc.env:NOPE,null}", "x"),
        ('${oc.env:NOPE,"a b"}', "a b"),
        ('${oc.env:N,"a b"}', "3"),
        ("no reference", "no reference"),
        ("$HOME and {braces}", "$HOME and {braces}"),
    ],
)
def test_reveal(value: Any, revealed: Any) -> None:
    assert reveal(value, ENV) == revealed


def test_a_variable_that_is_not_set_is_named_with_its_key() -> None:
    config = {"dataset": [{"token": "${oc.env:NOPE}"}]}
    with pytest.raises(MissingVariableError, match=r"dataset\[0\]\.token=.*the environment variable NOPE is not set"):
        reveal(config, {})


@pytest.mark.parametrize("text", ["${evil}", "torchtune.${evil}", "${oc.env:A}${b}", "${oc.env:${A}}", "${now:}", "${"])
def test_an_interpolation_that_is_left_is_refused(text: str) -> None:
    with pytest.raises(InterpolationLeftError, match=r"a\.b\[0\]="):
        check_plain({"a": {"b": [text]}})
    with pytest.raises(InterpolationLeftError):
        trusted_config({"model": text})


def test_references_are_no_interpolations_that_are_left() -> None:
    config = {"a": reference("A"), "b": [f"x {reference('B', None)}"], "c": 1}
    check_plain(config)
    assert list(references(config)) == [("a", "${oc.env:A}"), ("b[0]", "x ${oc.env:B,null}")]


@pytest.mark.parametrize("name", ["", "a b", "${x}", "A,b", "1A"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        reference(name)


@given(default=st.text(st.characters(codec="ascii", exclude_characters='"\\\\${}\n'), max_size=20))
def test_omegaconf_reads_a_reference_as_we_do(default: str) -> None:
    """torchtune's own recipes read the exported YAML."""
    text = reference("SWEEP_TEST_UNSET_VARIABLE", default)
    assert OmegaConf.create({"a": text}).a == reveal(text, {}) == default


def test_a_variable_cannot_name_code_later() -> None:
    """What a variable holds is checked as all else is."""
    named = {"model": {"_component_": "${oc.env:SWEEP_TEST_NAME}"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWEEP_TEST_NAME", "os.system")
        with pytest.raises(ComponentError, match=r"os\.system is not among"):
            trusted_config(named)
        patch.setenv("SWEEP_TEST_NAME", "${evil}")
        with pytest.raises(InterpolationLeftError):
            trusted_config({**named, "evil": "os.system"})


def test_a_revealed_value_is_masked_in_texts() -> None:
    reveal("${oc.env:HF_TOKEN} ${oc.env:N}", ENV)
    assert mask("401 for hf_secret_value, 3 tries") == "401 for ${oc.env:HF_TOKEN}, 3 tries"
