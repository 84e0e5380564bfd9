"""W&B's client, and its errors as ours.

Invariants: the key stays in the client. Whatever the client raises becomes `RetryLater` (the network, 429, 5xx) or
`GiveUp` (no such queue, no such job, no right to it).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from sweep.errors import GiveUp, RetryLater
from trainer.contract import DROPPED_ENV

# Without an answer for so long, a request is given up and made again later.
TIMEOUT_SECONDS = 20
# Answers of the server that no waiting changes; a number counts only where it is told as a status, since ports, ids and
# names of sweeps have numbers too.
FINAL = re.compile(
    r"not found|could not find|permission"
    r"|(?:http|error|status|code)\W{0,3}(?:code\W{0,3})?40[0134]\b|\b40[0134] client error",
    re.IGNORECASE,
)


def client() -> Any:
    """A client with a service of this process's own: whoever started us may have left us theirs, or what was it.

    It says nothing on the terminal, which is the sweep's. Its own setting sees to that, never a redirection: several
    threads have clients, and what one of them redirected, the log of another would lose.
    """
    for name in DROPPED_ENV:
        os.environ.pop(name, None)
    import wandb

    api = wandb.Api(timeout=TIMEOUT_SECONDS)
    wandb.termsetup(wandb.Settings(silent=True), None)
    return api


def summary(run: Any) -> Mapping[str, Any]:
    """A run's summary as it came with the run, without another request."""
    found = getattr(run.summary, "_json_dict", None)
    return found if isinstance(found, Mapping) else {}


def asked(ask: Callable[[], Any], what: str) -> Any:
    """What the client answers; what it raises becomes an error of ours."""
    try:
        return ask()
    except (GiveUp, RetryLater):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        if FINAL.search(text):
            raise GiveUp(f"W&B refuses {what}: {text}; see `sweep doctor`") from error
        raise RetryLater(f"W&B cannot answer for {what} now ({type(error).__name__}: {text})") from error
