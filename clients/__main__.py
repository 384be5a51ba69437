"""`python -m clients`, and the command `plumbline-clients`."""

import os
import sys

from contract.console.interrupts import run_main


def main() -> int:
    """Runs one command; see `clients.cli.main`."""
    # gRPC's C++ writes to stderr what our messages say better ("Got goaway ..."). It reads this
    # when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return run_main("clients.cli")


if __name__ == "__main__":
    sys.exit(main())
