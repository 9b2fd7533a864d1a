"""`python -m attnfast.bench`: the same as `attnfast bench`."""

import sys

from attnfast.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
