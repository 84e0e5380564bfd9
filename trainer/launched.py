"""Job artifacts and images of version 0.1 start this module by name; it goes with version 0.3."""

from trainer.entry.launch_job import *  # noqa: F403
