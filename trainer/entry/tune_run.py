"""Runs `tune` with the words that a person would type, and writes down every optimizer step of its recipe.

    python -P -m trainer.entry.tune_run DIRECTORY run lora_finetune_single_device --config FILE

Torchtune reads the file and runs its recipe as it is; no word is added to the command. This program sees the
configuration once torchtune has read it, and changes only what lets no configuration pass that would fail:

- Directories that the recipe writes to become new directories inside the configured ones, so that nothing is
  overwritten. A place that cannot be written, or that torchtune refuses, remains one.
- A whole number above 0 under `log_every_n_steps` becomes 1.
- Nothing is uploaded. W&B's client is disabled. Of a logger of Comet or MLflow, package and arguments are checked, and
  it is not started. Every other logger is built and called as torchtune does.

- Code is trusted as in a trial: a component outside the closed lists is refused (`trainer.components`).

From DIRECTORY it reads `components.json` (the further prefixes that the sweep trusts). There it leaves `steps.jsonl`
(one object a step), `failure` (the error that ended the recipe, in one line) and `places.json` (what `remove_places`
deletes). Invariant: this module imports torch in `main` only.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainer.components import load_components
from trainer.environment import check_plain

TRUSTED, STEPS, FAILURE, PLACES = "components.json", "steps.jsonl", "failure", "places.json"
# Keys of directories that torchtune's recipe and its components write to; the first is what the others often refer to.
WRITTEN = ("output_dir", "checkpointer.output_dir", "metric_logger.log_dir", "metric_logger.dir", "profiler.output_dir")
LOG_FILE = "metric_logger.filename"  # below log_dir, unless it is absolute
# Torchtune's loggers that send to a server from the start, and the packages that do it.
SENDING = {"CometLogger": "comet_ml", "MLFlowLogger": "mlflow"}


def main() -> None:
    directory = Path(sys.argv[1])
    sys.argv[:] = ["tune", *sys.argv[2:]]
    try:
        from torchtune._cli.tune import main as tune

        Observation(directory).begin()
        tune()
    except Exception as error:
        (directory / FAILURE).write_text(_described(error), encoding="utf-8")
        raise


def remove_places(directory: Path) -> None:
    """Delete the directories that a run made, also if it was killed.

    Args:
        directory: the DIRECTORY of the run.
    """
    with suppress(OSError, ValueError):
        places = json.loads((directory / PLACES).read_text(encoding="utf-8"))
        for place in map(Path, places["new"]):
            shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):  # it is a file, or was never made
                place.unlink()
        for parent in places["parents"]:
            with suppress(OSError):  # it has something else in it
                Path(parent).rmdir()


class Observation:
    """What this program changes in torchtune for one run.

    Args:
        directory: where the files of the run are left; its name is that of the directories for the recipe's output.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._config: Any = None
        self._norm: Any = None

    def begin(self) -> None:
        """Have torchtune hand its configuration, its logger and its gradients to this object."""
        from torchtune import config, training

        config.parse = functools.partial(self._parse, config.parse)
        config.instantiate = functools.partial(self._instantiate, config.instantiate)
        training.scale_grads = functools.partial(self._scale_grads, training.scale_grads)
        os.environ["WANDB_MODE"] = "disabled"
        if find_spec("wandb"):
            wandb: Any = import_module("wandb")
            start = wandb.init
            wandb.init = lambda *args, **more: start(*args, **{**more, "mode": "disabled"})

    def record(self, payload: Mapping[str, Any], step: int) -> None:
        """Write down an optimizer step."""
        values = {"grad_norm": self._norm, **payload}
        line = {name: float(values[name]) for name in ("loss", "grad_norm") if values[name] is not None}
        with (self._directory / STEPS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **line}) + "\n")

    def _parse(self, parse: Callable[..., Any], recipe_main: Callable[..., Any]) -> Any:
        @functools.wraps(recipe_main)
        def observed(cfg: Any) -> Any:
            self._config = cfg
            self._check_trusted(cfg)
            self._redirect(cfg)
            if type(every := cfg.get("log_every_n_steps")) is int and every > 0:
                cfg.log_every_n_steps = 1
            return recipe_main(cfg)

        return parse(observed)

    def _check_trusted(self, cfg: Any) -> None:
        """Refuse code that no trial may name: the file may be of a room that another person has changed."""
        from omegaconf import OmegaConf

        plain = OmegaConf.to_container(cfg, resolve=True)
        check_plain(plain)
        if str(Path.cwd()) not in sys.path:  # as torchtune does before it builds the first component
            sys.path.append(str(Path.cwd()))
        load_components(plain, json.loads((self._directory / TRUSTED).read_text(encoding="utf-8")))

    def _instantiate(self, instantiate: Callable[..., Any], node: Any, *args: Any, **more: Any) -> Any:
        if node is None or node is not self._config.get("metric_logger"):
            return instantiate(node, *args, **more)
        kind = str(node.get("_component_")).rpartition(".")[2]
        if kind in SENDING:
            return ObservedLogger(_unsent(node, SENDING[kind]), self.record)
        return ObservedLogger(instantiate(node, *args, **more), self.record)

    def _scale_grads(self, scale_grads: Callable[..., Any], model: Any, scaler: Any) -> None:
        """As torchtune's, which the recipe calls before it clips; it logs the norm only if it clips."""
        from torch.nn.utils import get_total_norm

        scale_grads(model, scaler)
        self._norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])

    def _redirect(self, cfg: Any) -> None:
        """Let the recipe write into new directories inside those of the configuration."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        places: dict[str, list[str]] = {"new": [], "parents": []}
        with suppress(OmegaConfBaseException):  # torchtune will say which interpolation is wrong
            given = {key: value for key in WRITTEN if isinstance(value := OmegaConf.select(cfg, key), str)}
            for key, value in given.items():
                if OmegaConf.select(cfg, key) == value:  # else it refers to one that was replaced
                    inside = Path(value) / self._directory.name
                    OmegaConf.update(cfg, key, str(inside))
                    places["new"].append(str(inside.absolute()))
                    places["parents"] += [str(parent.absolute()) for parent in inside.parents if not parent.exists()]
            if isinstance(name := OmegaConf.select(cfg, LOG_FILE), str) and Path(name).is_absolute():
                beside = Path(name).with_name(f"{self._directory.name}-{Path(name).name}")
                OmegaConf.update(cfg, LOG_FILE, str(beside))
                places["new"].append(str(beside))
        places["parents"].sort(key=len, reverse=True)
        (self._directory / PLACES).write_text(json.dumps(places), encoding="utf-8")


class ObservedLogger:
    """A metric logger of the configuration's own choice, whose steps are written down too.

    Args:
        logger: what the configuration names.
        record: called with each step's values and number.
    """

    def __init__(self, logger: Any, record: Callable[[Mapping[str, Any], int], None]) -> None:
        self._logger = logger
        self._record = record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def log_dict(self, payload: Mapping[str, Any], step: int) -> None:
        self._logger.log_dict(payload, step=step)
        self._record(payload, step)


class UnsentLogger:
    """In place of a logger that would send to a server: takes everything and sends nothing."""

    def log_config(self, config: Any) -> None:
        """Nothing."""

    def log_dict(self, payload: Mapping[str, Any], step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _unsent(node: Any, package: str) -> UnsentLogger:
    """In place of a logger that sends.

    Raises:
        ImportError: its package is not installed. TypeError: an argument is not one of the logger's.
    """
    from omegaconf import OmegaConf
    from torchtune.config._utils import _get_component_from_path

    import_module(package)
    arguments: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    component = _get_component_from_path(arguments.pop("_component_"))
    inspect.signature(component).bind(**arguments)
    return UnsentLogger()


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


if __name__ == "__main__":
    main()
