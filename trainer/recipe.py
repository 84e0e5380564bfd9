"""The training loop of one trial, from torchtune's components, with the numbers of `lora_finetune_single_device`.

Invariants: for the same resolved configuration, loss and grad_norm of every optimizer step are torchtune's. Random
numbers are drawn in torchtune's order, and validation draws none. A step starts only if its epoch has enough data for
it, so that no micro-batch leaks into the next epoch. The loop knows no reporter, no file of a room and no reason to
stop. It yields after every micro-batch, when its state can be saved.

A trial trains in one of two ways. Alone, `train` runs its passes. In a pack (`trainer.packed.pack`), the pack draws its
micro-batches from `batches`, runs the passes, and reports their results by `advance`, `add_loss`, `step_schedule` and
`finish_step`. Data order, schedule, counters and state belong to the recipe in both cases, so that a trial can change
from one to the other.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torchtune import config, training, utils
from torchtune.modules.peft import get_adapter_state_dict

from trainer.adapter_export import write_adapter
from trainer.base import Cache, build_model
from trainer.checkpoint import compact, random_state, set_random_state
from trainer.contract import Step
from trainer.data import build_loader, validation_batches
from trainer.progress import MicroBatch

for _noisy in ("torchtune", "torchao"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)
# A filter, since torchtune sets the level of its one logger anew whenever one more of its modules is imported.
logging.getLogger("torchtune.utils._logging").addFilter(lambda record: record.levelno >= logging.ERROR)


# The mean loss of a batch on the CPU in nats per label token, and how many of its labels are the likeliest token.
Scored = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Validation:
    """What a pass over data without training gives.

    Args:
        loss: mean nats per label token.
        tokens: label tokens.
        predicted: labels that follow a token, so that they are predicted; 0 if nothing was counted.
        correct: those of them that are the likeliest token; 0 if nothing was counted.
    """

    loss: float
    tokens: int
    predicted: int = 0
    correct: int = 0

    @property
    def perplexity(self) -> float:
        """exp of the loss; infinite where that exceeds the numbers."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


