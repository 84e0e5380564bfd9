"""The trainer's image, as far as it can be seen without docker: it is read here, and was never built here."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sweep.queues.launch.job_artifact import ENTRY_POINT

REPOSITORY = Path(__file__).resolve().parents[2]
KNOWN = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT"}


@cache
def instructions() -> list[tuple[str, str]]:
    """Instruction and its words, comments left out and lines joined, as docker reads them."""
    lines = (REPOSITORY / "launch_queues" / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = text.replace("\\\n", " ").splitlines()
    return [(words[0], words[2]) for line in joined if (words := line.partition(" "))[0]]


def said(instruction: str) -> list[str]:
    return [" ".join(words.split()) for name, words in instructions() if name == instruction]


@cache
def pyproject() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


@cache
def let_through() -> list[str]:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"
    return [line[1:] for line in lines if line.startswith("!")]


def copied() -> list[str]:
    return [source for words in said("COPY") for source in shlex.split(words)[:-1]]


def test_every_instruction_is_one_that_docker_knows() -> None:
    assert {name for name, _ in instructions()} == KNOWN
    assert instructions()[0][0] == "FROM"
    assert instructions()[-1][0] == "ENTRYPOINT"


def test_the_base_is_pinned_to_a_version_that_the_program_runs_on() -> None:
    (base,) = said("FROM")
    found = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-\w+", base)
    assert found is not None
    assert pyproject()["project"]["requires-python"] == f">={found[1]}"


def test_it_installs_what_pyproject_names_and_nothing_else() -> None:
    lines = [shlex.split(words) for words in said("RUN") if "pip install" in words]
    packages = [word for line in lines for word in line if re.search(r"[<>=]=?\d", word)]
    project = pyproject()["project"]
    stores = project["optional-dependencies"]
    assert packages == [*project["dependencies"], *stores["s3"], *stores["gs"]]
    own = lines[-1][: lines[-1].index("&&")]
    assert own == ["pip", "install", "--no-deps", "."]


@pytest.mark.parametrize("source", copied())
def test_what_it_copies_is_here_and_let_through(source: str) -> None:
    assert (REPOSITORY / source).exists()
    assert source in let_through()


def test_it_copies_what_the_wheel_is_built_from() -> None:
    wheel = pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = pyproject()["project"]
    needed = {*wheel["packages"], *wheel["force-include"], project["readme"], *project["license-files"]}
    assert needed | {"pyproject.toml"} == set(copied()) == set(let_through())


def test_it_runs_as_nobody_in_particular_and_begins_with_the_launched_trainer() -> None:
    assert said("USER") == ["1000"]
    names = [name for name, _ in instructions()]
    assert "RUN" not in names[names.index("USER") :]
    assert "COPY" not in names[names.index("USER") :]
    (entry,) = said("ENTRYPOINT")
    program, *words = ENTRY_POINT.split()
    assert json.loads(entry) == [program, "-P", *words]  # a volume may be mounted where it starts


def test_no_secret_is_baked_in() -> None:
    text = " ".join(words for _, words in instructions())
    assert re.findall(r"(?i)\w*(?:key|token(?!izers_parallelism)|secret|passw)\w*", text) == []
    assert said("ENV")[0].count("=") == 4
