"""Every arm of the benchmark by name, and the numbers of workers it is run with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from tests.bench.search_bench.optuna_arms import optuna_arms
from tests.bench.search_bench.ours import our_arms
from tests.bench.search_bench.peer_arms import PEERS, PeerMethod, PeerProcess
from tests.bench.search_bench.replay import Method, Workers
from tests.bench.search_bench.tables import Table

# Workers differ in speed, as GPUs of a cluster do; the slots of one packed worker advance together.
SETTINGS = {
    "1 worker": Workers(1),
    "8 workers": Workers(8, 0.2),
    "16 slots": Workers(16),
    "64 workers": Workers(64, 0.2),
}
Make = Callable[[Table, int], Method]


def names(interpreters: Mapping[str, str]) -> list[str]:
    """All arms that can run with these environments."""
    peers = [name for name, (environment, _, _) in PEERS.items() if environment in interpreters]
    return [*optuna_arms(), *our_arms(), *peers]


@contextmanager
def arm(name: str, interpreters: Mapping[str, str]) -> Iterator[Make]:
    """What makes this arm's methods; a peer's process lives as long as the context."""
    own: dict[str, Make] = {**optuna_arms(), **our_arms()}
    if name in own:
        yield own[name]
        return
    environment, adapter, word = PEERS[name]
    process = PeerProcess(interpreters[environment], adapter)
    try:
        yield lambda table, seed: PeerMethod(process, word, table, seed)
    finally:
        process.close()
