"""`python -m sweep.cli`: the command line, where the script `sweep` is not on the path."""

import sys

from sweep.cli.main import main

sys.exit(main())
