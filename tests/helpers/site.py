"""What MkDocs needs to make a site of pages that are written to be read in the repository.

Invariant: a page is changed in its links alone. The README is the site's first page; it, CONTRIBUTING.md and
CHANGELOG.md stand outside `docs/`, so their links are written anew. A link to any other file of the repository becomes
its text, since the site does not hold that file.
"""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.helpers.markdown import FENCE, ROOT

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

DOCS = ROOT / "docs"
# Pages of the site that are files of the repository's top.
TOP = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
SOURCES = {ROOT / name: page for page, name in TOP.items()}
INLINE = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs' event: the pages that are files of the repository's top join the others."""
    from mkdocs.structure.files import File

    for page, name in TOP.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """MkDocs' event: a page's text with links that hold on the site."""
    return with_site_links(markdown, page.file.src_uri)


def with_site_links(markdown: str, page: str) -> str:
    """A page's text with links that hold on the site; code stays as it is.

    Args:
        page: the page's path below the site's root.
    """
    source = ROOT / TOP[page] if page in TOP else DOCS / page
    spans = list(re.finditer(rf"{FENCE.pattern}|`[^`\n]*`(?!\])", markdown, FENCE.flags))
    edges = [0, *(edge for span in spans for edge in span.span()), len(markdown)]
    pieces = [markdown[start:end] for start, end in pairwise(edges)]
    prose = [INLINE.sub(lambda link: _site_link(link, source, page), piece) for piece in pieces[::2]]
    return "".join(part for pair in zip(prose, [*pieces[1::2], ""], strict=True) for part in pair)


def _site_link(link: re.Match[str], source: Path, page: str) -> str:
    picture, text, url = link.groups()
    path, sharp, anchor = url.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return link[0]
    target = (source.parent / path).resolve()
    name = SOURCES.get(target)
    if name is None:
        if not target.is_relative_to(DOCS) or target.is_dir():
            return text
        name = target.relative_to(DOCS).as_posix()
    return f"{picture}[{text}]({os.path.relpath(name, Path(page).parent)}{sharp}{anchor})"
