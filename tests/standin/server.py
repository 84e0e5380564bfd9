"""The stand-in: start it, point a client at it, read what the client told it, make it fail.

with StandIn(tmp_path) as standin:
    os.environ.update(standin.env)
    …
    assert standin.runs["team/project/id"].state == "finished"
    assert standin.refused == []
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.standin import operations
from tests.standin.faults import Faults
from tests.standin.model import (
    Agent,
    Artifact,
    Automation,
    Collection,
    Integration,
    Item,
    ItemState,
    Limits,
    Queue,
    Request,
    Run,
    Store,
    fresh,
)
from tests.standin.web import Web

# What a present-day server says it can do, less what the stand-in does not do.
FEATURES = frozenset(
    {
        "LARGE_FILENAMES",
        "ARTIFACT_TAGS",
        "CLIENT_IDS",
        "ARTIFACT_REGISTRY_SEARCH",
        "ARTIFACT_COLLECTION_MEMBERSHIP_FILES",
        "USE_ARTIFACT_WITH_ENTITY_AND_PROJECT_INFORMATION",
        "AUTOMATION_EVENT_RUN_METRIC",
        "AUTOMATION_EVENT_RUN_METRIC_CHANGE",
        "AUTOMATION_EVENT_RUN_METRIC_ZSCORE",
        "AUTOMATION_EVENT_RUN_STATE",
        "AUTOMATION_ACTION_NO_OP",
        "INCLUDE_ARTIFACT_TYPES_IN_REGISTRY_CREATION",
        "PROJECT_ARTIFACT_COLLECTION_MEMBERSHIP",
        "ARTIFACT_MEMBERSHIP_IN_LINK_ARTIFACT_RESPONSE",
        "TOTAL_COUNT_IN_FILE_CONNECTION",
        "MARK_RUN_FILES_UPLOADED",
        "FILESTREAM_GZIP",
        "QUERY_AUTOMATIONS_ON_ENTITY",
        "AUTOMATION_SCOPE_ENTITY",
    }
)
REGISTRIES = ("wandb-registry-model", "wandb-registry-dataset")


class StandIn:
    """A W&B server on loopback whose clients keep their files under `directory`. `entity` is the user's default."""

    def __init__(
        self, directory: Path, *, entity: str = "team", user: str = "tester", organization: str = "org"
    ) -> None:
        operations.load()
        self.directory = directory
        self.faults = Faults()
        self._keys: dict[str, str] = {}
        self._store = Store(entity, user, organization, features=set(FEATURES))
        for name in REGISTRIES:
            self._store.project(organization, name)
        self._web: Web | None = None
        self._thread: threading.Thread | None = None
        self._port = 0
        self.key = self.new_key("user")

    # ------------------------------------------------------------------ up and down

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def up(self) -> None:
        """Listen; again, on the same port and with the same state."""
        if self._web is not None:
            return
        self._web = Web(self._port, self._store, self.faults, self._keys)
        self._port = int(self._web.server_address[1])
        self._thread = threading.Thread(target=self._web.serve_forever, args=(0.05,), name="stand-in", daemon=True)
        self._thread.start()

    def down(self) -> None:
        """Refuse connections, and cut those that there are."""
        if self._web is None:
            return
        web, self._web = self._web, None
        web.shutdown()
        web.server_close()
        web.cut()

    @contextmanager
    def outage(self) -> Iterator[None]:
        self.down()
        try:
            yield
        finally:
            self.up()

    # ------------------------------------------------------------------ for clients

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def new_key(self, who: str) -> str:
        """Another key that is valid; requests made with it are logged under this name."""
        key = secrets.token_hex(20)
        self._keys[key] = who
        return key

    @property
    def env(self) -> dict[str, str]:
        """What a client's environment must say."""
        return self.env_of(self.key)

    def env_of(self, key: str) -> dict[str, str]:
        here = self.directory / "wandb"
        places = {
            "WANDB_DIR": here / "runs",
            "WANDB_CACHE_DIR": here / "cache",
            "WANDB_CONFIG_DIR": here / "config",
            "WANDB_DATA_DIR": here / "data",
            "WANDB_ARTIFACT_DIR": here / "artifacts",
        }
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": key,
            **{name: str(place) for name, place in places.items()},
            "NETRC": str(here / "netrc"),
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_DISABLE_GIT": "true",
            "WANDB_DISABLE_CODE": "true",
            "WANDB_X_DISABLE_STATS": "true",
            "WANDB_X_DISABLE_MACHINE_INFO": "true",
            "NO_PROXY": "127.0.0.1",
        }

    # ------------------------------------------------------------------ what it knows

    @property
    def entity(self) -> str:
        return self._store.entity

    @property
    def organization(self) -> str:
        return self._store.organization

    @property
    def limits(self) -> Limits:
        return self._store.limits

    @property
    def runs(self) -> dict[str, Run]:
        """By `entity/project/id`; deleted ones are not among them."""
        with self._store.lock:
            return dict(self._store.runs)

    @property
    def queues(self) -> dict[str, Queue]:
        """By `entity/project/name`; Launch's own project is `model-registry`."""
        with self._store.lock:
            return dict(self._store.queues)

    @property
    def items(self) -> list[Item]:
        """Of all queues, in the order of their pushes."""
        with self._store.lock:
            return sorted(self._store.items.values(), key=lambda item: item.number)

    @property
    def agents(self) -> list[Agent]:
        with self._store.lock:
            return sorted(self._store.agents.values(), key=lambda agent: agent.created)

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """By `entity/project/collection:vN`, the committed ones."""
        with self._store.lock:
            return {one.path: one for one in self._store.artifacts.values() if one.state == "COMMITTED"}

    @property
    def collections(self) -> dict[str, Collection]:
        """Sequences and portfolios, by `entity/project/name`."""
        with self._store.lock:
            return dict(self._store.collections)

    @property
    def automations(self) -> list[Automation]:
        with self._store.lock:
            return list(self._store.automations.values())

    @property
    def requests(self) -> list[Request]:
        with self._store.lock:
            return list(self._store.requests)

    @property
    def refused(self) -> list[str]:
        """Operations that it did not know, and those that broke it: a test's client should have caused none."""
        with self._store.lock:
            return list(self._store.refused)

    def aliases(self, artifact: Artifact) -> set[str]:
        """In the artifact's own collection."""
        home = self.collections[f"{artifact.entity}/{artifact.project}/{artifact.collection}"]
        return {alias for member in home.members if member.artifact == artifact.id for alias in member.aliases}

    def manifest(self, artifact: Artifact) -> dict[str, dict[str, object]]:
        """The entries of its manifest, by path; those by reference have `ref`."""
        with self._store.lock:
            text = self._store.blobs[artifact.files["wandb_manifest.json"]]
        found: dict[str, dict[str, object]] = json.loads(text)["contents"]
        return found

    def content(self, artifact: Artifact, name: str) -> bytes:
        with self._store.lock:
            return self._store.blobs[artifact.files[name]]

    def counted(self, operation: str = "*", *, who: str = "*", since: float = 0.0) -> int:
        """How many requests were answered, by operation, by whose key, since when (`time.time`)."""
        return sum(
            fnmatchcase(one.operation, operation) and fnmatchcase(one.who, who) and one.time >= since
            for one in self.requests
        )

    def wait(self, condition: Callable[[Self], bool], seconds: float = 300.0) -> None:
        """Until it holds; raises TimeoutError with the latest requests."""
        end = time.monotonic() + seconds
        while not condition(self):
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds} s; refused: {self.refused}; latest: {self.requests[-8:]}")
            time.sleep(0.02)

    # ------------------------------------------------------------------ what tests may do to it

    def stop_run(self, path: str) -> None:
        """As the button does."""
        with self._store.lock:
            self._store.runs[path].stop_requests.append(time.time())

    def delete_run(self, path: str) -> None:
        with self._store.lock:
            self._store.deleted[path] = self._store.runs.pop(path)

    def lose_item(self, item_id: str) -> None:
        """It is gone, and nobody was told."""
        with self._store.lock:
            self._store.lost[item_id] = self._store.items.pop(item_id)

    def requeue_item(self, item_id: str) -> None:
        """A lease that ran out: the item waits again."""
        with self._store.lock:
            item = self._store.items[item_id]
            item.state, item.leased_by, item.run_id = ItemState.PENDING, None, None

    def stop_agent(self, agent_id: str) -> None:
        """It is told at its next poll to poll no more."""
        with self._store.lock:
            self._store.agents[agent_id].stop_polling = True

    def add_webhook(self, name: str, url: str = "http://127.0.0.1:9/hook") -> Integration:
        fields = {"name": name, "urlEndpoint": url}
        return self._integrate(Integration(fresh("Integration"), "GenericWebhookIntegration", self.entity, fields))

    def add_slack(self, channel: str) -> Integration:
        fields = {"teamName": self.entity, "channelName": channel}
        return self._integrate(Integration(fresh("Integration"), "SlackIntegration", self.entity, fields))

    def _integrate(self, integration: Integration) -> Integration:
        with self._store.lock:
            self._store.integrations[integration.id] = integration
        return integration
