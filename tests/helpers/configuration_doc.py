"""The generated parts of docs/configuration.md: every group with its choices, every key with its line.

    python -m tests.helpers.configuration_doc [--check]

rewrites what stands between `<!-- generated: NAME -->` and `<!-- end -->` and leaves the rest as it is; with `--check`
it changes nothing and says by its exit code whether something would change. Types, defaults and ranges come from the
dataclasses of the sections, meanings from the lines under `Args:` of their docstrings. For a choice without a dataclass
(a sampler, a pruner, a prior) and for the keys of `conf/config.yaml` both come from the YAML file and its comments.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sweep.config.evaluate import EVALUATORS
from sweep.config.metrics import SOURCES, MetricSection
from sweep.config.queues import Queue
from sweep.config.section_reader import ranges_of
from sweep.config.sections import SECTIONS
from sweep.config.settings import read_queue
from sweep.resources import conf_dir, launch_queues_dir

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
BLOCK = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
# Groups in the order of the page, and what each decides.
GROUPS = {
    "experiment": "a whole sweep under one name: recipe, space and budget",
    "recipe": "the torchtune configuration that every trial starts from",
    "space": "the keys that vary",
    "sampler": "how the next trial's hyperparameters are chosen",
    "pruner": "which trials are stopped or paused",
    "prior": "what the sampler `forecast` assumes before the first trial",
    "objective": "what the sweep searches for",
    "metric": "how a metric is measured; a name of `objective.metrics` takes the file of that name",
    "queue": "where workers run",
    "evaluate": "how the adapter of each new best trial is judged",
    "wandb": "what is logged to Weights & Biases",
}
# Groups whose choices name a class and its arguments.
UNTYPED = ("sampler", "pruner", "prior")
TYPES = {"None": "null", "dict": "mapping", "Any": "any"}


@dataclass(frozen=True, slots=True)
class Key:
    """A line of the page.

    Args:
        name: the key below its section.
        type: its type, with the values that it may have.
        default: its default, as YAML.
        text: what it does; empty if nobody has said so.
    """

    name: str
    type: str
    default: str
    text: str


def choices(group: str) -> list[Path]:
    """The files of a group."""
    folder = launch_queues_dir() if group == "queue" else conf_dir() / group
    return sorted(folder.glob("*.yaml"))


def first_paragraph(path: Path) -> str:
    """The comment at the head of a YAML file, up to the first line that ends a sentence."""
    words: list[str] = []
    for line in path.read_text().splitlines():
        if not line.startswith("#") or (words and words[-1].endswith(".")):
            break
        if not line.startswith("# @"):
            words.append(line.removeprefix("#").strip())
    return " ".join(words)


def yaml_keys(path: Path) -> list[Key]:
    """The keys at the top of a choice's file, `_target_` apart; each with the comment behind it or above it."""
    comments: dict[str, str] = {}
    above: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            above.append(line.removeprefix("#").strip())
        elif name := re.match(r"([\w.]+):", line):
            behind = re.search(r"\s#\s+(.*)$", line)
            comments[name[1]] = behind[1] if behind else " ".join(above)
            above = []
        elif not line.startswith(" "):
            above = []
    raw = yaml.safe_load(path.read_text()) or {}
    return [
        Key(name, _type_of_value(value), _shown(value), comments.get(name, ""))
        for name, value in raw.items()
        if name not in ("_target_", "defaults")
    ]


def section_keys(kind: type, where: str) -> list[Key]:
    """The fields of a section's dataclass, `kind` apart."""
    described = described_fields(kind)
    ranges = ranges_of(kind)
    keys = []
    for field in dataclasses.fields(kind):
        if field.name in ("kind", "source"):  # each kind and each source has a heading of its own
            continue
        allowed = f"; {ranges[field.name][1]}" if field.name in ranges else ""
        text = described.get(field.name, "")
        keys.append(Key(field.name, _type(str(field.type)) + allowed, _default(field), text))
    return keys


