"""Job artifacts and images of version 0.1 start this module by name; it goes with version 0.3."""

import sys

from trainer.entry.launch_job import main

if __name__ == "__main__":
    sys.exit(main())
