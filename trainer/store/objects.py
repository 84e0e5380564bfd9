"""Opens the object store of a URL: `s3://bucket/rooms/x`, `gs://…`, a directory, or `memory://…` for tests.

Invariant: fsspec is imported only when a store is opened. What callers need of `trainer.store.object_store` is
exported here too.
"""

from __future__ import annotations

from typing import Any

from trainer.store.backends import DirectoryStore, FsspecStore, MemoryStore, S3Store
from trainer.store.object_store import ObjectStore, StoreError, StoreRefusedError, retry

__all__ = ["ObjectStore", "StoreError", "StoreRefusedError", "open_store", "retry"]

# The extra of this package that brings a protocol's client.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
# The client gives up soon, since this program retries by itself; `retries` are the client's own, of passing errors.
S3_OPTIONS: dict[str, Any] = {
    "max_concurrency": 1,  # more costs a further request for each small object
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}},
}
S3_TRIES = 3


def open_store(url: str) -> ObjectStore:
    """The store of a URL. Sends no request yet.

    Raises:
        StoreRefusedError: the protocol is unknown, or its client is not installed.
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
