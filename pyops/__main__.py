"""`python -m pyops`: the command line of `pyops.cli`."""

import sys

from pyops.cli import main

sys.exit(main())
