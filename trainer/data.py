"""Builds the data sets, the tokenizer and the batches of a torchtune configuration.

Invariants: data sets and tokenizer are kept between trials that name the same ones. Only the training data's loader
draws random numbers, as torchtune's does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler
from torchtune import config
from torchtune.config._utils import _get_component_from_path
from torchtune.data import padded_collate_packed
from torchtune.datasets import ConcatDataset

from trainer.base import Cache


def build_dataset(dataset: DictConfig | ListConfig, cfg: DictConfig, cache: Cache, kind: str) -> Any:
    """A map-style data set, kept between trials.

    Args:
        kind: "dataset" for training data, "dataset_val" for validation data.
    """
    tokenizer = build_tokenizer(cfg, cache)

    def make() -> Any:
        if isinstance(dataset, ListConfig):
            return ConcatDataset(datasets=[config.instantiate(part, tokenizer) for part in dataset])
        return config.instantiate(dataset, tokenizer)

    return cache.get(kind, [cfg.tokenizer, dataset], make)


def build_tokenizer(cfg: DictConfig, cache: Cache) -> Any:
    """The tokenizer of a configuration, kept between trials."""
    return cache.get("tokenizer", cfg.tokenizer, lambda: config.instantiate(cfg.tokenizer))


def build_collate(
    cfg: DictConfig, dataset: DictConfig | ListConfig, built: Any, ignore_index: int, tokenizer: Any
) -> Callable[[list[Any]], Any]:
    """The function that collates samples of a data set into a batch.

    Args:
        dataset: the configuration of the data set.
        built: the data set.
        ignore_index: the label of padding.

    Raises:
        ValueError: `collate_fn` pads on the left, which is for inference.
    """
    name = cfg.get("collate_fn", "torchtune.data.padded_collate_sft")
    if "left_pad_sequence" in name:
        raise ValueError(f"collate_fn={name} pads on the left, which is for inference; use padded_collate_sft")
    packed = built if isinstance(dataset, ListConfig) else dataset
    if getattr(packed, "packed", False):
        return padded_collate_packed  # type: ignore[no-any-return]
    return partial(_get_component_from_path(name), padding_idx=tokenizer.pad_id, ignore_idx=ignore_index)


def build_loader(cfg: DictConfig, cache: Cache, ignored: int) -> StatefulDataLoader:
    """The loader of the training data, in torchtune's order.

    Args:
        ignored: the label that does not count.
    """
    dataset = build_dataset(cfg.dataset, cfg, cache, "dataset")
    tokenizer = build_tokenizer(cfg, cache)
    sampler = StatefulDistributedSampler(dataset, num_replicas=1, rank=0, shuffle=cfg.shuffle, seed=0)
    collate = build_collate(cfg, cfg.dataset, dataset, ignored, tokenizer)
    return StatefulDataLoader(
        dataset=dataset,
        batch_size=cfg.batch_size,
        sampler=sampler,
        collate_fn=collate,
        drop_last=True,
    )


def validation_batches(cfg: DictConfig, cache: Cache, ignored: int) -> list[dict[str, torch.Tensor]]:
    """All rows of `dataset_val` in their order, as batches on the CPU; kept between trials.

    Args:
        ignored: the label that does not count.
    """
    dataset = cfg.dataset_val
    size = int(cfg.get("batch_size_val") or cfg.batch_size)

    def make() -> list[dict[str, torch.Tensor]]:
        data = build_dataset(dataset, cfg, cache, "dataset_val")
        tokenizer = build_tokenizer(cfg, cache)
        collate = build_collate(cfg, dataset, data, ignored, tokenizer)
        rows = [data[index] for index in range(len(data))]
        return [collate(rows[start : start + size]) for start in range(0, len(rows), size)]

    return cache.get("validation", [cfg.tokenizer, dataset, size, cfg.get("collate_fn")], make)
