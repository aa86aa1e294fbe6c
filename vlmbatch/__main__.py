"""``python -m vlmbatch``."""

import sys

from vlmbatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
