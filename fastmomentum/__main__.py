"""Run the command ``fastmomentum`` as ``python -m fastmomentum``."""

import sys

from fastmomentum.cli import main

if __name__ == "__main__":
    sys.exit(main())
