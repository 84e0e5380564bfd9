"""One folder a queue: how its workers are started and ended, and how it is checked. None imports another."""