class LoraRecipe:
    """One trial in training.

    Args:
        cfg: a resolved torchtune configuration of a LoRA single-device recipe.
        cache: what the worker keeps between trials.
        scratch: a directory for files that torchtune must write.

    Attributes:
        position, total: micro-batches trained so far, and those of the whole trial.
        step: optimizer steps so far.
        tokens: label tokens so far.
        accumulation: micro-batches of one optimizer step.
        leftover_batches: micro-batches of an epoch that fill no optimizer step.

    Raises:
        ValueError: the dtype is fp16, the configuration would train zero steps, or it offloads activations where
            torchtune does not.
        FileNotFoundError: the configuration names a base, a tokenizer or data that do not exist.
    """

    def __init__(self, cfg: DictConfig, cache: Cache, scratch: Path) -> None:
        self.cfg, self._cache, self._scratch = cfg, cache, scratch
        self.device: torch.device = utils.get_device(device=cfg.device)
        if str(cfg.dtype) == "fp16":
            raise ValueError("dtype=fp16 is not supported by torchtune's LoRA recipe; use bf16 or fp32")
        dtype = training.get_dtype(cfg.dtype, device=self.device)
        _check_offloading(cfg, self.device)
        training.set_seed(seed=cfg.seed, debug_mode=cfg.get("cudnn_deterministic_mode", None))
        self.model: nn.Module = build_model(cfg, cache, self.device, dtype, str(scratch))
        self._offload = training.get_act_offloading_ctx_manager(
            self.model, cfg.get("enable_activation_offloading", False)
        )
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = config.instantiate(cfg.optimizer, self.model.parameters())
        self.loss = config.instantiate(cfg.loss)
        if cfg.get("compile"):
            self.loss = training.compile_loss(self.loss)
        if type(self.loss).__name__ == "CEWithChunkedOutputLoss":
            chunked: Any = self.model
            chunked.set_num_output_chunks(self.loss.num_output_chunks)

        self.accumulation = int(cfg.gradient_accumulation_steps)
        self.epochs = int(cfg.epochs)
        self._loader = build_loader(cfg, cache, self.ignored)
        limit = cfg.get("max_steps_per_epoch")
        possible = len(self._loader) // self.accumulation
        self.steps_per_epoch = possible if limit is None else min(int(limit), possible)
        if self.steps_per_epoch * self.epochs < 1:
            raise ValueError(
                f"this configuration trains zero steps: {len(self._loader)} batches of batch_size={cfg.batch_size} "
                f"make no step of gradient_accumulation_steps={self.accumulation}; lower one of them or add data"
            )
        batches_per_epoch = self.steps_per_epoch * self.accumulation
        self.leftover_batches = len(self._loader) - batches_per_epoch if possible == self.steps_per_epoch else 0
        self.total = batches_per_epoch * self.epochs
        steps = self.epochs * self.steps_per_epoch
        self.scheduler = config.instantiate(cfg.lr_scheduler, self.optimizer, num_training_steps=steps, last_epoch=-1)

        clip = cfg.get("clip_grad_norm")
        self.clip = None if clip is None else float(clip)
        # set from `join` to `leave`; bound methods of this object would keep it and its model alive by a cycle
        self._data_state: Callable[[], tuple[dict[str, Any], dict[str, Any]]] | None = None
        self._score: Callable[[dict[str, torch.Tensor], bool], Scored] | None = None
        self.position = 0
        self.step = 0
        self.tokens = 0
        self._zero: torch.Tensor | float = torch.zeros((), device=self.device)  # a sum of no losses; a float in a pack
        self._step_loss: torch.Tensor | float = self._zero
        self._interval_loss: torch.Tensor | float = self._zero
        self._step_tokens = self._interval_tokens = 0
        self._random: dict[str, Any] | None = None  # from a checkpoint, until training continues
        self._loader_state: dict[str, Any] | None = None

    def train(self) -> Iterator[MicroBatch]:
        """Train to the end of the trial; yields after every micro-batch."""
        for batch in self.batches():
            yield self._micro_batch(batch)

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The remaining micro-batches, `tokens` and `labels` [b, s] on the CPU; `advance` must follow each."""
        batches_per_epoch = self.steps_per_epoch * self.accumulation
        while self.position < self.total:
            epoch, skipped = divmod(self.position, batches_per_epoch)
            self._loader.sampler.set_epoch(epoch)
            if skipped and self._loader_state is not None:
                self._loader.load_state_dict(self._loader_state)
            else:
                self._restore_random()  # opening the loader of a new epoch draws, as it did the first time
            self._loader_state = None
            for batch in self._loader:
                self._restore_random()  # within an epoch the loader had drawn already: undo its second draw
                yield batch
                if self.position == (epoch + 1) * batches_per_epoch:
                    break

    def label_tokens(self, batch: dict[str, torch.Tensor]) -> int:
        """How many labels of a micro-batch count. Call it while the batch is on the CPU, so that no device waits."""
        return int((batch["labels"] != self.ignored).sum())

    def advance(self, count: int) -> bool:
        """Count one micro-batch; `add_loss` may follow later.

        Args:
            count: its label tokens.

        Returns:
            whether it completes an accumulation, so that an optimizer step is due.
        """
        self._step_tokens += count
        self._interval_tokens += count
        self.tokens += count
        self.position += 1
        return self.position % self.accumulation == 0

    def add_loss(self, weighted: torch.Tensor | float) -> None:
        """Add a micro-batch's loss: nats, summed over its label tokens."""
        self._step_loss = self._step_loss + weighted
        self._interval_loss = self._interval_loss + weighted

    def step_schedule(self) -> float:
        """Advance the schedule after an optimizer step; returns the learning rate that the step used."""
        lr = self.learning_rate
        self.scheduler.step()
        self.step += 1
        return lr

    def finish_step(self, norm: float, lr: float) -> Step:
        """Begin the next accumulation.

        Args:
            norm: of the step's gradient.
            lr: the learning rate that the step used.

        Returns:
            the step, with its mean loss in nats per label token.
        """
        loss = float(self._step_loss / self._step_tokens) if self._step_tokens else math.nan
        self._step_loss, self._step_tokens = self._zero, 0
        return Step(self.step, self.tokens, loss, norm, lr)

    def progress(self, step: Step | None) -> MicroBatch:
        """The trial's progress after its last micro-batch, which completed `step` if it is not None."""
        epoch = (self.position - 1) // (self.steps_per_epoch * self.accumulation)
        return MicroBatch(self.position, self.total, epoch, self.tokens, step)

    def join(
        self,
        data_state: Callable[[], tuple[dict[str, Any], dict[str, Any]]],
        score: Callable[[dict[str, torch.Tensor], bool], Scored],
    ) -> None:
        """Become a slot of a pack.

        Args:
            data_state: returns the state of the loader and of the slot's generators, for a checkpoint.
            score: computes nats per label token of a batch on the CPU by the pack's forward pass, and on request how
                many of its labels are the likeliest token.
        """
        self._data_state, self._score = data_state, score
        self._zero, self._step_loss, self._interval_loss = 0.0, float(self._step_loss), float(self._interval_loss)
        mark_stepped(self.optimizer)

    def leave(self) -> None:
        """Leave the pack. Recipe and slot refer to each other, and would live until a rare full garbage collection."""
        self._data_state = self._score = None

    @property
    def ignored(self) -> int:
        """The label that does not count."""
        return int(self.loss.ignore_index)

    @property
    def tokens_of_step(self) -> int:
        """Label tokens since the last optimizer step, by which the gradients are divided."""
        return self._step_tokens

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def mean_loss(self) -> float:
        """Mean nats per label token since the last call; NaN if nothing was trained since."""
        mean = float(self._interval_loss) / self._interval_tokens if self._interval_tokens else float("nan")
        self._interval_loss, self._interval_tokens = self._zero, 0
        return mean

    def evaluate(self) -> float | None:
        """Mean nats per label token over `dataset_val`; None if the configuration has none. Draws no random numbers.

        Raises:
            ValueError: the data have no label token.
        """
        validation = self.validate()
        return None if validation is None else validation.loss

    def validate(self, correct: bool = False) -> Validation | None:
        """A pass over `dataset_val`; None if the configuration has none. Draws no random numbers.

        Args:
            correct: also count the labels that are the likeliest token; it changes no other number.

        Raises:
            ValueError: the data have no label token.
        """
        if self.cfg.get("dataset_val") is None:
            return None
        validation = self.loss_over(self.validation_batches(), correct)
        if validation is None:
            raise ValueError(
                "dataset_val has no label token, so that there is no val_loss; name data whose answers fit into "
                "tokenizer.max_seq_len, or leave dataset_val out"
            )
        return validation

    def validation_batches(self) -> list[dict[str, torch.Tensor]]:
        """All rows of `dataset_val`, as batches on the CPU; kept between trials."""
        return validation_batches(self.cfg, self._cache, self.ignored)

    @torch.no_grad()
    def loss_over(self, batches: Iterable[dict[str, torch.Tensor]], correct: bool = False) -> Validation | None:
        """A pass over batches on the CPU; None if they have no label token."""
        total, hits = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        tokens = predicted = 0
        score = self._score or self._own_score
        self.model.eval()
        try:
            for batch in batches:
                count = self.label_tokens(batch)
                if not count:
                    continue  # prompts fill all its rows; a mean over nothing is NaN, and would make the total NaN
                mean, hit = score(batch, correct)
                total += mean.double().cpu() * count
                tokens += count
                if correct:
                    hits += hit.double().cpu()
                    predicted += int((batch["labels"][:, 1:] != self.ignored).sum())
        finally:
            self.model.train()
        return Validation(float(total) / tokens, tokens, predicted, int(hits)) if tokens else None

    def state(self) -> dict[str, Any]:
        """Everything that a bit-exact resume needs, as tensors and plain values."""
        loader, random = self._data_state() if self._data_state else self._own_data_state()
        gradients = [None if p.grad is None else compact(p.grad) for p in self.trainable]
        return {
            "adapter": self.adapter(),
            "optimizer": compact(self.optimizer.state_dict()),
            "scheduler": {k: v for k, v in self.scheduler.state_dict().items() if k != "lr_lambdas"},
            "gradients": gradients if self.position % self.accumulation else None,
            "position": self.position,
            "total": self.total,
            "accumulation": self.accumulation,
            "loader": loader,
            "step": self.step,
            "tokens": self.tokens,
            "step_loss": [torch.as_tensor(self._step_loss).cpu(), self._step_tokens],
            "lap_loss": [torch.as_tensor(self._interval_loss).cpu(), self._interval_tokens],
            "random": random,
        }

    def loader_state(self) -> dict[str, Any]:
        """The loader's state after the last batch drawn.

        It is empty at the beginning of an epoch, when asking the loader would open it and draw random numbers.
        """
        if self._loader_state is not None:
            return self._loader_state
        at_start = self.position % (self.steps_per_epoch * self.accumulation) == 0
        return {} if at_start else self._loader.state_dict()

    def adapter(self) -> dict[str, torch.Tensor]:
        """The adapter's parameters by torchtune's names, copied to the CPU."""
        tensors: dict[str, torch.Tensor] = compact(get_adapter_state_dict(self.model.state_dict()))
        return tensors

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume from a saved state. The trial may have more epochs than when it was saved, which extends it.

        Raises:
            ValueError: the state belongs to a trial with other shapes or another accumulation.
        """
        if state["accumulation"] != self.accumulation or state["position"] > self.total:
            raise ValueError(
                f"the checkpoint was saved at micro-batch {state['position']} with gradient_accumulation_steps="
                f"{state['accumulation']}, but this trial has {self.total} micro-batches with "
                f"gradient_accumulation_steps={self.accumulation}"
            )
        _, unexpected = self.model.load_state_dict(state["adapter"], strict=False)
        if unexpected:
            raise ValueError(f"the checkpoint has adapters that this model has not: {unexpected[:3]}")
        self.optimizer.load_state_dict(state["optimizer"])
        self._load_schedule(state["scheduler"], extended=state["total"] != self.total)
        if state["gradients"] is not None:
            for parameter, gradient in zip(self.trainable, state["gradients"], strict=True):
                parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self.position, self.step, self.tokens = state["position"], state["step"], state["tokens"]
        (step_loss, self._step_tokens), (interval_loss, self._interval_tokens) = state["step_loss"], state["lap_loss"]
        self._step_loss, self._interval_loss = step_loss.to(self.device), interval_loss.to(self.device)
        self._loader_state, self._random = state["loader"] or None, state["random"]

    def save_adapter(self, to: Path, adapter: dict[str, torch.Tensor] | None = None) -> bool:
        """Write the adapter; see `trainer.adapter_export.write_adapter`.

        Args:
            adapter: other tensors with the names and shapes of `adapter()`; None for the trial's own.

        Returns:
            False if torchtune has no PEFT format for this model.
        """
        return write_adapter(self.cfg, self.adapter() if adapter is None else adapter, self._scratch, to)

    def _restore_random(self) -> None:
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def _load_schedule(self, state: dict[str, Any], extended: bool) -> None:
        """Restore a saved schedule, with the functions of this trial's configuration instead of the file's."""
        functions = {key: value for key, value in self.scheduler.state_dict().items() if key == "lr_lambdas"}
        self.scheduler.load_state_dict({**state, **functions})
        if extended and functions:  # the saved rate is that of the shorter schedule's end
            for group, base, rate in zip(
                self.optimizer.param_groups, self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = base * rate(self.scheduler.last_epoch)

    def _micro_batch(self, batch: dict[str, torch.Tensor]) -> MicroBatch:
        count = self.label_tokens(batch)
        utils.batch_to_device(batch, self.device)
        weighted = self._loss(batch) * count
        due = self.advance(count)
        if count:  # the mean over no label is NaN, which torchtune logs; its gradient is zero
            torch.autograd.backward(weighted)
            self.add_loss(weighted.detach())
        return self.progress(self._optimizer_step() if due else None)

    def _optimizer_step(self) -> Step:
        training.scale_grads(self.model, 1 / torch.tensor(self._step_tokens))
        norm = nn.utils.get_total_norm([p.grad for p in self.trainable if p.grad is not None])
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(self.trainable, self.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.finish_step(float(norm), self.step_schedule())

    def _own_data_state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        # those of a checkpoint, until training continues
        return self.loader_state(), random_state() if self._random is None else self._random

    def _own_score(self, batch: dict[str, torch.Tensor], correct: bool) -> Scored:
        moved = {key: value.to(self.device) for key, value in batch.items()}
        labels, logits = self._labels_and_logits(moved)
        hits = _count_correct(labels, logits, self.ignored) if correct else torch.zeros(())
        return self._loss_of(labels, logits), hits

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._loss_of(*self._labels_and_logits(batch))

    def _labels_and_logits(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Any]:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        # shape [b, s]: the label of a position is the token that follows it
        labels = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=self.ignored)
        with self._offload:
            return labels, self.model(**inputs)

    def _loss_of(self, labels: torch.Tensor, logits: Any) -> torch.Tensor:
        if not isinstance(logits, list):
            labels, logits = labels.reshape(-1), logits.reshape(-1, logits.size(-1))
        loss: torch.Tensor = self.loss(logits, labels)
        return loss


def _count_correct(labels: torch.Tensor, logits: Any, ignored: int) -> torch.Tensor:
    """How many labels [b, s] are the likeliest token; a list of logits has chunks of the sequence, as torchtune's."""
    chunks = logits if isinstance(logits, list) else [logits]
    likeliest = torch.cat([chunk.argmax(dim=-1) for chunk in chunks], dim=1)
    return ((likeliest == labels) & (labels != ignored)).sum()


def _check_offloading(cfg: DictConfig, device: torch.device) -> None:
    """Refuse what torchtune's recipe refuses, so that an exported configuration is one that it takes.

    Raises:
        ValueError: activations are offloaded without a GPU, or without checkpointing.
    """
    if not cfg.get("enable_activation_offloading"):
        return
    if device.type != "cuda":
        raise ValueError(
            f"enable_activation_offloading=True needs device=cuda, and this is {device.type}; set it to False"
        )
    if not cfg.get("enable_activation_checkpointing"):
        raise ValueError(
            "enable_activation_offloading=True needs enable_activation_checkpointing=True; set both or none"
        )


def mark_stepped(optimizer: torch.optim.Optimizer) -> None:
    """Mark the optimizer as stepped, since the schedule warns otherwise: the pack steps without this object."""
    optimizer._opt_called = True  # type: ignore[attr-defined]
