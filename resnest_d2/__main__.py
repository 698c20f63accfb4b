"""``python -m resnest_d2 <command>``."""

import sys

from resnest_d2_cli import main

if __name__ == "__main__":
    sys.exit(main())
