"""`python -m worldsim`: the command line."""

import sys

from worldsim.cli import main

if __name__ == "__main__":
    sys.exit(main())
