"""``python -m cifarlib``: the same as the command ``cifarlib``."""

import sys

from cifarlib.cli import main

if __name__ == "__main__":
    sys.exit(main())
