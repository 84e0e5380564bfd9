"""What a process of ours makes of its locale and of the interpreter's options."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import startup
from trainer.startup import repaired, show_all

PROGRAM = """
import json, os, sys, warnings
from trainer.startup import prepare
before = os.getpid()
prepare()
names = ("PYTHONUTF8", "PYTHONOPTIMIZE", "PYTHONWARNINGS", "_SWEEP_RESTARTED")
print(json.dumps({
    "files": sys.getfilesystemencoding(), "out": sys.stdout.encoding, "optimize": sys.flags.optimize,
    "argv": sys.argv[1:], "environment": {n: os.environ[n] for n in names if n in os.environ},
    "filters": [f[0] for f in warnings.filters],
}))
print("数 ü")
"""


def told(tmp_path: Path, words: tuple[str, ...] = (), **environment: str) -> tuple[dict[str, object], bytes]:
    """What a process with this environment says of itself, and the bytes of a text that it prints."""
    import json

    script = tmp_path / "program.py"
    script.write_text(PROGRAM, encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "LC_", "LANG"))}
    root = str(Path(startup.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(script), *words],
        env=kept | {"PYTHONPATH": root} | environment,
        capture_output=True,
        check=True,
    )
    first, _, rest = done.stdout.partition(b"\n")
    return json.loads(first), rest.strip()


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_process_in_an_ascii_locale_is_replaced_by_one_in_utf_8(tmp_path: Path) -> None:
    facts, printed = told(tmp_path, ("数据/x.yaml",), **C_LOCALE)
    assert facts["files"] == "utf-8"
    assert facts["argv"] == ["数据/x.yaml"]
    assert facts["environment"] == {"PYTHONUTF8": "1"}  # that of its child processes too
    assert printed == "数 ü".encode()  # it is no terminal


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "euc_jp"])
def test_what_a_stream_lacks_is_replaced(tmp_path: Path, encoding: str) -> None:
    locales: list[dict[str, str]] = [{}, C_LOCALE]
    for locale in locales:
        printed = told(tmp_path, (), PYTHONIOENCODING=encoding, **locale)[1]
        assert printed == "数 ü".encode(encoding, "replace")


def test_docstrings_and_warnings_are_as_the_libraries_need_them(tmp_path: Path) -> None:
    facts, _ = told(tmp_path, PYTHONOPTIMIZE="2", PYTHONWARNINGS="error,ignore::UserWarning")
    assert facts["optimize"] == 0
    assert facts["environment"] == {"PYTHONWARNINGS": "ignore::UserWarning"}
    assert "error" not in facts["filters"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("error", ""),
        ("err", ""),
        ("error::DeprecationWarning", ""),
        ("default,error,ignore", "default,ignore"),
        ("always", None),
        ("", None),
    ],
)
def test_filters_that_raise_are_left_out(given: str, kept: str | None) -> None:
    assert repaired({"PYTHONWARNINGS": given}).get("PYTHONWARNINGS") == kept


def test_a_process_that_is_as_it_must_be_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*words: object) -> None:
        raise AssertionError(words)

    monkeypatch.setattr(os, "execve", never)
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    startup.prepare()


def test_streams_that_are_none_or_closed_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    show_all(None)
    show_all(io.StringIO())
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    show_all(closed, "ascii")
