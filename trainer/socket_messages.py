"""Whole messages over a Unix stream socket, each with open files if it needs them.

Invariants: standard library only. A message has any length: its first eight bytes say how many follow. Open files
travel with these first bytes, so that a receiver has them before it reads the rest.
"""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Sequence

_HEAD = struct.Struct("!Q")
_PART_BYTES = 1 << 20
_MOST_FILES = 4


def send_message(channel: socket.socket, data: bytes, files: Sequence[int] = ()) -> None:
    """Send one message.

    Args:
        files: open files that the receiver gets too, at most four.

    Raises:
        OSError: the other end is closed, or its process has ended.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    head = _HEAD.pack(len(data))
    sent = channel.sendmsg([head], rights)
    channel.sendall(head[sent:] + data)


def receive_message(channel: socket.socket) -> tuple[bytes | None, list[int]]:
    """One message with its open files; None if the other end is closed, or closes before the message is whole.

    Raises:
        ConnectionError: the process at the other end ended with something unread.
    """
    files = array.array("i")
    head, ancillary, _, _ = channel.recvmsg(_HEAD.size, socket.CMSG_SPACE(_MOST_FILES * files.itemsize))
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            files.frombytes(payload[: len(payload) - len(payload) % files.itemsize])
    rest = _read(channel, _HEAD.size - len(head)) if head else None
    length = None if rest is None else _HEAD.unpack(head + rest)[0]
    return (None if length is None else _read(channel, length)), list(files)


def _read(channel: socket.socket, count: int) -> bytes | None:
    """This many bytes; None if the other end closes before."""
    data = bytearray()
    while len(data) < count:
        part = channel.recv(min(count - len(data), _PART_BYTES))
        if not part:
            return None
        data += part
    return bytes(data)
