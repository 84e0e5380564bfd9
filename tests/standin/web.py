"""HTTP: GraphQL, the filestream, and the bytes of files. Knows no operation itself."""

from __future__ import annotations

import base64
import gzip
import json
import re
import socket
import threading
import time
import traceback
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

from tests.standin import filestream
from tests.standin.faults import Fault, Faults
from tests.standin.model import Request, Store
from tests.standin.operations import HANDLERS, Call, Refusal

NAME = re.compile(r"\b(?:query|mutation)\s+([A-Za-z_]\w*)")
STREAM = re.compile(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream")
RUN_FILE = re.compile(r"/run-files/([^/]+/[^/]+/[^/]+)/(.+)")
BLOB = re.compile(r"/blobs/(.+)")


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


def answer_json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode())


class Web(ThreadingHTTPServer):
    """The listening socket, and the connections that it has."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, port: int, store: Store, faults: Faults, keys: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.store, self.faults, self.keys = store, faults, keys
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.connections: set[socket.socket] = set()
        self.guard = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.guard:
            self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.guard:
            self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is no news."""

    def cut(self) -> None:
        """Close every connection, as a server that dies does."""
        with self.guard:
            some = list(self.connections)
        for one in some:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Web

    def log_message(self, format: str, *args: object) -> None:
        """Requests are logged in the store."""

    def do_GET(self) -> None:
        self._serve()

    do_PUT = do_POST = do_GET

    def _serve(self) -> None:
        raw = self._body()
        path = urlparse(self.path).path
        request = json.loads(raw) if path == "/graphql" else {}
        found = NAME.search(request.get("query") or "")
        operation = found[1] if found else _plain(self.command, path)
        who = self._who()
        fault = self.server.faults.take(operation, who)
        if fault is not None and fault.delay:
            time.sleep(fault.delay)
        answer = self._failing(fault)
        if answer is None or (fault is not None and fault.acted):
            true = self._act(path, operation, who, request, raw)
            answer = answer or true
        self._log(operation, answer.status, who, path, fault)
        self._send(answer)

    @staticmethod
    def _failing(fault: Fault | None) -> Answer | None:
        if fault is None or fault.status is None:
            return None
        after = fault.retry_after
        headers = {} if after is None else {"Retry-After": f"{after:g}"}
        body = json.dumps({"error": f"the stand-in was told to answer {fault.status}"}).encode()
        return Answer(fault.status, body, headers=headers)

    def _act(self, path: str, operation: str, who: str, request: dict[str, Any], raw: bytes) -> Answer:
        store = self.server.store
        if path == "/graphql":
            call = Call(
                operation, request.get("variables") or {}, request.get("query") or "", store, self.server.url, who
            )
            return self._graphql(call)
        if path.startswith("/files/") and not who:
            return answer_json({"error": "unauthorized"}, 401)
        with store.lock:
            if stream := STREAM.fullmatch(path):
                run = store.run("/".join(unquote(word) for word in stream.groups()))
                if run is None:
                    return answer_json({"error": "run not found"}, 404)
                return answer_json(filestream.take(run, json.loads(raw)))
            if file := RUN_FILE.fullmatch(path):
                return self._file(unquote(file[1]), unquote(file[2]), raw)
            if blob := BLOB.fullmatch(path):
                return self._blob(unquote(blob[1]), raw)
            store.refused.append(f"{self.command} {path}")
        return answer_json({"error": f"not served: {self.command} {path}"}, 400)

    def _graphql(self, call: Call) -> Answer:
        handler = HANDLERS.get(call.name)
        with call.store.lock:
            if handler is None:
                call.store.refused.append(call.name)
                return _errors(f"not served: {call.name}", 400)
            if not call.who and call.name not in {"Viewer", "GetViewer", "GetDefaultEntity", "ServerFeaturesQuery"}:
                return _errors("user is not logged in", 401)
            try:
                return answer_json({"data": handler(call)})
            except Refusal as refusal:
                return _errors(str(refusal), refusal.status)
            except Exception:
                call.store.refused.append(f"{call.name}: {traceback.format_exc()}")
                return _errors(f"{call.name} went wrong in the stand-in", 400)

    def _file(self, path: str, name: str, raw: bytes) -> Answer:
        run = self.server.store.run(path)
        if run is None:
            return answer_json({"error": "run not found"}, 404)
        if self.command == "PUT":
            run.files[name] = raw
            return Answer(200)
        return Answer(200, run.files[name], "application/octet-stream") if name in run.files else Answer(404)

    def _blob(self, path: str, raw: bytes) -> Answer:
        blobs = self.server.store.blobs
        if self.command == "PUT":
            blobs[path] = raw
            return Answer(200)
        return Answer(200, blobs[path], "application/octet-stream") if path in blobs else Answer(404)

    def _who(self) -> str:
        """Whose key this is; empty for a wrong key or none."""
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic":
            with suppress(ValueError):
                return self.server.keys.get(base64.b64decode(given).decode().partition(":")[2], "")
        return self.server.keys.get(given, "")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            raw = b"".join(iter(self._chunk, b""))
        else:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match self.headers.get("Content-Encoding"):
            case "gzip":
                return gzip.decompress(raw)
            case "deflate":
                return zlib.decompress(raw)
        return raw

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _log(self, operation: str, status: int, who: str, path: str, fault: Fault | None) -> None:
        line = Request(time.time(), operation, status, who, path, fault.words if fault else "")
        with self.server.store.lock:
            self.server.store.requests.append(line)

    def _send(self, answer: Answer) -> None:
        if answer.status == 0:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)


def _plain(verb: str, path: str) -> str:
    if STREAM.fullmatch(path):
        return "file_stream"
    return {"PUT": "upload", "GET": "download"}.get(verb, "unknown")


def _errors(message: str, status: int) -> Answer:
    return answer_json({"data": None, "errors": [{"message": message}]}, status)
