"""A small sweep that W&B tracks, and the job of a Launch queue that trains its trials."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SPACE = (
    "space.optimizer.lr=choice(1e-3,2e-3)",
    "space.model.lora_rank=null",
    "space.gradient_accumulation_steps=null",
    "derive.lr_scheduler.num_warmup_steps=null",
)
SMALL = (
    "experiment=demo",
    "recipe.overrides.dataset.split=train[:64]",
    "recipe.overrides.dataset_val.split=train[:16]",
    "objective.milestone_tokens=240",
    "queue.threads=1",
    *SPACE,
    "trial.equal_data=false",
    "wandb.project=lab",
    "wandb.entity=team",
    "wandb.init={settings: {x_file_stream_transmit_interval: 1}}",
)


def make_job(place: Path, env: dict[str, str]) -> None:
    place.mkdir()
    (place / "requirements.txt").write_text("wandb\n")
    words = [
        "-e",
        "team",
        "-p",
        "lab",
        "-n",
        "sweep",
        "-E",
        "python -m trainer.entry.launch_job",
        "--runtime",
        "3.11",
        "code",
    ]
    made = [sys.executable, "-m", "wandb", "job", "create", *words, str(place)]
    subprocess.run(made, env=env, check=True, capture_output=True)
