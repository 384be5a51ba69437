"""`python -m clients`, and the command `plumbline-clients`."""

import os
import sys

from contract.console.exits import ExitCode


def main() -> int:
    """Runs one command; see `clients.cli.main`."""
    # gRPC's C++ writes to stderr what our messages say better ("Got goaway ..."). It reads this
    # when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from clients.cli import main as run_command

        return run_command()
    except KeyboardInterrupt:  # before or after a command: nothing was begun or is left to keep
        return ExitCode.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
