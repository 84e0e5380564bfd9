"""W&B's client, and its errors as those of this program.

Invariants: the API key stays in the client. What the client raises becomes `RetryLater` (the network, 429, 5xx) or
`GiveUp` (no such queue, no such job, no permission).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from sweep.errors import GiveUp, RetryLater
from trainer.contract import DROPPED_ENV

# A request that has no answer after this time is given up and made again later.
TIMEOUT_SECONDS = 20
# Answers of the server that waiting does not change. A number counts only if the text calls it a status, since ports,
# ids and names of sweeps contain numbers too.
FINAL = re.compile(
    r"not found|could not find|permission"
    r"|(?:http|error|status|code)\W{0,3}(?:code\W{0,3})?40[0134]\b|\b40[0134] client error",
    re.IGNORECASE,
)


def client() -> Any:
    """A new client, with a service process of its own: the environment may name the service of a parent process.

    It prints nothing on the terminal, which shows the sweep. W&B's own setting silences it and not a redirection of the
    output, which would also swallow what other threads print.
    """
    for name in DROPPED_ENV:
        os.environ.pop(name, None)
    import wandb

    api = wandb.Api(timeout=TIMEOUT_SECONDS)
    wandb.termsetup(wandb.Settings(silent=True), None)
    return api


def summary(run: Any) -> Mapping[str, Any]:
    """The summary that came with a run, without another request."""
    values = getattr(run.summary, "_json_dict", None)
    return values if isinstance(values, Mapping) else {}


def translated(ask: Callable[[], Any], what: str) -> Any:
    """What `ask` returns.

    Args:
        ask: calls the client.
        what: what the client is asked about, for the error.

    Raises:
        GiveUp: W&B refuses. RetryLater: any other exception of the client.
    """
    try:
        return ask()
    except (GiveUp, RetryLater):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        if FINAL.search(text):
            raise GiveUp(f"W&B refuses {what}: {text}; see `sweep doctor`") from error
        raise RetryLater(f"W&B cannot answer for {what} now ({type(error).__name__}: {text})") from error
