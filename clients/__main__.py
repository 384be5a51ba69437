"""`python -m clients`."""

import sys

if __name__ == "__main__":
    try:
        from clients.cli import main

        sys.exit(main())
    except KeyboardInterrupt:  # before or after a command: nothing was begun or is left to keep
        sys.exit(130)
