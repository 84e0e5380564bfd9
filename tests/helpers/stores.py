"""Stores for tests: in memory, in a directory, in S3 as moto simulates it, and one whose requests a test lets fail."""

from __future__ import annotations

import random
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from trainer.store.objects import ObjectStore, StoreError, open_store

BUCKET = "rooms"
T = TypeVar("T")


@contextmanager
def s3_server() -> Iterator[str]:
    """Run an S3 server in this process, with a bucket and the environment of its clients; yields the bucket's URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        import boto3

        boto3.client("s3").create_bucket(Bucket=BUCKET)
        try:
            yield f"s3://{BUCKET}"
        finally:
            server.stop()


def new_url(kind: str, tmp_path: Path, s3: Callable[[], str]) -> str:
    """The URL of a new, empty store of this kind: memory, directory or s3."""
    name = uuid.uuid4().hex
    return {"memory": lambda: f"memory://{name}", "directory": lambda: str(tmp_path / name)}.get(
        kind, lambda: f"{s3()}/{name}"
    )()


def worker_command(url: str, directory: Path, name: str) -> list[str]:
    """The command of a worker that trains for real and reaches its sweep's room through a store only.

    Args:
        directory: for its copy of the room.
    """
    return [sys.executable, "-m", "tests.helpers.store_worker", url, str(directory), name]


class Faulty:
    """A store that counts its requests; a test may let them fail or take long.

    Attributes:
        fail: how many of the next requests fail.
        fail_share: the share of all requests that fails, drawn by a seeded generator.
        fail_at: the number of the one request that fails, counted from now on; 0: none.
        lose_answer: a failing request is carried out nevertheless.
        slow: seconds that each request takes.
        asked: by kind of request, how many objects were requested.
        log: kind and keys of all requests that succeeded, in order.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.fail = 0.0
        self.fail_at = 0
        self.fail_share = 0.0
        self.lose_answer = False
        self.slow = 0.0
        self.asked: Counter[str] = Counter()
        self.log: list[tuple[str, str]] = []
        self._random = random.Random(0)
        self._lock = threading.Lock()

    def list(self, prefix: str = "", begins: str = "") -> dict[str, str]:
        return self._ask("list", f"{prefix}/{begins}".strip("/"), lambda: self.store.list(prefix, begins))

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        wanted = list(keys)
        return self._ask("get", " ".join(wanted), lambda: self.store.get(wanted), len(wanted))

    def put(self, key: str, data: bytes | Path) -> None:
        self._ask("put", key, lambda: self.store.put(key, data))

    def fetch(self, key: str, path: Path) -> bool:
        return self._ask("get", key, lambda: self.store.fetch(key, path))

    def copy(self, source: str, target: str) -> bool:
        return self._ask("copy", target, lambda: self.store.copy(source, target))

    def delete(self, key: str) -> None:
        self._ask("delete", key, lambda: self.store.delete(key))

    def put_if(self, key: str, data: bytes, expected: bytes | None) -> bool:
        return self._ask("put", key, lambda: self.store.put_if(key, data, expected))

    def _ask(self, what: str, key: str, act: Callable[[], T], count: int = 1) -> T:
        with self._lock:
            self.asked[what] += count
            failing = self.fail > 0 or self.fail_at == 1
            failing = failing or self._random.random() < self.fail_share
            self.fail -= self.fail > 0
            self.fail_at = max(0, self.fail_at - 1)
        time.sleep(self.slow)
        if failing and not self.lose_answer:
            raise StoreError(f"cannot {what} {key}: failed by the test")
        answer = act()
        if failing:
            raise StoreError(f"cannot {what} {key}: the answer was lost")
        with self._lock:
            self.log.append((what, key))
        return answer


def faulty(url: str) -> Faulty:
    return Faulty(open_store(url))
