"""Objects by key below one URL: `s3://bucket/rooms/x`, `gs://…`, a directory, or `memory://…` for tests.

Invariants: an object appears whole or not at all; a key holds `/`-separated names and never begins with one. Every
failure to reach the store is a `StoreError`, after which the same call may be made again. Credentials are found by
the store's own client in the environment; none is taken, kept or written here. Standard library and fsspec only.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from trainer.room import hold, write_atomic

# The extra of this package that brings a protocol's client.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
# One client answers slowly rather than never; `retries` are its own, of what it knows to be passing.
S3_OPTIONS: dict[str, Any] = {
    "max_concurrency": 1,  # more costs a further request for each small object
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}},
}
S3_TRIES = 3
PARTS_AT_ONCE = 4
CONDITION_FAILED = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409", "404"}
# Where a store has no conditional put: how long a writer waits before it looks whether its word stood.
SETTLE_SECONDS = 3.0
_MEMORY = threading.RLock()  # fsspec's memory files have one position for all who read them


class StoreError(Exception):
    """The store cannot be reached, or failed: the same call may succeed later."""


class StoreRefusedError(StoreError):
    """The store refuses: no such bucket, no credentials, no right, or its client is not installed."""


class Store(Protocol):
    """Whole objects by key. Every method raises `StoreError` where the store does not answer, and may be repeated."""

    def list(self, prefix: str = "", begins: str = "") -> dict[str, str]:
        """All keys below a prefix, each with a tag that changes with its content.

        Args:
            prefix: names, without a slash at the end.
            begins: how the name behind them begins.
        """

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The contents of these objects; what does not exist is left out."""

    def put(self, key: str, data: bytes | Path) -> None:
        """Make an object of these bytes, or of this file, whose path must keep its content for that long."""

    def fetch(self, key: str, path: Path) -> bool:
        """Copy an object to a file, which appears whole; False where there is none."""

    def copy(self, source: str, target: str) -> bool:
        """Copy an object within the store; False where there is none."""

    def delete(self, key: str) -> None:
        """Remove an object; nothing where there is none."""

    def put_if(self, key: str, data: bytes, expected: bytes | None) -> bool:
        """Make an object only where it holds `expected` now (None: does not exist); False where it does not."""


def open_store(url: str) -> Store:
    """The store of a URL.

    Raises:
        StoreRefusedError: nobody knows its protocol, or the client is not installed; nothing is asked of the store yet.
    """
    import fsspec

    protocol = url.partition("://")[0] if "://" in url else "file"
    options = S3_OPTIONS if EXTRAS.get(protocol) == "s3" else {}
    try:
        fs = fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        hint = f"install it with `pip install 'sweeps-on-launch[{extra}]'`" if extra else str(error)
        raise StoreRefusedError(f"{url}: the client for {protocol}:// is not installed; {hint}") from error
    except ValueError as error:
        raise StoreRefusedError(f"{url}: {error}") from error
    root = str(fs._strip_protocol(url)).rstrip("/")
    if protocol == "memory":
        return MemoryStore(fs, root)
    if protocol in ("file", "local"):
        return DirectoryStore(fs, root)
    if options:
        fs.retries = S3_TRIES
        return S3Store(fs, root)
    return FsspecStore(fs, root)


