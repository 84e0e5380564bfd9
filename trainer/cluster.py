"""Jobs that version 0.1 submitted are pickled by the names in this module; it goes with version 0.3."""

from trainer.entry.slurm_job import check, serve

__all__ = ["check", "serve"]
