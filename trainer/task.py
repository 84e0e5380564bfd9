"""An attempt that a scheduler was given, and what of its specification decides whether it may share a pack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.attempt import Attempt
from trainer.contract import Outcome, TrialSpec
from trainer.environment import reveal

# LoRA hyperparameters that may differ within a pack; everything else of the model must be equal.
FREE_KEYS = ("lora_rank", "lora_alpha", "lora_dropout")


@dataclass(slots=True, eq=False)
class Task:
    """An attempt that was given to the scheduler.

    Args:
        make: makes an `Attempt`; called again if memory ran out while the last one was built.
        end: called once, with the outcome.
    """

    spec: TrialSpec
    make: Callable[[], Attempt]
    end: Callable[[Outcome], None]
    _attempt: Attempt | None = None

    @property
    def attempt(self) -> Attempt:
        """The attempt, made at the first use."""
        if self._attempt is None:
            self._attempt = self.make()
        return self._attempt

    def reset(self) -> None:
        """Drop the attempt, so that the next use makes another one."""
        self._attempt = None

    @property
    def size(self) -> tuple[int, int]:
        """The rank of its adapter, and the rows of its micro-batches."""
        try:
            config: Any = reveal(self.spec.config)
            return int(config["model"]["lora_rank"]), int(config["batch_size"])
        except (KeyError, TypeError, ValueError):  # the attempt says what is wrong when it begins
            return 1, 1

    @property
    def base(self) -> object:
        """Equal for trials that may share a pack."""
        cfg = self.spec.config
        model = {key: value for key, value in cfg["model"].items() if key not in FREE_KEYS}
        files = {key: value for key, value in cfg["checkpointer"].items() if key not in ("output_dir",)}
        return repr((model, files, cfg.get("device"), cfg.get("dtype")))
