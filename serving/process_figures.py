"""What the kernel says of this process."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path


def find_start_time_s() -> float:
    """Seconds since the epoch, from the kernel where it says so."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime_s + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.time()


def measure_resident_bytes() -> float:
    """Resident memory in bytes, NaN where the kernel does not say."""
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return math.nan
