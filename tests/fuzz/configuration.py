"""Composes random configurations, and checks that each is taken or refused in one sentence.

    python -m tests.fuzz.configuration [--minutes M] [--cases N] [--seed S] [--only FILE]

A case (see `configurations`) is composed, checked and frozen in this process, as `sweep run` does before it starts
anything. If it is taken, its first trials are proposed, its frozen form is read back, and its budget is changed as by
`sweep resume`. What must hold:

- it is taken, or refused by one of the program's own errors;
- such an error is one short sentence that names something of the input;
- a configuration that was taken can be frozen, read back and sampled from;
- nothing takes longer than `HANG_SECONDS`.

A case that fails prints what it was and the command line that repeats it, and is kept as a file. `tests/fuzz/cases` has
those that have failed before; each of them is a test.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sweep.cli.start import compose
from sweep.config.settings import Settings, settings_from_json
from sweep.errors import SweepError
from sweep.report.plan import sample_trials
from sweep.wiring.compose import check
from sweep.wiring.rooms import change_settings, load_settings, save_settings
from tests.fuzz.configurations import Case, draw, written
from tests.fuzz.limits import limited
from trainer.room import Room

CASES = Path(__file__).parent / "cases"
HANG_SECONDS = 60
LONGEST_MESSAGE = 1500
# Words that say what is wrong where the input has no word of its own for it.
GENERAL = re.compile(
    r"\b(derive|search|space|sampler|pruner|queue|evaluate|recipe|objective|wandb|torchtune|trial|name)\b"
)
SAMPLED = 2


class ViolationError(AssertionError):
    """What must hold of a configuration does not."""


def run(case: Case, directory: Path) -> str:
    """Compose a case in an empty directory; returns the sentence by which it was refused, or an empty text.

    Raises:
        ViolationError: what does not hold.
    """
    own = written(case, directory)
    words = [word.replace("DIR", str(directory)) for word in case.words]
    with _limited("it is composed"):
        settings = _composed(case, words, own)
    if isinstance(settings, str):
        return settings
    with _limited("it is frozen and sampled"):
        _check_taken(settings, case)
    if case.changes:
        with _limited("its budget is changed"):
            return _changed(settings, case, directory)
    return ""


def _composed(case: Case, words: list[str], own: Path | None) -> Settings | str:
    try:
        return compose(words, own).settings
    except SweepError as error:
        return _sentence(str(error), case)
    except Exception as error:
        raise ViolationError(f"traceback of {type(error).__name__}:\n{traceback.format_exc()}") from error


def _check_taken(settings: Settings, case: Case) -> None:
    try:
        frozen = json.loads(json.dumps(settings.to_json()))
        again = settings_from_json(frozen, "sweep.json")
        check(again)
        sample_trials(again, SAMPLED)
    except SweepError as error:
        if not str(error).startswith(("space", "torchtune configuration")):  # a derivation that fails for some values
            raise ViolationError(f"it was taken, and then refused: {error}") from error
        _sentence(str(error), case)
    except Exception as error:
        raise ViolationError(f"it was taken, and then:\n{traceback.format_exc()}") from error


def _changed(settings: Settings, case: Case, directory: Path) -> str:
    room = Room(directory / "room")
    room.root.mkdir()
    save_settings(room, settings)
    try:
        change_settings(room, case.changes)
        load_settings(room)
    except SweepError as error:
        return _sentence(str(error), case)
    except Exception as error:
        raise ViolationError(f"traceback of a change:\n{traceback.format_exc()}") from error
    return ""


def _sentence(text: str, case: Case) -> str:
    """The text of an error.

    Raises:
        ViolationError: it is empty or long, has lines or is no sentence about the input.
    """
    if not text.strip() or len(text) > LONGEST_MESSAGE or "Traceback" in text:
        raise ViolationError(f"the message is {'empty' if not text.strip() else 'too long'}: {text[:3000]!r}")
    given = {part for word in (*case.words, *case.changes) for part in re.split(r"\W+", word)}
    given = {part for part in given if len(part) > 1 or part > "\x7f"}  # one character of another script is a name
    given |= {Path(name).name for name in case.files}
    given |= {word[:20] for word in (*case.words, *case.changes)}
    if not (any(part in text for part in given) or GENERAL.search(text)):
        raise ViolationError(f"the message names nothing of the input: {text!r}")
    return text


@contextmanager
def _limited(what: str) -> Iterator[None]:
    """End the block with a violation if it takes too long."""

    def error(frame: FrameType | None) -> ViolationError:
        stack = "".join(traceback.format_stack(frame))
        return ViolationError(f"it takes more than {HANG_SECONDS} s while {what}\n{stack}")

    with limited(HANG_SECONDS, error):
        yield


def run_many(cases: int, seed: int, minutes: float, keep: Path) -> tuple[int, int, list[int]]:
    """Run cases of successive seeds; returns how many ran, how many were taken, and the seeds that failed."""
    began, taken, failed, count = time.monotonic(), 0, list[int](), 0
    for number in range(seed, seed + cases):
        if time.monotonic() - began > 60 * minutes:
            break
        case, count = draw(number), count + 1
        with tempfile.TemporaryDirectory() as folder:
            try:
                taken += run(case, Path(folder)) == ""
            except ViolationError as violation:
                failed.append(number)
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{number}.json").write_text(case.to_json(), encoding="utf-8")
                repeat = f"python -m tests.fuzz.configuration --cases 1 --seed {number}"
                print(f"FAILED {case.words} {case.changes}\n{violation}\nrepeat: {repeat}\n", flush=True)
        if count % 500 == 0:
            print(f"{count} cases, {taken} taken, {len(failed)} failed, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{count} cases, {taken} taken, {len(failed)} failed, {time.monotonic() - began:.0f} s", flush=True)
    return count, taken, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e9, help="start no case after this time")
    parser.add_argument("--cases", type=int, default=10**9, help="how many; default: until the time is over")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next has the next number")
    parser.add_argument("--only", type=Path, help="a file of a case that was kept")
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()) / "sweep-fuzz", help="where failing cases are kept"
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as rooms:
        os.environ["SWEEP_ROOMS"] = rooms
        if args.only:
            with tempfile.TemporaryDirectory() as folder:
                print(run(Case.from_json(args.only.read_text(encoding="utf-8")), Path(folder)) or "it is taken")
            return
        failed = run_many(args.cases, args.seed, args.minutes, args.keep)[2]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
