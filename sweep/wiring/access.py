"""Who may use the directories of rooms: their owner only, unless the sweep names a group.

Invariants: a room is made with these permissions whatever the umask is, and never widened later. What is unpickled on a
node, submitit's files, lies in a room, so nobody else can exchange it.
"""

from __future__ import annotations

import grp
import os
import stat
from contextlib import suppress
from pathlib import Path

from sweep.errors import ConfigError
from trainer.room import make_private_directory
from trainer.space import is_no_space

# Of the directory of the rooms: a user who may write there may replace a room by one of their own.
ROOMS_MODE = 0o755
GROUP_MODE = 0o2770


def group_id(name: str | None) -> int | None:
    """The id of a group of the user's; None without a name.

    Raises:
        ConfigError: there is no such group, or the user does not belong to it.
    """
    if name is None:
        return None
    try:
        group = grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise ConfigError(
            f"room.group={name} is no group of this machine; name one of {', '.join(_own_groups())}, or set it to null"
        ) from None
    if group not in {os.getegid(), *os.getgroups()} and os.geteuid() != 0:
        raise ConfigError(f"room.group={name} is none of your groups; allowed: {', '.join(_own_groups())}, or null")
    return group


def make_room_directory(root: Path, group: int | None) -> bool:
    """Make the directory of a room, and that of the rooms if need be; False if it exists, which is left as it is.

    Args:
        group: the id of a group that may use the room too; None: nobody else may.

    Raises:
        ConfigError: it cannot be made, for another reason than a full disk.
    """
    try:
        if not root.parent.is_dir():
            root.parent.parent.mkdir(parents=True, exist_ok=True)
            root.parent.mkdir(mode=ROOMS_MODE, exist_ok=True)
        is_new = make_private_directory(root)
    except OSError as error:
        if is_no_space(error):
            raise
        raise cannot_be_made(root, error.strerror or str(error)) from error
    if not is_new:
        return False
    if group is not None:
        os.chown(root, -1, group)
        root.chmod(GROUP_MODE)
    return True


def check_can_be_made(root: Path) -> None:
    """Refuse a room that could not be made, before anything long begins.

    Raises:
        ConfigError: the first directory that exists on the way to it may not be written to.
    """
    nearest = next(parent for parent in root.parents if os.path.lexists(parent))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise cannot_be_made(root, f"{nearest} cannot be written to")


def cannot_be_made(root: Path, reason: str) -> ConfigError:
    """The error for a room that cannot be made."""
    return ConfigError(f"the room {root} cannot be made: {reason.lower()}; set SWEEP_ROOMS to a directory of yours")


def writable_by_others(path: Path, group_allowed: bool = False) -> str:
    """Who besides its owner may change a directory: "others", "its group", or nobody: an empty text.

    Args:
        group_allowed: its group is meant to.
    """
    with suppress(OSError):
        mode = path.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return "others"
        if mode & stat.S_IWGRP and not mode & stat.S_ISVTX and not group_allowed:
            return "its group"
    return ""


def _own_groups() -> list[str]:
    names = []
    for group in sorted({os.getegid(), *os.getgroups()}):
        with suppress(KeyError):
            names.append(grp.getgrgid(group).gr_name)
    return names
