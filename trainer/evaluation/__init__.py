"""What judges a finished adapter in the place of training."""
