"""The fixtures of the stand-in, for its own tests."""

from tests.standin.plugin import standin, wandb_here

__all__ = ["standin", "wandb_here"]
