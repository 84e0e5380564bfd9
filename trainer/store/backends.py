"""The kinds of object stores: S3, any other store of fsspec, a directory, and this process's memory for tests.

Invariants: a backend opens no connection before its first call. Whatever a client raises becomes a `StoreError`. The
store's own client finds the credentials in the environment; this program neither takes, keeps nor writes any.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainer.names import is_key
from trainer.room import hold, write_atomic
from trainer.store.object_store import StoreError, StoreRefusedError

PARTS_AT_ONCE = 4
CONDITION_FAILED = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409", "404"}
# How long a writer waits before it reads back its object, if the store has no conditional put.
SETTLE_SECONDS = 3.0
_MEMORY = threading.RLock()  # fsspec's memory files have one position for all who read them


class FsspecStore:
    """An `ObjectStore` over a filesystem of fsspec whose single puts are atomic, as those of object stores are.

    Args:
        fs: the filesystem.
        root: the path in it below which all keys lie.
    """

    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._root = root

    def list(self, prefix: str = "", begins: str = "") -> dict[str, str]:
        start = len(self._root) + 1
        with self._store_errors("list", prefix), suppress(FileNotFoundError):
            # clients of object stores obey `prefix`, others ignore it
            infos = self._fs.find(self._path(prefix).rstrip("/"), detail=True, **({"prefix": begins} if begins else {}))
            keys = ((str(path)[start:], info) for path, info in infos.items() if info.get("type", "file") == "file")
            return {key: _tag(info) for key, info in keys if _is_proper(key) and _begins(key, prefix, begins)}
        return {}

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        wanted = {self._path(key): key for key in keys}
        if not wanted:
            return {}
        with self._store_errors("read", next(iter(wanted.values()))):
            answers = self._fs.cat(list(wanted), recursive=False, on_error="return")
            contents = {}
            for path, data in answers.items():
                if isinstance(data, FileNotFoundError):
                    continue
                if isinstance(data, BaseException):
                    raise data
                contents[wanted[str(path)]] = bytes(data)
            return contents

    def put(self, key: str, data: bytes | Path) -> None:
        with self._store_errors("write", key):
            if isinstance(data, Path):
                self._put_file(self._path(key), data)
            else:
                self._put_bytes(self._path(key), data)

    def fetch(self, key: str, path: Path) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            with self._store_errors("read", key), suppress(FileNotFoundError):
                self._fs.get_file(self._path(key), str(scratch))
                scratch.replace(path)
                return True
            return False
        finally:
            scratch.unlink(missing_ok=True)

    def copy(self, source: str, target: str) -> bool:
        with self._store_errors("copy", source), suppress(FileNotFoundError):
            self._copy(self._path(source), self._path(target))
            return True
        return False

    def delete(self, key: str) -> None:
        with self._store_errors("delete", key), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(key))

    def put_if(self, key: str, data: bytes, expected: bytes | None) -> bool:
        """The protocol's, without a conditional put: the last of several writers wins, and all of them read that."""
        if self.get([key]).get(key) != expected:
            return False
        self.put(key, data)
        time.sleep(SETTLE_SECONDS)
        return self.get([key]).get(key) == data

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _put_bytes(self, path: str, data: bytes) -> None:
        self._fs.pipe_file(path, data)

    def _put_file(self, path: str, source: Path) -> None:
        self._fs.put_file(str(source), path)

    def _copy(self, source: str, target: str) -> None:
        self._fs.cp_file(source, target)

    @contextmanager
    def _store_errors(self, what: str, key: str) -> Iterator[None]:
        """Raise a `StoreError` for whatever a client raises."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            absent = isinstance(error, FileNotFoundError)  # of a put, it is the bucket that is absent
            kind = StoreRefusedError if absent or _is_refusal(error) else StoreError
            raise kind(f"cannot {what} {self._path(key)}: {_sentence(error)}") from error


class S3Store(FsspecStore):
    """S3 and stores with its interface, whose puts may carry a condition."""

    def __init__(self, fs: Any, root: str) -> None:
        super().__init__(fs, root)
        self._put_last: dict[str, tuple[bytes, str]] = {}

    def put_if(self, key: str, data: bytes, expected: bytes | None) -> bool:
        condition = self._condition(key, expected)
        if condition is None:
            return False
        try:
            with self._store_errors("write", key):
                answer = self._fs.pipe_file(self._path(key), data, **condition)
        except StoreError as error:
            self._put_last.pop(key, None)
            if not _condition_failed(error):
                raise
            # the client may have repeated a put whose answer was lost
            return self.get([key]).get(key) == data
        if isinstance(answer, dict) and "ETag" in answer:
            self._put_last[key] = data, str(answer["ETag"])
        return True

    def _condition(self, key: str, expected: bytes | None) -> dict[str, str] | None:
        """The condition for S3 to check; None if it is known to be false."""
        if expected is None:
            return {"IfNoneMatch": "*"}
        content, tag = self._put_last.get(key, (None, None))
        if content != expected:
            # read the tag first: if the object changes in between, its tag does too, and the put fails
            tag = self._tag_of(key)
            if tag is None or self.get([key]).get(key) != expected:
                return None
        return {"IfMatch": str(tag)}

    def _tag_of(self, key: str) -> str | None:
        with self._store_errors("read", key), suppress(FileNotFoundError):
            return str(self._fs.info(self._path(key))["ETag"])
        return None

    def _put_file(self, path: str, source: Path) -> None:
        self._fs.put_file(str(source), path, max_concurrency=PARTS_AT_ONCE)


class DirectoryStore(FsspecStore):
    """A directory. Objects appear by rename; conditions hold among the processes that share its locks."""

    def list(self, prefix: str = "", begins: str = "") -> dict[str, str]:
        tags = {}
        with self._store_errors("list", prefix):
            for folder, _, names in os.walk(self._path(prefix)):
                for path in (Path(folder, name) for name in names):
                    with suppress(FileNotFoundError):
                        stat = path.stat()
                        tag = f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"
                        tags[path.relative_to(self._root).as_posix()] = tag
        return {key: tag for key, tag in tags.items() if _is_proper(key) and _begins(key, prefix, begins)}

    def put_if(self, key: str, data: bytes, expected: bytes | None) -> bool:
        path = Path(self._path(key))
        lock = path.with_name(f".{path.name}.lock")
        with self._store_errors("write", key):
            lock.parent.mkdir(parents=True, exist_ok=True)
        with self._store_errors("write", key), hold(lock, "") as mine:
            if not mine or self.get([key]).get(key) != expected:
                return False
            self.put(key, data)
            return True

    def _put_bytes(self, path: str, data: bytes) -> None:
        write_atomic(Path(path), data)

    def _put_file(self, path: str, source: Path) -> None:
        self._copy(str(source), path)

    def _copy(self, source: str, target: str) -> None:
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            shutil.copyfile(source, scratch)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


class MemoryStore(FsspecStore):
    """The memory of this process, for tests."""

    def put_if(self, key: str, data: bytes, expected: bytes | None) -> bool:
        with _MEMORY:
            if self.get([key]).get(key) != expected:
                return False
            self.put(key, data)
            return True

    def _put_file(self, path: str, source: Path) -> None:
        self._put_bytes(path, source.read_bytes())

    @contextmanager
    def _store_errors(self, what: str, key: str) -> Iterator[None]:
        with _MEMORY, super()._store_errors(what, key):
            yield


def _tag(info: dict[str, Any]) -> str:
    """A text that changes with the object's content: the store's own tag, or its size and time."""
    for name in ("ETag", "etag", "generation"):
        if info.get(name):
            return str(info[name])
    return f"{info.get('size')}-{info.get('created')}"


def _begins(key: str, prefix: str, begins: str) -> bool:
    return not begins or key.startswith(f"{prefix}/{begins}" if prefix else begins)


def _is_proper(key: str) -> bool:
    """Whether a key may become a path below a directory: it has no hidden name and none that leads out of it."""
    return is_key(key)


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, PermissionError) or type(error).__name__ in (
        "NoCredentialsError",
        "PartialCredentialsError",
    )


def _condition_failed(error: BaseException | None) -> bool:
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(error, FileExistsError):
            return True
        if isinstance(response, dict) and response.get("Error", {}).get("Code") in CONDITION_FAILED:
            return True
        error = error.__cause__
    return False


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
