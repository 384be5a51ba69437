"""What a piece of code costs, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_BEFORE = """
import gc
def read_status(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) * 1024
def begin():
    global start
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")  # the highest is what there is now
    start = read_status("VmRSS")
def end():
    global growth
    growth = read_status("VmHWM") - start
def tell(weight):
    print(growth, weight)
"""


def measure_growth(code: str) -> tuple[int, int]:
    """Runs code that calls `begin`, `end` and `tell`.

    Returns:
        How far resident memory rose between `begin` and `end`, in bytes, and what it told.
    """
    done = subprocess.run(
        [sys.executable, "-c", _BEFORE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    growth, told = map(int, done.stdout.split())
    return growth, told
