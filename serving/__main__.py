"""`python -m serving VERB`, and the command `plumbline-serving`."""

import sys

from contract.console.interrupts import run_main


def main() -> int:
    """Runs one verb; see `serving.cli.main`."""
    return run_main("serving.cli")


if __name__ == "__main__":
    sys.exit(main())
