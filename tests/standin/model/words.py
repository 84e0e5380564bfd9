"""What all of the model shares: ids, times, and the limits that tests may change."""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]


def identifier(*words: object) -> str:
    """An opaque id as GraphQL servers make them."""
    return base64.standard_b64encode(":".join(str(word) for word in words).encode()).decode()


def fresh(kind: str) -> str:
    return identifier(kind, uuid.uuid4().hex[:12])


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@dataclass
class Limits:
    """What tests may change. Seconds."""

    overwrites: bool = False  # a run begun again without `resume` starts over; else what it logs is added
    crash_after: float = 300.0  # a running run without a heartbeat for so long has crashed
    poll_expiry: float = 60.0  # an agent that was not heard of for so long is called KILLED
    lease: float = 60.0  # an item that was popped and not acknowledged for so long waits again
