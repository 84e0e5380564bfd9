"""`python -m sweep.cli`: the command line, for processes that have no script `sweep` on their path."""

import sys

from sweep.cli.main import main

sys.exit(main())
