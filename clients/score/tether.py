"""A command that ends with whoever started it, however that ends: `tether.py FOLDER COMMAND...`.

Standard input is a pipe that the starter alone holds. Once it is closed, as it is by SIGKILL too,
the command is ended and FOLDER removed. A process of its own, since a thread in the command would
be in the way of its forks, and a death signal comes when the thread that started it ends.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading

_GRACE_S = 10.0


def main(folder: str, *command: str) -> int:
    """Runs the command; its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is the starter that ends
    is_alone = threading.Event()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def end_with_starter() -> None:
        sys.stdin.buffer.read()
        is_alone.set()
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()

    threading.Thread(target=end_with_starter, daemon=True).start()
    code = process.wait()
    if is_alone.is_set():  # else what the command left is read there
        shutil.rmtree(folder, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
