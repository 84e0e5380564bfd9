"""Workers as jobs of a W&B Launch queue."""
