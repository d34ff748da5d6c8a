"""``python -m fastmomentum`` is the command ``fastmomentum``."""

import sys

from fastmomentum.cli import main

if __name__ == "__main__":
    sys.exit(main())
