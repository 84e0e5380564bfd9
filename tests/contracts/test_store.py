"""What every `ObjectStore` must keep: in memory, in a directory, in S3 as moto plays it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.stores import new_url, s3_server
from trainer.store.objects import ObjectStore, StoreError, StoreRefusedError, open_store


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["memory", "directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return open_store(new_url(request.param, tmp_path, lambda: request.getfixturevalue("s3")))


def test_what_was_put_is_listed_and_read(store: ObjectStore) -> None:
    assert store.list() == {}
    store.put("sweep.json", b"{}")
    store.put("trials/00003/1/spec.json", b"spec")
    store.put("trials/00031/1/spec.json", b"other")
    assert set(store.list()) == {"sweep.json", "trials/00003/1/spec.json", "trials/00031/1/spec.json"}
    assert set(store.list("trials/00003")) == {"trials/00003/1/spec.json"}
    assert store.list("trials/00009") == {}
    assert set(store.list("trials", "0000")) == {"trials/00003/1/spec.json"}
    assert set(store.list("trials", "000")) == {"trials/00003/1/spec.json", "trials/00031/1/spec.json"}
    assert set(store.list("", "sw")) == {"sweep.json"}
    assert store.list("trials", "1") == {}
    assert store.get(["trials/00003/1/spec.json", "absent", "sweep.json"]) == {
        "trials/00003/1/spec.json": b"spec",
        "sweep.json": b"{}",
    }
    assert store.get(["absent"]) == {}
    assert store.get([]) == {}


def test_a_tag_changes_with_the_content_and_only_then(store: ObjectStore) -> None:
    store.put("beat", b"1")
    store.put("other", b"1")
    first = store.list()
    assert store.list() == first
    store.put("beat", b"2")
    second = store.list()
    assert second["beat"] != first["beat"]
    assert second["other"] == first["other"]


def test_an_empty_object_exists(store: ObjectStore) -> None:
    store.put("workers/w0001/drain", b"")
    assert set(store.list("workers/w0001")) == {"workers/w0001/drain"}
    assert store.get(["workers/w0001/drain"]) == {"workers/w0001/drain": b""}


def test_files_go_in_and_out(store: ObjectStore, tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "in.bin").write_bytes(data)
    store.put("trials/00001/1/checkpoint.pt", tmp_path / "in.bin")
    out = tmp_path / "deep" / "out.pt"
    assert store.fetch("trials/00001/1/checkpoint.pt", out)
    assert out.read_bytes() == data
    assert not store.fetch("absent", tmp_path / "absent")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent == out.parent) == [
        "out.pt"
    ]
    assert not (tmp_path / "absent").exists()


def test_a_copy_is_another_object(store: ObjectStore) -> None:
    store.put("checkpoint.pt", b"one")
    assert store.copy("checkpoint.pt", "fenced.pt")
    store.put("checkpoint.pt", b"two")
    assert store.get(["fenced.pt", "checkpoint.pt"]) == {"fenced.pt": b"one", "checkpoint.pt": b"two"}
    assert not store.copy("absent", "elsewhere")
    assert "elsewhere" not in store.list()


def test_a_delete_is_safe_to_repeat(store: ObjectStore) -> None:
    store.put("control", b"stop")
    store.delete("control")
    store.delete("control")
    assert store.list() == {}


def test_a_conditional_put_holds_to_its_condition(store: ObjectStore) -> None:
    assert store.put_if("lease", b"a", None)
    assert not store.put_if("lease", b"b", None)
    assert not store.put_if("lease", b"c", b"b")
    assert store.get(["lease"]) == {"lease": b"a"}
    assert store.put_if("lease", b"d", b"a")
    assert not store.put_if("lease", b"e", b"a")
    assert not store.put_if("absent", b"f", b"x")
    assert store.get(["lease", "absent"]) == {"lease": b"d"}


@pytest.mark.parametrize("before", [None, b"old"])
def test_of_many_who_put_conditionally_at_once_one_wins(store: ObjectStore, before: bytes | None) -> None:
    if before is not None:
        store.put("lease", before)
    won: list[int] = []

    def take(number: int) -> None:
        if store.put_if("lease", str(number).encode(), before):
            won.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get(["lease"]) == {"lease": str(won[0]).encode()}


def test_a_reader_sees_whole_objects_only(store: ObjectStore) -> None:
    """While one key is put again and again, by bytes and by file, a reader finds one content or the other."""
    done = threading.Event()
    contents = [b"a" * 200_000, b"b" * 100_000]
    store.put("x", contents[0])

    def write() -> None:
        for number in range(20):
            store.put("x", contents[number % 2])
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        assert store.get(["x"])["x"] in contents
        assert set(store.list()) == {"x"}
    thread.join()


def test_a_key_that_leads_out_of_a_room_is_not_listed(s3: str) -> None:
    """Whoever may write to the bucket shall not write elsewhere on the machine of one that reads it."""
    import boto3

    client = boto3.client("s3")
    for key in ("../../etc/x", "trials/../../x", "trials//x", ".hidden/x", "trials/.x", "good/x"):
        client.put_object(Bucket="rooms", Key=f"evil/{key}", Body=b"")
    assert set(open_store(f"{s3}/evil").list()) == {"good/x"}


def test_more_keys_than_a_page_of_a_listing_holds(s3: str) -> None:
    from moto.s3.models import s3_backends

    (backend,) = [b for b in s3_backends.values() for b in b.values() if "rooms" in b.buckets]  # the server is in here
    for number in range(1005):
        backend.put_object("rooms", f"many/x/{number:05d}", b"")
    assert len(open_store(f"{s3}/many").list("x")) == 1005


def test_a_store_that_is_not_there_says_so(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreRefusedError, match="cannot write nobodys-bucket/room/a"):
        open_store("s3://nobodys-bucket/room").put("a", b"")
    with pytest.raises(StoreRefusedError, match="nonsense"):
        open_store("nonsense://x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="cannot list"):
        open_store("s3://rooms/room").list()


def test_a_client_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StoreRefusedError, match=r"gs:// is not installed; .*sweeps-on-launch\[gs\]"):
        open_store("gs://bucket/room")
