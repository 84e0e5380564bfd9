"""Ends what a fuzzer runs if it takes too long."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def limited(seconds: int, error: Callable[[FrameType | None], BaseException]) -> Iterator[None]:
    """End the block by an error if it takes longer, even on a busy machine.

    Args:
        error: makes it, from the frame that runs then.
    """

    def expired(number: int, frame: FrameType | None) -> None:
        raise error(frame)

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
