"""A sweep in W&B: its runs, and what is uploaded later."""
