"""What the documentation's tests read from a Markdown page: its links, its headings' anchors, what stands in code."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
