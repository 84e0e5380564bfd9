"""What a process that is not a sweep's controller does with the sweep's room in an object store.

Every function raises `ConfigError` if the store refuses the request, and `RetryLater` if it does not answer.
"""

from __future__ import annotations

from pathlib import Path

from sweep.model.states import Mode
from sweep.store.download import check_same_sweep, download_room
from sweep.store.errors import as_sweep_errors
from sweep.store.lease import await_release, holder_of
from trainer.room import Room, read_text
from trainer.store.layout import CONTROL
from trainer.store.objects import open_store

# In the local room: the token of the last lease that a controller on this machine held.
LEASE_RECORD = ".lease"


def download(url: str, local: Path, light: bool = False) -> Room:
    """Download the room at this URL, or what has changed of it since the last time.

    Args:
        light: leave out checkpoints, steps, logs and adapters, which `status` and `best` do not need.

    Raises:
        ConfigError: also if the store holds no sweep, or the local room is another sweep's.
    """
    with as_sweep_errors():
        download_room(open_store(url), Room(local), light)
    return Room(local)


def check_url(url: str, room: Room) -> None:
    """Check that the local room is a copy of the one at this URL; nothing is downloaded.

    Raises:
        ConfigError: also if it is another sweep's.
    """
    with as_sweep_errors():
        check_same_sweep(open_store(url), room)


def send_mode(url: str, mode: Mode) -> None:
    """Tell the controller of this room, wherever it runs, what the user wants."""
    with as_sweep_errors():
        open_store(url).put(CONTROL, mode.value.encode())


def put_file(url: str, key: str, data: bytes) -> None:
    """Put one file of this room that no running controller puts."""
    with as_sweep_errors():
        open_store(url).put(key, data)


def read_file(url: str, key: str) -> bytes | None:
    """One file of this room; None if the store does not have it."""
    with as_sweep_errors():
        return open_store(url).get([key]).get(key)


def controller_at(url: str, local: Path) -> str:
    """Where the controller of this room runs, or died without releasing its lease; empty if there is none.

    Args:
        local: the local room, whose controller does not run: a lease that this machine left behind does not count.
    """
    with as_sweep_errors():
        return holder_of(open_store(url), read_text(local / LEASE_RECORD))


def await_controller_end(url: str) -> bool:
    """Wait until the controller of this room has ended.

    Returns True if it ended as requested; False if it died, or another controller continues.
    """
    with as_sweep_errors():
        store = open_store(url)
        return await_release(store) and CONTROL not in store.get([CONTROL])
