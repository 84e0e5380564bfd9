"""A trial's run in W&B."""
