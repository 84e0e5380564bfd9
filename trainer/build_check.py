"""Builds what a trial needs, without weights and without training, to find what would make every trial fail.

Tokenizer, data, model, checkpoint, loss, optimizer, schedule and the adapter's files are built by the classes that the
configuration names. The model lies on torch's meta device, and of the checkpoint only names, shapes and types are read,
so that a base of 70 billion parameters takes seconds and no memory.

Invariants: nothing is left on the disk, and no weight is read. What passes here fails in a trial only by its size, by
its device, or by a row that was not looked at. The sentence of an error names the key and torchtune's reason.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from safetensors import safe_open
from torch import nn
from torchtune import config, training, utils
from torchtune.modules.peft import get_adapter_params
from torchtune.training.checkpointing import _checkpointer

from trainer.adapter_export import write_adapter
from trainer.base import Cache, instantiate_model, load_base
from trainer.components import ComponentError, look_up
from trainer.configuration import trusted_config
from trainer.contract import Metric
from trainer.data import build_collate, build_dataset, build_tokenizer
from trainer.failures import describe
from trainer.metrics.errors import MetricError
from trainer.metrics.generation import check_scorer, prepare_generation
from trainer.metrics.measure import PROGRAMS, check_metric
from trainer.metrics.programs import check_program
from trainer.rows import SAMPLE_ROWS, RowError, Rows, look_at
from trainer.signatures import check_arguments
from trainer.task import FREE_KEYS

T = TypeVar("T")

CASE_ROWS = 16  # rows that are looked at of data that only some trials have
_META = torch.device("meta")
_TORCH_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class BuildError(ValueError):
    """A trial of this configuration cannot be built. The text is a sentence for a person."""


@dataclass(frozen=True, slots=True)
class Case:
    """A trial that the search may propose.

    Args:
        params: its own values, by dotted key, for the error text.
        config: its resolved configuration.
    """

    params: Mapping[str, Any]
    config: Mapping[str, Any]


@dataclass(slots=True)
class BuildCheck:
    """Checks configurations one after the other; what several of them share is built once.

    Args:
        trusted: further allowed prefixes of components.
        device_here: trials train on this machine, so that it must have the device and the base.
        metrics: what trials measure.

    Attributes:
        notes: sentences for a person.
        base_elsewhere: the base is not here, so that no model was built on it.
    """

    trusted: Sequence[str]
    device_here: bool
    metrics: Sequence[Metric] = ()
    notes: list[str] = field(default_factory=list)
    base_elsewhere: bool = False
    _cache: Cache = field(default_factory=Cache)
    _passed: dict[str, Any] = field(default_factory=dict)

    def base(self, plain: Mapping[str, Any]) -> tuple[Rows, Rows | None]:
        """Check the base configuration; returns what was seen of its training and its validation data.

        Raises:
            UntrustedError: it names code that is not trusted. BuildError: a trial of it cannot be built.
            MetricError: its trials cannot be measured.
        """
        return self._check(trusted_config(plain, self.trusted))

    def case(self, case: Case) -> None:
        """Check a trial that differs from the base in some keys.

        Raises:
            UntrustedError: it names code that is not trusted.
            BuildError: it cannot be built; the text gives the values that it differs in.
        """
        try:
            self._check(trusted_config(case.config, self.trusted), CASE_ROWS)
        except (BuildError, RowError, ComponentError, MetricError) as error:
            values = ", ".join(f"{key}={_shown(value)}" for key, value in case.params.items())
            raise type(error)(f"{error} (in a trial with {values})") from error

    def _check(self, cfg: DictConfig, most: int = SAMPLE_ROWS) -> tuple[Rows, Rows | None]:
        check_arguments(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
        self._once(("device", cfg.device, cfg.dtype), lambda: self._device(cfg))
        rows = self._data(cfg, "dataset", most)
        validation = None if cfg.get("dataset_val") is None else self._data(cfg, "dataset_val", most)
        steps_per_epoch(cfg, rows.count)
        loss = self._once(("loss", cfg.loss), lambda: _loss(cfg))
        if self._has_base(cfg):
            _check_fit(rows, self._model(cfg))
        batch = (cfg.get("collate_fn"), cfg.dataset, cfg.tokenizer)
        self._once(("batch", *batch), lambda: self._collate(cfg, loss))
        self._once(("schedule", cfg.optimizer, cfg.lr_scheduler), lambda: _schedule(cfg))
        if self.metrics:
            model: Any = self._once(("adapter", cfg.model), lambda: _instantiated(cfg))
            length = int(getattr(model, "max_seq_len", 0))
            key = ("metrics", cfg.tokenizer, cfg.get("dataset_val"), length)
            self._once(key, lambda: self._check_metrics(cfg, length))
        return rows, validation

    def _check_metrics(self, cfg: DictConfig, max_seq_len: int) -> None:
        for metric in self.metrics:
            check_metric(metric, cfg.get("dataset_val") is not None)
            if metric.source == "generate":
                generation = prepare_generation(metric, cfg, max_seq_len, self.trusted, self._cache)
                check_scorer(generation, str(metric.options.get("score")), f"metric.{metric.name}")
            elif metric.source in PROGRAMS and self.device_here:
                check_program(metric)

    def _once(self, key: Any, check: Callable[[], T]) -> T:
        """The result of a check, from before if it has passed for an equal key."""
        text = json.dumps(key, sort_keys=True, default=_plain)
        if text not in self._passed:
            self._passed[text] = check()
        result: T = self._passed[text]
        return result

    def _data(self, cfg: DictConfig, key: str, most: int) -> Rows:
        return self._once(("data", cfg.tokenizer, cfg[key]), lambda: self._look_at(cfg, key, most))

    def _look_at(self, cfg: DictConfig, key: str, most: int) -> Rows:
        with _named("tokenizer", cfg.tokenizer):
            build_tokenizer(cfg, self._cache)
        rows = look_at(self._dataset(cfg, key), key, most)
        self.notes += [note for note in rows.notes if note not in self.notes]
        return rows

    def _dataset(self, cfg: DictConfig, key: str) -> Any:
        try:
            return build_dataset(cfg[key], cfg, self._cache, key)
        except Exception as error:
            if isinstance(cfg[key], DictConfig) and cfg[key].get("packed"):  # packing reads all rows, and hides which
                look_at(build_dataset(OmegaConf.merge(cfg[key], {"packed": False}), cfg, self._cache, key), key)
            raise BuildError(f"{key} cannot be built{_component(cfg[key])}: {describe(error)}") from error

    def _collate(self, cfg: DictConfig, loss: Any) -> None:
        with _named("collate_fn", cfg.get("collate_fn") or {}):
            dataset = build_dataset(cfg.dataset, cfg, self._cache, "dataset")
            collate = build_collate(cfg, cfg.dataset, dataset, loss.ignore_index, build_tokenizer(cfg, self._cache))
            batch = collate([dataset[0], dataset[len(dataset) - 1]])
            if not {"tokens", "labels"} <= set(batch):
                raise BuildError(
                    f"collate_fn={cfg.collate_fn} gives {', '.join(batch)}, and must give tokens and labels"
                )

    def _has_base(self, cfg: DictConfig) -> bool:
        """Whether the base is here; it must be if trials train here."""
        directory = Path(str(cfg.checkpointer.checkpoint_dir))
        if self.device_here or directory.is_dir():
            return True
        note = f"checkpointer.checkpoint_dir={directory} is not on this machine; the first trial checks it, alone"
        self.notes += [note] if note not in self.notes else []
        self.base_elsewhere = True
        return False

    def _model(self, cfg: DictConfig) -> nn.Module:
        files = {key: value for key, value in cfg.checkpointer.items() if key != "output_dir"}
        model = {key: value for key, value in cfg.model.items() if key not in FREE_KEYS}
        self._once(("adapter", cfg.model), lambda: _instantiated(cfg))
        return self._once(("model", model, files, cfg.dtype), lambda: _base_and_adapter(cfg))

    def _device(self, cfg: DictConfig) -> None:
        if not self.device_here:
            return
        try:
            training.get_dtype(cfg.dtype, device=utils.get_device(device=cfg.device))
        except Exception as error:
            raise BuildError(
                f"device={cfg.device} with dtype={cfg.dtype} cannot train on this machine, which has "
                f"{torch.cuda.device_count()} CUDA devices: {describe(error)}"
            ) from error


def _loss(cfg: DictConfig) -> Any:
    """The loss, after it was called once as the recipe calls it."""
    with _named("loss", cfg.loss):
        loss = config.instantiate(cfg.loss)
        if not hasattr(loss, "ignore_index"):
            raise BuildError(f"loss._component_={cfg.loss._component_} has no ignore_index, which the recipe needs")
        try:
            inspect.signature(loss.forward).bind(None, None)
        except TypeError as error:
            raise BuildError(
                f"loss._component_={cfg.loss._component_} does not take logits and labels alone ({error}), so it is no "
                "loss of this recipe; use torchtune.modules.loss.CEWithChunkedOutputLoss"
            ) from error
        chunks = getattr(loss, "num_output_chunks", None)
        if chunks is None:
            value = loss(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
        else:
            value = loss([torch.zeros(1, 1, 4)] * int(chunks), torch.zeros(1, int(chunks), dtype=torch.int64))
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise BuildError(
                f"loss._component_={cfg.loss._component_} gives no single number; set loss.reduction=mean, or use "
                "torchtune.modules.loss.CEWithChunkedOutputLoss"
            )
        return loss


def _schedule(cfg: DictConfig) -> None:
    """Build optimizer and schedule over a parameter of one number."""
    parameter = nn.Parameter(torch.zeros(1))
    with _named("optimizer", cfg.optimizer):
        optimizer = config.instantiate(cfg.optimizer, [parameter])
    with _named("lr_scheduler", cfg.lr_scheduler):
        config.instantiate(cfg.lr_scheduler, optimizer, num_training_steps=max(1, int(cfg.epochs)), last_epoch=-1)


def _instantiated(cfg: DictConfig, **values: Any) -> nn.Module:
    """The model on the meta device, not quantised: names and shapes are those of the checkpoint."""
    plain = dict(values)
    if "quantize_base" in inspect.signature(look_up(cfg.model._component_)).parameters:
        plain["quantize_base"] = False
    with _named("model", cfg.model):
        return instantiate_model(
            _with_model(cfg, plain), _META, training.get_dtype(cfg.dtype, device=torch.device("cpu"))
        )


def _with_model(cfg: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """The same configuration with other arguments of its model."""
    changed: DictConfig = OmegaConf.create({**cfg, "model": {**cfg.model, **values}})
    return changed


def steps_per_epoch(cfg: DictConfig, rows: int) -> int:
    """Optimizer steps of an epoch.

    Raises:
        BuildError: there is none.
    """
    batch, accumulation = int(cfg.batch_size), int(cfg.gradient_accumulation_steps)
    steps = rows // batch // accumulation
    if cfg.get("max_steps_per_epoch") is not None:
        steps = min(steps, int(cfg.max_steps_per_epoch))
    if steps < 1 or int(cfg.epochs) < 1:
        raise BuildError(
            f"this configuration trains zero steps: {rows} rows make no step of batch_size={batch} and "
            f"gradient_accumulation_steps={accumulation} in {cfg.epochs} epochs; lower one of them or add data"
        )
    return steps


def _base_and_adapter(cfg: DictConfig) -> nn.Module:
    """The model after the names and shapes of its base were loaded, and its adapter's files were written."""
    with tempfile.TemporaryDirectory() as scratch:
        model = _instantiated(cfg)
        _load_shapes(cfg, model, Path(scratch))
        _write_small_adapter(cfg, Path(scratch))
        return model