def described_fields(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of its bases say of each field, the nearest one first."""
    described: dict[str, str] = {}
    for cls in kind.__mro__:
        if dataclasses.is_dataclass(cls):
            described = {**dict(_arguments(cls.__doc__ or "")), **described}
    return described


def queue_sections() -> dict[str, type[Queue]]:
    """The dataclass of each kind of queue that a file of `launch_queues/` has."""
    sections: dict[str, type[Queue]] = {}
    for path in choices("queue"):
        raw = yaml.safe_load(path.read_text())
        if raw["kind"] not in sections:
            sections[raw["kind"]] = type(read_queue(raw))
    return sections


def undocumented() -> list[str]:
    """Every key and choice that has no line."""
    missing = [f"{group}={path.stem}" for group in GROUPS for path in choices(group) if not first_paragraph(path)]
    for where, keys in _all_keys():
        missing += [f"{where}: {key.name}" for key in keys if not key.text]
    return missing


def generated(page: str) -> str:
    """The page with its generated parts made anew.

    Raises:
        ValueError: the page lacks a part, has one twice, or has one that nobody generates.
    """
    blocks = _blocks()
    names = [match[2] for match in BLOCK.finditer(page)]
    if sorted(names) != sorted(blocks):
        raise ValueError(f"the page has the parts {sorted(names)}; it must have {sorted(blocks)}")
    return BLOCK.sub(lambda match: f"{match[1]}\n{blocks[match[2]].rstrip()}\n\n{match[3]}", page)


def _all_keys() -> Iterator[tuple[str, list[Key]]]:
    yield "conf/config.yaml", _top_keys()
    for name, section in SECTIONS.items():
        yield name, section_keys(section, name)
    for name, evaluator in EVALUATORS.items():
        yield f"evaluate={name}", section_keys(evaluator, "evaluate")
    for name, source in SOURCES.items():
        yield f"metric, source {name}", section_keys(source, "metric")
    for name, queue in queue_sections().items():
        yield f"queue, kind {name}", section_keys(queue, "queue")
    for group in UNTYPED:
        for path in choices(group):
            yield f"{group}={path.stem}", yaml_keys(path)


def _top_keys() -> list[Key]:
    return [key for key in yaml_keys(conf_dir() / "config.yaml") if key.name not in SECTIONS]


def _blocks() -> dict[str, str]:
    blocks = {"groups": _groups(), "top": _table(_top_keys())}
    blocks |= {name: _table(section_keys(section, name)) for name, section in SECTIONS.items()}
    blocks |= {f"choices of {group}": _choices(group) for group in GROUPS}
    blocks["evaluate"] = "".join(
        f"**evaluate={name}.** {_summary(kind)}\n\n{_table(section_keys(kind, 'evaluate'))}\n"
        for name, kind in EVALUATORS.items()
        if section_keys(kind, "evaluate")
    )
    every_metric = [key for key in section_keys(MetricSection, "metric") if key.name != "source"]
    blocks["metric"] = f"{_table(every_metric)}\n" + "".join(
        f"**source {name}.** {_summary(kind)}\n\n{_table(own)}\n"
        for name, kind in SOURCES.items()
        if (own := [key for key in section_keys(kind, "metric") if key not in every_metric and key.name != "source"])
    )
    common = section_keys(Queue, "queue")
    blocks["queue"] = f"{_table(common)}\n" + "".join(
        f"**kind {name}.** {_summary(kind)}\n\n{_table(own)}\n"
        for name, kind in queue_sections().items()
        if (own := [key for key in section_keys(kind, "queue") if key not in common])
    )
    return blocks


def _groups() -> str:
    defaults: dict[str, Any] = {}
    for entry in yaml.safe_load((conf_dir() / "config.yaml").read_text())["defaults"]:
        defaults |= entry if isinstance(entry, dict) else {}
    rows = []
    for group, what in GROUPS.items():
        default = f"`{_shown(defaults[group])}`" if group in defaults else "–"
        rows.append((f"`{group}`", default, what, ", ".join(f"`{path.stem}`" for path in choices(group))))
    return _rows(("group", "default", "decides", "choices"), rows)


def _choices(group: str) -> str:
    if group not in UNTYPED:
        return _rows(("choice", "what it is"), [(f"`{path.stem}`", first_paragraph(path)) for path in choices(group)])
    rows = []
    for path in choices(group):
        rows.append((f"**`{path.stem}`**", "", "", first_paragraph(path)))
        rows += [(f"`{key.name}`", key.type, f"`{key.default}`", key.text) for key in yaml_keys(path)]
    return _rows(("choice, and its keys", "type", "default", "meaning"), rows)


def _table(keys: Iterable[Key]) -> str:
    rows = [(f"`{key.name}`", key.type, f"`{key.default}`", key.text) for key in keys]
    return _rows(("key", "type", "default", "meaning"), rows)


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *((*cells, _sentence(text)) for *cells, text in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _sentence(text: str) -> str:
    """A text with a capital, unless it begins with a key's name, and with links to other pages."""
    first = text.partition(" ")[0]
    text = text if re.search(r"[^a-z-]", first.rstrip(",:;")) else text[:1].upper() + text[1:]
    return re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", text)


def _arguments(docstring: str) -> Iterator[tuple[str, str]]:
    """Name and text of each entry under `Args:`; one entry may name several fields."""
    _, _, listed = docstring.partition("Args:\n")
    for entry in re.split(r"\n {8}(?=\S)", f"\n{listed.rstrip()}"):
        names, colon, text = entry.strip().partition(": ")
        if colon:
            for name in names.split(", "):
                yield name, " ".join(text.split()).replace("\\\\", "\\")


def _summary(kind: type) -> str:
    return _sentence(" ".join((kind.__doc__ or "").partition("Args:")[0].split()))


def _type(annotation: str) -> str:
    return " or ".join(_plain_type(part.strip()) for part in annotation.split("|"))


def _plain_type(name: str) -> str:
    if inner := re.fullmatch(r"list\[(.+)\]", name):
        item = _plain_type(inner[1])
        return f"list of {'mappings' if item == 'mapping' else item}"
    return TYPES.get(name.partition("[")[0], name)


def _type_of_value(value: Any) -> str:
    if isinstance(value, str) and value.startswith("${"):
        return "interpolation"
    return "str or null" if value is None else TYPES.get(type(value).__name__, type(value).__name__)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return _shown(field.default_factory())
    return "???" if field.default is dataclasses.MISSING else _shown(field.default)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=200)).strip()
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value) if value != "" else '""'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if something would change")
    check = parser.parse_args().check
    if missing := undocumented():
        print("no line for:", *missing, sep="\n  ", file=sys.stderr)
        return 1
    old = PAGE.read_text()
    new = generated(old)
    if not check:
        PAGE.write_text(new)
    return int(check and new != old)


if __name__ == "__main__":
    sys.exit(main())
