"""`python -m exporter`, and the command `plumbline-exporter`."""

import sys

from contract.console.interrupts import run_main


def main() -> int:
    """Runs one command; see `exporter.cli.main`."""
    return run_main("exporter.cli")


if __name__ == "__main__":
    sys.exit(main())
