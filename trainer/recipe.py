"""The LoRA loop, from torchtune's own components, with the numbers of `tune run lora_finetune_single_device`.

Invariants: for the same resolved configuration the loss and grad_norm of every optimizer step are torchtune's;
what torchtune draws at random is drawn here in the same order, and validation draws nothing. No step starts that
the epoch cannot finish, so no micro-batch leaks into the next epoch. The loop knows no reporter, no file of a
room and no reason to stop: it yields after every micro-batch, where its state can be saved, and goes on when asked.

A trial is driven in one of two ways. Alone, by `train`. In a pack (see `trainer.packed.pack`) the forward and backward
passes are the pack's: it draws from `batches`, and tells the trial what came of it by `advance`,
`took` and `stepped`. All else,
the data's order, the schedule, the counters, the state, is the same object's, so that a trial moves between the two.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler
from torchtune import config, training, utils
from torchtune.modules.peft import get_adapter_state_dict, get_lora_module_names

from trainer.base import Cache, build_collate, build_dataset, build_model, build_tokenizer
from trainer.checkpoint import compact, random_state, set_random_state
from trainer.contract import Step
from trainer.progress import MicroBatch

for _noisy in ("torchtune", "torchtune.utils._logging", "torchao"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)


class LoraRecipe:
    """One trial in training.

    Args:
        cfg: a resolved torchtune configuration of a LoRA single-device recipe.
        cache: what the worker keeps between trials.
        scratch: a directory for files that torchtune insists on writing.

    Raises:
        ValueError: fp16, or a configuration that would train zero steps.
        FileNotFoundError: base, tokenizer or data are not where the configuration says.
    """

    def __init__(self, cfg: DictConfig, cache: Cache, scratch: Path) -> None:
        self.cfg, self._cache, self._scratch = cfg, cache, scratch
        self.device: torch.device = utils.get_device(device=cfg.device)
        if str(cfg.dtype) == "fp16":
            raise ValueError("dtype=fp16 is not supported by torchtune's LoRA recipe; use bf16 or fp32")
        dtype = training.get_dtype(cfg.dtype, device=self.device)
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
        self._loader = self._setup_data()
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
        self.scheduler = self._setup_scheduler(last_epoch=-1)

        clip = cfg.get("clip_grad_norm")
        self.clip = None if clip is None else float(clip)
        # a pack's, from `join` to `leave`; methods of this object's own would keep it, and its model, past its last use
        self._where: Callable[[], tuple[dict[str, Any], dict[str, Any]]] | None = None
        self._mean_loss: Callable[[dict[str, torch.Tensor]], torch.Tensor] | None = None
        self.position = 0
        self.step = 0
        self.tokens = 0
        self._none: torch.Tensor | float = torch.zeros((), device=self.device)  # of a loss; a number in a pack
        self._step_loss: torch.Tensor | float = self._none
        self._lap_loss: torch.Tensor | float = self._none
        self._step_tokens = self._lap_tokens = 0
        self._random: dict[str, Any] | None = None  # of a checkpoint, until training goes on
        self._loader_state: dict[str, Any] | None = None

    def train(self) -> Iterator[MicroBatch]:
        """Train from where the trial stands to its end, yielding after every micro-batch."""
        for batch in self.batches():
            yield self._micro_batch(batch)

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The trial's micro-batches from where it stands to its end, on the CPU; `advance` must follow each."""
        batches_per_epoch = self.steps_per_epoch * self.accumulation
        while self.position < self.total:
            epoch, skipped = divmod(self.position, batches_per_epoch)
            self._loader.sampler.set_epoch(epoch)
            if skipped and self._loader_state is not None:
                self._loader.load_state_dict(self._loader_state)
            else:
                self._restore_random()  # opening the loader of a new epoch draws, as it did in the first place
            self._loader_state = None
            for batch in self._loader:
                self._restore_random()  # within an epoch that draw had been made: undo it
                yield batch
                if self.position == (epoch + 1) * batches_per_epoch:
                    break

    def label_tokens(self, batch: dict[str, torch.Tensor]) -> int:
        """How many labels of a micro-batch count; asked while it is on the CPU, so that no device waits."""
        return int((batch["labels"] != self.ignored).sum())

    def advance(self, count: int) -> bool:
        """Count one micro-batch of so many label tokens; `took` may follow when its loss is known.

        Returns:
            Whether it completes an accumulation, so that an optimizer step is due.
        """
        self._step_tokens += count
        self._lap_tokens += count
        self.tokens += count
        self.position += 1
        return self.position % self.accumulation == 0

    def took(self, weighted: torch.Tensor | float) -> None:
        """Take a micro-batch's loss into account: nats, summed over its label tokens."""
        self._step_loss = self._step_loss + weighted
        self._lap_loss = self._lap_loss + weighted

    def reschedule(self) -> float:
        """Move the schedule on after an optimizer step; returns the rate that the step used."""
        lr = self.learning_rate
        self.scheduler.step()
        self.step += 1
        return lr

    def stepped(self, norm: float, lr: float) -> Step:
        """Take an optimizer step's loss into account, and begin the next accumulation."""
        loss = float(self._step_loss / self._step_tokens) if self._step_tokens else math.nan
        self._step_loss, self._step_tokens = self._none, 0
        return Step(self.step, self.tokens, loss, norm, lr)

    def progress(self, step: Step | None) -> MicroBatch:
        """Where the trial stands after its last micro-batch."""
        epoch = (self.position - 1) // (self.steps_per_epoch * self.accumulation)
        return MicroBatch(self.position, self.total, epoch, self.tokens, step)

    def join(
        self,
        where: Callable[[], tuple[dict[str, Any], dict[str, Any]]],
        mean_loss: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    ) -> None:
        """Become a slot of a pack.

        Args:
            where: the state of the loader and of the slot's generators, for a checkpoint.
            mean_loss: nats per label token of a batch on the CPU, by the pack's forward pass.
        """
        self._where, self._mean_loss = where, mean_loss
        self._none, self._step_loss, self._lap_loss = 0.0, float(self._step_loss), float(self._lap_loss)
        mark_stepped(self.optimizer)

    def leave(self) -> None:
        """Be no slot any more: recipe and slot know each other, and would live until a rare full collection."""
        self._where = self._mean_loss = None

    @property
    def ignored(self) -> int:
        """The label that counts for nothing."""
        return int(self.loss.ignore_index)

    @property
    def tokens_of_step(self) -> int:
        """Label tokens since the last optimizer step: what its gradients are divided by."""
        return self._step_tokens

    @property
    def learning_rate(self) -> float:
        """The rate that the next step will use."""
        return float(self.optimizer.param_groups[0]["lr"])

    def mean_loss(self) -> float:
        """Mean nats per label token since this was last asked; NaN where nothing was trained."""
        mean = float(self._lap_loss) / self._lap_tokens if self._lap_tokens else float("nan")
        self._lap_loss, self._lap_tokens = self._none, 0
        return mean

    @torch.no_grad()
    def evaluate(self) -> float | None:
        """Mean nats per label token over `dataset_val`, None where the configuration has none. Draws nothing random.

        Raises:
            ValueError: it has no label token, so that nothing can be judged.
        """
        dataset = self.cfg.get("dataset_val")
        if dataset is None:
            return None
        loss, _ = self.loss_over(self._validation_batches(dataset))
        if loss is None:
            raise ValueError(
                "dataset_val has no label token, so that there is no val_loss: name data with answers that "
                "tokenizer.max_seq_len leaves room for, or leave dataset_val out"
            )
        return loss

    @torch.no_grad()
    def loss_over(self, batches: Iterable[dict[str, torch.Tensor]]) -> tuple[float | None, int]:
        """Mean nats per label token over batches on the CPU, and how many label tokens they have; None without any."""
        total = torch.zeros((), dtype=torch.float64)
        tokens = 0
        mean_loss = self._mean_loss or self._own_mean_loss
        self.model.eval()
        for batch in batches:
            count = self.label_tokens(batch)
            if not count:
                continue  # a mean over nothing is NaN, and so would the whole be: prompts may fill all of a row
            total += mean_loss(batch).double().cpu() * count
            tokens += count
        self.model.train()
        return (float(total) / tokens if tokens else None), tokens

    def state(self) -> dict[str, Any]:
        """Everything that a bit-exact resume needs; tensors and plain values only."""
        loader, random = self._where() if self._where else self._own_where()
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
            "lap_loss": [torch.as_tensor(self._lap_loss).cpu(), self._lap_tokens],
            "random": random,
        }

    def loader_state(self) -> dict[str, Any]:
        """Where the data's order stands, after the last batch drawn; empty at an epoch's beginning, where asking the
        loader would open it, and draw."""
        if self._loader_state is not None:
            return self._loader_state
        at_start = self.position % (self.steps_per_epoch * self.accumulation) == 0
        return {} if at_start else self._loader.state_dict()

    def adapter(self) -> dict[str, torch.Tensor]:
        """The adapter's parameters by torchtune's names, as tensors of their own on the CPU."""
        found: dict[str, torch.Tensor] = compact(get_adapter_state_dict(self.model.state_dict()))
        return found

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state. More epochs than it was saved with are allowed: a finished trial is extended.

        Raises:
            ValueError: the state belongs to a trial with other shapes or another accumulation.
        """
        if state["accumulation"] != self.accumulation or state["position"] > self.total:
            raise ValueError(
                f"the checkpoint stands at micro-batch {state['position']} with accumulation {state['accumulation']}; "
                f"this trial has {self.total} micro-batches with accumulation {self.accumulation}"
            )
        _, unexpected = self.model.load_state_dict(state["adapter"], strict=False)
        if unexpected:
            raise ValueError(f"the checkpoint holds other adapters: {unexpected[:3]}")
        self.optimizer.load_state_dict(state["optimizer"])
        self._load_schedule(state["scheduler"], extended=state["total"] != self.total)
        if state["gradients"] is not None:
            for parameter, gradient in zip(self.trainable, state["gradients"], strict=True):
                parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self.position, self.step, self.tokens = state["position"], state["step"], state["tokens"]
        (step_loss, self._step_tokens), (lap_loss, self._lap_tokens) = state["step_loss"], state["lap_loss"]
        self._step_loss, self._lap_loss = step_loss.to(self.device), lap_loss.to(self.device)
        self._loader_state, self._random = state["loader"] or None, state["random"]

    def save_adapter(self, to: Path, adapter: dict[str, torch.Tensor] | None = None) -> bool:
        """Write the adapter in PEFT format, as torchtune's checkpointer makes it.

        Args:
            adapter: other tensors by the names and of the shapes of `adapter()`; None: those.

        Returns:
            False where torchtune has no PEFT form for this model; the directory then holds its own `.pt` form.
        """
        model = self.cfg.model
        names = get_lora_module_names(
            list(model.lora_attn_modules), model.apply_lora_to_mlp, model.get("apply_lora_to_output", False)
        )
        adapter_config: dict[str, Any] = {
            "r": model.lora_rank,
            "lora_alpha": model.lora_alpha,
            "target_modules": names,
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
        }
        adapter = self.adapter() if adapter is None else adapter
        if any("magnitude" in name for name in adapter):
            adapter_config["use_dora"] = True
        checkpointer = config.instantiate(OmegaConf.merge(self.cfg.checkpointer, {"output_dir": str(self._scratch)}))
        if getattr(checkpointer, "repo_id", "") is None:
            checkpointer.repo_id = str(Path(self.cfg.checkpointer.checkpoint_dir).resolve())
        state = {training.ADAPTER_KEY: adapter, training.ADAPTER_CONFIG: adapter_config}
        checkpointer.save_checkpoint(state, epoch=0, intermediate_checkpoint=False, adapter_only=True)
        return _collect_adapter(self._scratch, to)

    def _setup_data(self) -> StatefulDataLoader:
        dataset = build_dataset(self.cfg.dataset, self.cfg, self._cache, "dataset")
        tokenizer = build_tokenizer(self.cfg, self._cache)
        sampler = StatefulDistributedSampler(dataset, num_replicas=1, rank=0, shuffle=self.cfg.shuffle, seed=0)
        collate = build_collate(self.cfg, self.cfg.dataset, dataset, self.ignored, tokenizer)
        return StatefulDataLoader(
            dataset=dataset,
            batch_size=self.cfg.batch_size,
            sampler=sampler,
            collate_fn=collate,
            drop_last=True,
        )

    def _setup_scheduler(self, last_epoch: int) -> Any:
        steps = self.epochs * self.steps_per_epoch
        return config.instantiate(
            self.cfg.lr_scheduler, self.optimizer, num_training_steps=steps, last_epoch=last_epoch
        )

    def _restore_random(self) -> None:
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def _load_schedule(self, state: dict[str, Any], extended: bool) -> None:
        """Take a saved schedule over. Its functions come from this trial's configuration, not from the file."""
        functions = {key: value for key, value in self.scheduler.state_dict().items() if key == "lr_lambdas"}
        self.scheduler.load_state_dict({**state, **functions})
        if extended and functions:  # the saved rate belongs to the shorter schedule's end
            for group, base, rate in zip(
                self.optimizer.param_groups, self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = base * rate(self.scheduler.last_epoch)

    def _micro_batch(self, batch: dict[str, torch.Tensor]) -> MicroBatch:
        count = self.label_tokens(batch)
        utils.batch_to_device(batch, self.device)
        weighted = self._loss(batch) * count
        torch.autograd.backward(weighted)
        due = self.advance(count)
        self.took(weighted.detach())
        return self.progress(self._optimizer_step() if due else None)

    def _optimizer_step(self) -> Step:
        training.scale_grads(self.model, 1 / torch.tensor(self._step_tokens))
        norm = nn.utils.get_total_norm([p.grad for p in self.trainable if p.grad is not None])
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(self.trainable, self.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.stepped(float(norm), self.reschedule())

    def _own_where(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.loader_state(), random_state()

    def _own_mean_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._loss({key: value.to(self.device) for key, value in batch.items()})

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ignored = self.ignored
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        # shape [b, s]: the label of a position is the token that follows it
        labels = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=ignored)
        with self._offload:
            logits = self.model(**inputs)
        if not isinstance(logits, list):
            labels, logits = labels.reshape(-1), logits.reshape(-1, logits.size(-1))
        loss: torch.Tensor = self.loss(logits, labels)
        return loss

    def _validation_batches(self, dataset: Any) -> list[dict[str, torch.Tensor]]:
        cfg = self.cfg
        size = int(cfg.get("batch_size_val") or cfg.batch_size)

        def make() -> list[dict[str, torch.Tensor]]:
            data = build_dataset(dataset, cfg, self._cache, "dataset_val")
            tokenizer = build_tokenizer(cfg, self._cache)
            collate = build_collate(cfg, dataset, data, self.ignored, tokenizer)
            rows = [data[index] for index in range(len(data))]
            return [collate(rows[start : start + size]) for start in range(0, len(rows), size)]

        return self._cache.get("validation", [cfg.tokenizer, dataset, size, cfg.get("collate_fn")], make)


def mark_stepped(optimizer: torch.optim.Optimizer) -> None:
    """Tell the schedule, which would warn, that steps are taken: by the pack, without this object."""
    optimizer._opt_called = True  # type: ignore[attr-defined]


def _collect_adapter(scratch: Path, to: Path) -> bool:
    """Move the adapter's files out of torchtune's output and drop the rest, its copies of the base's files included."""
    to.mkdir(parents=True, exist_ok=True)
    source = scratch / "epoch_0"
    peft = (source / "adapter_model.safetensors").exists() and (source / "adapter_config.json").exists()
    for name in ("adapter_model.safetensors", "adapter_config.json") if peft else ("adapter_model.pt",):
        shutil.move(source / name, to / name)
    shutil.rmtree(source)
    return peft
