"""What the documentation's tests read from a Markdown page: its links, its headings' anchors, what stands in code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+(?:\([^()]*\)[^()\s]*)?)\)")


def pages() -> list[Path]:
    """Every page of the repository that a reader is sent to."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def links(text: str) -> list[str]:
    """The targets of a page's links and pictures, code left out."""
    return LINK.findall(re.sub(r"`[^`\n]*`", "`", FENCE.sub("", text)))


def anchors(text: str) -> list[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them; a repeated one is numbered."""
    seen: dict[str, int] = {}
    found = []
    for heading in re.findall(r"^#{1,6} +(.+?) *$", FENCE.sub("", text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        found.append(f"{slug}-{seen[slug]}" if slug in seen else slug)
        seen[slug] = seen.get(slug, 0) + 1
    return found


def broken_links(page: Path) -> Iterator[str]:
    """Links of a page that lead to no file of the repository, or to no heading of a page."""
    for link in links(page.read_text()):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (page.parent / path).resolve() if path else page
        if not (target.is_relative_to(ROOT) and target.exists()) or (
            anchor and (target.suffix != ".md" or anchor not in anchors(target.read_text()))
        ):
            yield link


def code_spans(text: str) -> list[str]:
    """What stands between single backticks, on one line or over two."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


@cache
def _modules() -> dict[str, set[str]]:
    """Every module of the repository by its dotted name, with the names that it defines, members of classes too."""
    modules = {}
    for package in ("sweep", "trainer", "tests"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            nodes = list(ast.walk(ast.parse(path.read_text())))
            names = {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}
            names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = names
    return modules


def unknown_names(text: str) -> list[str]:
    """Names in a page's code that the repository does not have: `sweep.module.name`, `Class` and `Class.member`.

    A class is looked for if its name has two capitals; others could be a word of YAML or of another library.
    """
    everything = set[str]().union(*_modules().values())
    unknown = []
    for span in code_spans(text):
        if dotted := re.fullmatch(r"(?:python -m )?((?:sweep|trainer|tests)(?:\.\w+)+)(?:\(\))?(?<!\.json)", span):
            module, rest = dotted[1], list[str]()
            while module and module not in _modules():
                module, _, last = module.rpartition(".")
                rest = [last, *rest]
            if "." not in module or not set(rest) <= _modules()[module]:
                unknown.append(dotted[1])
        elif member := re.fullmatch(r"([A-Z]\w*[a-z]\w*)(?:\.(\w+))?(?:\(\))?", span):
            owner, name = member[1], member[2] or member[1]
            if len(re.findall("[A-Z]", owner)) > 1 or (member[2] and owner in everything):
                unknown += [] if {owner, name} <= everything else [member[0].removesuffix("()")]
    return unknown
