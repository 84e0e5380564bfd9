"""The documentation against the code: links, paths, configuration keys, and the contents of the site."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from sweep.config.ranges import POSITIVE
from tests.helpers import configuration_doc
from tests.helpers.configuration_doc import generated, section_keys, undocumented, yaml_keys
from tests.helpers.markdown import ROOT, anchors, broken_links, code_spans, links, pages, unknown_names
from tests.helpers.site import with_site_links

DOCS = ROOT / "docs"
PAGES = [str(page.relative_to(ROOT)) for page in pages()]
README = (ROOT / "README.md").read_text()


# --- links and names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert list(broken_links(ROOT / page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_a_page_names_exist(page: str) -> None:
    """A module that has moved is found here before a reader looks for it."""
    named = [span for span in code_spans((ROOT / page).read_text()) if re.fullmatch(r"[\w./-]+", span)]
    paths = [span for span in named if span.startswith(("sweep/", "trainer/", "tests/", "conf/", "docs/"))]
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])  # which names what was, too
def test_modules_classes_and_functions_that_a_page_names_exist(page: str) -> None:
    theirs = {"Runs.histories", "WandBLogger"}  # of wandb's client, of torchtune
    assert [name for name in unknown_names((ROOT / page).read_text()) if name not in theirs] == []


def test_an_unknown_name_is_seen() -> None:
    known = "`sweep.queues.backend.Backend` `python -m trainer.entry.launch_job` `decide` `Pack.step` `True`"
    assert unknown_names(f"{known}\n```\n`sweep.gone`\n```") == []
    unknown = "`sweep.gone` `trainer.packed.Pack` `CombinedController` `Pack.vanished()` `tests.bench.x.y`"
    assert unknown_names(unknown) == [name.strip("`()") for name in unknown.split() if name != "`CombinedController`"]
    assert unknown_names("`CombinedControllers`") == ["CombinedControllers"]


def test_a_broken_link_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.helpers.markdown.ROOT", tmp_path)
    (tmp_path / "there.md").write_text("# W&B: what's sent\n\n## Twice\n\n## Twice\n")
    page = tmp_path / "page.md"
    good = "[a](there.md) [b](there.md#wb-whats-sent) ![c](there.md#twice-1) [d](#here) [e](https://x.org/y#z)"
    bad = "[`f`](gone.md) [g](there.md#twice-2) [h](../out.md) [i](#nowhere)"
    page.write_text(f"# Here\n\n{good}\n{bad}\n\n`[j](code.md)`\n\n```\n[k](fence.md)\n```\n")
    assert list(broken_links(page)) == ["gone.md", "there.md#twice-2", "../out.md", "#nowhere"]


def test_anchors_are_the_same_on_github_and_on_the_site() -> None:
    """MkDocs makes one hyphen of several, GitHub does not: a heading that is linked to has none of these."""
    linked = {link.partition("#")[2] for page in pages() for link in links(page.read_text()) if "#" in link}
    assert [anchor for anchor in linked if "--" in anchor] == []
    assert anchors("## What is logged to W&B, on any queue") == ["what-is-logged-to-wb-on-any-queue"]


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(README.splitlines()) <= 150
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in links(page.read_text())}
        waiting += [target for target in targets if target.suffix == ".md" and target.exists() and target not in seen]
    assert [page for page in PAGES if (ROOT / page) not in seen] == []


def test_all_say_the_same_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", version)
    newest = re.search(r"^## ([\d.]+) ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    packages = {name[0] for requirement in named if (name := re.match(r"[\w-]+", requirement))}
    reasons = (DOCS / "architecture.md").read_text().partition("## Dependencies")[2].lower()
    assert [name for name in sorted(packages) if not re.search(rf"\b{re.escape(name.lower())}\b", reasons)] == []


# --- the site -----------------------------------------------------------------------------------------------------


def _entries(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [entry for part in (nav.values() if isinstance(nav, dict) else nav) for entry in _entries(part)]


def test_the_site_lists_every_page_once() -> None:
    text = (DOCS / "site" / "mkdocs.yml").read_text()
    made = {"index.md", "contributing.md", "changelog.md"}  # from the files beside the README
    expected = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} | made
    assert sorted(_entries(yaml.safe_load(text)["nav"])) == sorted(expected)


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        (
            "index.md",
            "[a](docs/slurm.md#run-it) ![b](docs/pictures/x.svg)",
            "[a](slurm.md#run-it) ![b](pictures/x.svg)",
        ),
        ("index.md", "[how](trainer/embedded/README.md), [c](CONTRIBUTING.md)", "how, [c](contributing.md)"),
        (
            "notes/search.md",
            "[a](../search.md), [b](../../README.md#install)",
            "[a](../search.md), [b](../index.md#install)",
        ),
        ("slurm.md", "[a](#here) [b](https://x.org/y) [`conf`](../conf)", "[a](#here) [b](https://x.org/y) `conf`"),
        ("slurm.md", "`[a](../conf)`\n```\n[b](../conf)\n```\n", "`[a](../conf)`\n```\n[b](../conf)\n```\n"),
    ],
)
def test_links_are_those_of_the_site(page: str, text: str, expected: str) -> None:
    assert with_site_links(text, page) == expected


# --- configuration ------------------------------------------------------------------------------------------------


def test_no_key_and_no_choice_lacks_its_line() -> None:
    assert undocumented() == []


def test_the_configuration_page_is_up_to_date() -> None:
    page = (DOCS / "configuration.md").read_text()
    assert generated(page) == page, "run: python -m tests.helpers.configuration_doc"


@dataclass
class Base:
    """A base.

    Args:
        first: of the base.
    """

    first: int = 1


@dataclass
class Section(Base):
    """A section.

    Args:
        second, third: two at once: with a colon,
            over two lines.
    """

    second: float | None = None
    third: list[dict[str, Any]] = field(default_factory=list)
    silent: bool = True

    RANGES: ClassVar[Any] = {"second": POSITIVE}


def test_a_section_is_read_with_its_bases_its_ranges_and_its_gaps() -> None:
    keys = {key.name: key for key in section_keys(Section, "section")}
    assert [(key.type, key.default) for key in keys.values()] == [
        ("int", "1"),
        ("float or null; above 0", "null"),
        ("list of mappings", "[]"),
        ("bool", "true"),
    ]
    both = "two at once: with a colon, over two lines."
    assert [key.text for key in keys.values()] == ["of the base.", both, both, ""]


def test_a_key_without_a_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration_doc, "SECTIONS", {"section": Section})
    assert "section: silent" in undocumented()


def test_a_yaml_key_is_read_with_its_comment(tmp_path: Path) -> None:
    file = tmp_path / "choice.yaml"
    text = (
        "# What it is,\n# in short.\n# More.\n_target_: a.B\nrate: 0.1  # a rate\n# above\nsteps: 3\nnested:\n  of: 1\n"
    )
    file.write_text(text)
    assert configuration_doc.first_paragraph(file) == "What it is, in short."
    assert [(key.name, key.type, key.default, key.text) for key in yaml_keys(file)] == [
        ("rate", "float", "0.1", "a rate"),
        ("steps", "int", "3", "above"),
        ("nested", "mapping", "{of: 1}", ""),
    ]


@pytest.mark.parametrize("page", ["", "<!-- generated: search -->\n<!-- end -->\n" * 2])
def test_a_page_without_its_parts_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="the page has the parts"):
        generated(page)