def _load_shapes(cfg: DictConfig, model: nn.Module, scratch: Path) -> None:
    _check_files(cfg)
    with _named("checkpointer", cfg.checkpointer), _shapes_only():
        try:
            load_base(cfg, model, str(scratch / "base"))
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()]
            misfit = next((line for line in lines if line.startswith(("size mismatch", "copying"))), lines[-1])
            raise BuildError(
                f"checkpointer.checkpoint_dir={cfg.checkpointer.checkpoint_dir} does not fit "
                f"model._component_={cfg.model._component_}: {misfit}; name the model of this checkpoint"
            ) from error


def _write_small_adapter(cfg: DictConfig, scratch: Path) -> None:
    """Write an adapter of rank 1, which has the names of any other."""
    adapter = {
        name: torch.zeros(value.shape, dtype=value.dtype)
        for name, value in get_adapter_params(_instantiated(cfg, lora_rank=1)).items()
    }
    with _named("model", cfg.model, "its adapter cannot be written"):
        write_adapter(_with_model(cfg, {"lora_rank": 1}), adapter, scratch / "adapter", scratch / "written")


def _check_files(cfg: DictConfig) -> None:
    """Refuse a base whose directory or files do not exist, and a model type that torchtune does not know."""
    section = cfg.checkpointer
    directory = Path(str(section.checkpoint_dir))
    files = section.get("checkpoint_files")
    names = list(files) if isinstance(files, ListConfig) else [files] if isinstance(files, str) else []
    missing = [str(name) for name in names if not (directory / str(name)).is_file()]
    if not directory.is_dir() or missing:
        what = f" lacks {', '.join(missing)}" if directory.is_dir() else " is no directory"
        raise BuildError(f"checkpointer.checkpoint_dir={directory}{what}; download the base with `tune download`")
    kinds = [kind.name for kind in training.checkpointing.ModelType]
    if "model_type" in section and section.model_type not in kinds:
        raise BuildError(f"checkpointer.model_type={section.model_type} must be {', '.join(kinds[:-1])} or {kinds[-1]}")


