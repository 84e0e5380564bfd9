"""What all tests share: one thread, no network, and a small torchtune configuration on the embedded base."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from trainer import environment

pytest.register_assert_rewrite("tests.helpers")  # so that a failed assertion there says its values too

from tests.helpers.schedule import FileScheduling, in_order  # noqa: E402
from tests.helpers.warm import start_server  # noqa: E402
from tests.helpers.xdist_worker import fork_workers  # noqa: E402

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TIKTOKEN_CACHE_DIR", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# An example may take long on a busy machine: that is no failure.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

SLOW_FOLDERS = ("faults", "gpu", "slurm")  # marked as a whole, or run by hand
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once what failed: a run that is cut off has no summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nFAILED {report.nodeid} ({report.when}, {report.duration:.0f} s)\n{report.longreprtext}", flush=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {nodeid: at for at, nodeid in enumerate(in_order(item.nodeid for item in items))}
    items.sort(key=lambda item: place[item.nodeid])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling | None:
    return FileScheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Sequence[Any]) -> None:
    """Import once what each worker would import; a fork does not take CUDA with it."""
    if leaves_out_slow(config) or os.environ.get("SWEEP_TESTS_COLD") == "1" or Path("/dev/nvidiactl").exists():
        return
    directory = Path(tempfile.mkdtemp(prefix="sweep-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(directory))
    fork_workers(directory, specs)


def leaves_out_slow(config: pytest.Config) -> bool:
    return "not slow" in config.getoption("markexpr")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what `-m "not slow"` would leave out: torch, W&B's client and a server of S3 take seconds."""
    if not leaves_out_slow(config) or collection_path.suffix != ".py":
        return None
    folder = collection_path.relative_to(Path(__file__).parent).parts[0]
    slow = re.search(r"^pytestmark = .*mark\.slow\b", collection_path.read_text(), re.MULTILINE)
    return True if folder in SLOW_FOLDERS or slow else None


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """From now on a fork server makes the processes of `tests.helpers.cli`; all workers of pytest-xdist share it.

    With SWEEP_TESTS_COLD=1 each process starts anew.
    """
    base, parallel = tmp_path_factory.getbasetemp(), "PYTEST_XDIST_WORKER" in os.environ
    path = (base.parent if parallel else base) / "fork-server"
    if os.environ.get("SWEEP_TESTS_COLD") != "1" and len(str(path)) < 100:  # the path of a socket has 107 at most
        start_server(path, until=os.getppid() if parallel else os.getpid())


@pytest.fixture(autouse=True)
def default_log_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb that a test calls in this process leaves the level of its options in the environment."""
    monkeypatch.delenv("SWEEP_LOG_LEVEL", raising=False)


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory where this test's sweeps lie."""
    path = tmp_path / "sweeps"
    monkeypatch.setenv("SWEEP_ROOMS", str(path))
    return path


@pytest.fixture
def shared_data() -> Path:
    """The pretrained bases and GSM8K beside the checkout; skips where they are absent."""
    if not (SHARED / "base1m").is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED


@pytest.fixture
def embedded() -> dict[str, Any]:
    """The embedded torchtune configuration, resolved, cut down to 12 micro-batches of 4 rows."""
    return embedded_config()


def embedded_config(**changes: Any) -> dict[str, Any]:
    """The same with dotted keys changed; `a__b` stands for `a.b`."""
    from omegaconf import OmegaConf

    from sweep.config.torchtune import resolve
    from sweep.config.yaml_files import load_yaml
    from sweep.resources import embedded_dir

    raw: dict[str, Any] = OmegaConf.to_container(load_yaml(embedded_dir() / "lora_cpu.yaml"))  # type: ignore[assignment]
    small = {
        "root": str(embedded_dir()),
        "dataset.split": "train[:48]",
        "dataset_val.split": "train[:16]",
        "batch_size": 4,
    }
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return resolve(raw, {**small, **dotted}, {})


@pytest.fixture(autouse=True)
def no_revealed_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """No value of the environment that an earlier test read in this process is masked in the texts of this one."""
    monkeypatch.setattr(environment, "_revealed", {})