class FsspecStore:
    """A `Store` over any filesystem of fsspec whose single puts are atomic, as those of object stores are."""

    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._root = root

    def list(self, prefix: str = "", begins: str = "") -> dict[str, str]:
        start = len(self._root) + 1
        with self._asking("list", prefix), suppress(FileNotFoundError):
            # `prefix` is heeded by the clients of stores, and ignored by others
            found = self._fs.find(self._path(prefix).rstrip("/"), detail=True, **({"prefix": begins} if begins else {}))
            keys = ((str(path)[start:], info) for path, info in found.items() if info.get("type", "file") == "file")
            return {key: _tag(info) for key, info in keys if _is_proper(key) and _begins(key, prefix, begins)}
        return {}

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        wanted = {self._path(key): key for key in keys}
        if not wanted:
            return {}
        with self._asking("read", next(iter(wanted.values()))):
            found = self._fs.cat(list(wanted), recursive=False, on_error="return")
            contents = {}
            for path, data in found.items():
                if isinstance(data, FileNotFoundError):
                    continue
                if isinstance(data, BaseException):
                    raise data
                contents[wanted[str(path)]] = bytes(data)
            return contents

    def put(self, key: str, data: bytes | Path) -> None:
        with self._asking("write", key):
            if isinstance(data, Path):
                self._put_file(self._path(key), data)
            else:
                self._put_bytes(self._path(key), data)

    def fetch(self, key: str, path: Path) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            with self._asking("read", key), suppress(FileNotFoundError):
                self._fs.get_file(self._path(key), str(scratch))
                scratch.replace(path)
                return True
            return False
        finally:
            scratch.unlink(missing_ok=True)

    def copy(self, source: str, target: str) -> bool:
        with self._asking("copy", source), suppress(FileNotFoundError):
            self._copy(self._path(source), self._path(target))
            return True
        return False

    def delete(self, key: str) -> None:
        with self._asking("delete", key), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(key))

    def put_if(self, key: str, data: bytes, expected: bytes | None) -> bool:
        """Without a condition that the store itself knows: the last of several writers wins, and all see who it was."""
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
    def _asking(self, what: str, key: str) -> Iterator[None]:
        """Turn whatever a client raises into a `StoreError`."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            absent = isinstance(error, FileNotFoundError)  # of a put: the bucket
            kind = StoreRefusedError if absent or _is_refusal(error) else StoreError
            raise kind(f"cannot {what} {self._path(key)}: {_sentence(error)}") from error


class S3Store(FsspecStore):
    """S3 and what speaks like it: puts may carry a condition."""

    def __init__(self, fs: Any, root: str) -> None:
        super().__init__(fs, root)
        self._put_last: dict[str, tuple[bytes, str]] = {}

    def put_if(self, key: str, data: bytes, expected: bytes | None) -> bool:
        condition = self._condition(key, expected)
        if condition is None:
            return False
        try:
            with self._asking("write", key):
                answer = self._fs.pipe_file(self._path(key), data, **condition)
        except StoreError as error:
            self._put_last.pop(key, None)
            if not _condition_failed(error):
                raise
            # the client may have repeated a put of which only the answer was lost
            return self.get([key]).get(key) == data
        if isinstance(answer, dict) and "ETag" in answer:
            self._put_last[key] = data, str(answer["ETag"])
        return True

    def _condition(self, key: str, expected: bytes | None) -> dict[str, str] | None:
        """What S3 shall check; None where it is known to be false."""
        if expected is None:
            return {"IfNoneMatch": "*"}
        content, tag = self._put_last.get(key, (None, None))
        if content != expected:
            # the tag first: an object that changes in between has another one, and the put fails
            tag = self._tag_of(key)
            if tag is None or self.get([key]).get(key) != expected:
                return None
        return {"IfMatch": str(tag)}

    def _tag_of(self, key: str) -> str | None:
        with self._asking("read", key), suppress(FileNotFoundError):
            return str(self._fs.info(self._path(key))["ETag"])
        return None

    def _put_file(self, path: str, source: Path) -> None:
        self._fs.put_file(str(source), path, max_concurrency=PARTS_AT_ONCE)


class DirectoryStore(FsspecStore):
    """A directory; an object appears by rename, and conditions hold among the processes that share its locks."""

    def list(self, prefix: str = "", begins: str = "") -> dict[str, str]:
        found = {}
        with self._asking("list", prefix):
            for folder, _, names in os.walk(self._path(prefix)):
                for path in (Path(folder, name) for name in names):
                    with suppress(FileNotFoundError):
                        stat = path.stat()
                        tag = f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"
                        found[path.relative_to(self._root).as_posix()] = tag
        return {key: tag for key, tag in found.items() if _is_proper(key) and _begins(key, prefix, begins)}

    def put_if(self, key: str, data: bytes, expected: bytes | None) -> bool:
        path = Path(self._path(key))
        with self._asking("write", key), hold(path.with_name(f".{path.name}.lock"), "") as mine:
            if not mine or self.get([key]).get(key) != expected:
                return False
            self.put(key, data)
            return True

    def _put_bytes(self, path: str, data: bytes) -> None:
        write_atomic(Path(path), data)

    def _put_file(self, path: str, source: Path) -> None:
        self._copy(str(source), path)

    def _copy(self, source: str, target: str) -> None:
        import shutil

        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            shutil.copyfile(source, scratch)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


class MemoryStore(FsspecStore):
    """This process's memory, for tests."""

    def put_if(self, key: str, data: bytes, expected: bytes | None) -> bool:
        with _MEMORY:
            if self.get([key]).get(key) != expected:
                return False
            self.put(key, data)
            return True

    def _put_file(self, path: str, source: Path) -> None:
        self._put_bytes(path, source.read_bytes())

    @contextmanager
    def _asking(self, what: str, key: str) -> Iterator[None]:
        with _MEMORY, super()._asking(what, key):
            yield


def patiently(act: Callable[[], object], seconds: float, pause: float = 0.2) -> StoreError | None:
    """Repeat an act until it succeeds or this time has passed; what it said last, where it never did.

    Raises:
        StoreRefusedError: the store refuses, which it may well go on to do.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            act()
            return None
        except StoreRefusedError:
            raise
        except StoreError as error:
            if time.monotonic() + pause > deadline:
                return error
            time.sleep(pause)
            pause = min(2 * pause, 10.0)


def _tag(info: dict[str, Any]) -> str:
    """What changes with an object's content: the store's own tag, or when it was made."""
    for name in ("ETag", "etag", "generation"):
        if info.get(name):
            return str(info[name])
    return f"{info.get('size')}-{info.get('created')}"


def _begins(key: str, prefix: str, begins: str) -> bool:
    return not begins or key.startswith(f"{prefix}/{begins}" if prefix else begins)


def _is_proper(key: str) -> bool:
    """Whether a key may become a path below a directory: no hidden names, and none that leads out of it."""
    return all(part and not part.startswith(".") and "\\" not in part for part in key.split("/"))


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
