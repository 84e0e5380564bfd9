"""The queue that docs/queues.md shows, taken out of the document."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import sweep.queues

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "queues.md"
# A heading in code font that ends in a colon, and the block below it.
BLOCK = re.compile(r"^`([\w./]+)`[^\n`]*:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)


def write_own_queue(folder: Path) -> Path:
    """Write the document's files into a folder; returns the folder, which holds `wrapped/` and `queue/`."""
    blocks = dict(BLOCK.findall(DOCUMENT.read_text()))
    assert set(blocks) == {"wrapped/__init__.py", "queue/nice.yaml"}
    for name, text in blocks.items():
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return folder


def install_own_queue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, and let this process find the queue, as SWEEP_QUEUES does for one that starts."""
    monkeypatch.setattr(sweep.queues, "__path__", [*sweep.queues.__path__, str(write_own_queue(folder))])
    monkeypatch.delitem(sys.modules, "sweep.queues.wrapped", raising=False)
    return folder