def _check_fit(rows: Rows, model: nn.Module) -> None:
    """Refuse rows that the model cannot take."""
    most = getattr(model, "max_seq_len", None)
    if isinstance(most, int) and rows.longest > most:
        raise BuildError(
            f"dataset has rows of {rows.longest} tokens, and the model takes {most} at most; "
            f"set tokenizer.max_seq_len={most}"
        )
    known = getattr(getattr(model, "tok_embeddings", None), "num_embeddings", None)
    if isinstance(known, int) and rows.largest >= known:
        raise BuildError(
            f"tokenizer gives the token {rows.largest}, and the model has {known}; name the tokenizer of this base"
        )


@contextmanager
def _shapes_only() -> Iterator[None]:
    """While the block runs, torchtune's checkpointers read the names, shapes and types of tensors, and no weight."""
    module: Any = _checkpointer
    before, module.safe_torch_load = module.safe_torch_load, _shapes
    try:
        yield
    finally:
        module.safe_torch_load = before


def _shapes(checkpoint_path: Path | str, weights_only: bool = True, mmap: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint's file on the meta device."""
    if not str(checkpoint_path).endswith(".safetensors"):
        state: dict[str, torch.Tensor] = torch.load(
            str(checkpoint_path), map_location="meta", mmap=mmap, weights_only=weights_only
        )
        return state
    with safe_open(checkpoint_path, framework="pt", device="cpu") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        return {
            name: torch.empty(part.get_shape(), dtype=_TORCH_TYPES[part.get_dtype()], device=_META)
            for name, part in slices.items()
        }


@contextmanager
def _named(key: str, section: Any, what: str = "it cannot be built") -> Iterator[None]:
    """Turn an error of the block into a sentence that names the key and its component."""
    try:
        yield
    except (BuildError, RowError, ComponentError):
        raise
    except Exception as error:
        raise BuildError(f"{key}{_component(section)}: {what}: {describe(error)}") from error


def _component(section: Any) -> str:
    return f" ({section['_component_']})" if isinstance(section, DictConfig) and "_component_" in section else ""


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if isinstance(value, DictConfig | ListConfig) else str(value)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"
