"""Controllers' jobs that version 0.1 submitted are pickled by the name in this module; it goes with version 0.3."""

from sweep.cli.background import control

__all__ = ["control"]
