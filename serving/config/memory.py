"""How much memory a process may use, by its cgroups and its machine, and the share for calls."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from serving.config.flags import MEBIBYTE, ServerFlags

PROCESS_BYTES = 128 * MEBIBYTE
"""What a process needs for itself with LiteRT and small models: 90 MiB measured, and a margin."""

BESIDE_BYTES = 64 * MEBIBYTE
"""What stands beside the workers: the supervisor, and where a version is loaded first."""

TENSORFLOW_BYTES = 640 * MEBIBYTE
"""What TensorFlow takes in each process that it is loaded in."""

CALLS_SHARE = 0.75
"""The share for calls of what is left: the rest is for what they are not charged for, which is
the room that a run takes, what allocators keep, and files in memory."""

LEAST_BYTES = 16 * MEBIBYTE
"""What calls may hold however little there is."""

_LIMIT_FILES = {
    "cgroup2": ("memory.max", "memory.high"),
    "cgroup": ("memory.limit_in_bytes",),
}
_LEAST_LIMIT = MEBIBYTE
logger = logging.getLogger(__name__)


def find_memory_limit(root: Path = Path("/")) -> int:
    """The bytes that this process and those of its container may use together.

    The least of what the machine has and what any cgroup above the process allows, of version 1
    or 2 (Linux, admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst).

    Args:
        root: Where `proc` and `sys` are.

    Returns:
        2^63-1 where the system does not say.
    """
    limits = [2**63 - 1, *_read_machine(root), *_read_cgroups(root)]
    return min(limit for limit in limits if limit >= _LEAST_LIMIT)


def choose_max_bytes_in_flight(flags: ServerFlags, limit: int) -> int:
    """What the calls of one process may hold: --max_bytes_in_flight, or a share of `limit`.

    Args:
        flags: Of the server.
        limit: What all processes may use, in bytes; see `find_memory_limit`.
    """
    if flags.max_bytes_in_flight:
        return flags.max_bytes_in_flight
    needed = flags.workers * PROCESS_BYTES + BESIDE_BYTES
    if flags.engine != "litert" and importlib.util.find_spec("tensorflow") is not None:
        needed += flags.workers * TENSORFLOW_BYTES
    share = int(CALLS_SHARE * (limit - needed)) // flags.workers
    if share < LEAST_BYTES:
        logger.warning(
            "%d MiB of memory are little: the server alone takes up to %d; calls may hold %d MiB "
            "(--max_bytes_in_flight)",
            limit // MEBIBYTE,
            needed // MEBIBYTE,
            LEAST_BYTES // MEBIBYTE,
        )
        return LEAST_BYTES
    return share


def _read_machine(root: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                yield int(line.split()[1]) * 1024


def _read_cgroups(root: Path) -> Iterator[int]:
    """Every limit from the process's cgroup up to where its hierarchy is mounted."""
    with contextlib.suppress(OSError, ValueError):
        for kind, folder, top in _list_cgroups(root):
            while True:
                for name in _LIMIT_FILES[kind]:
                    with contextlib.suppress(OSError, ValueError):  # the root has none; `max`
                        yield int((folder / name).read_text())
                if folder == top:
                    break
                folder = folder.parent


def _list_cgroups(root: Path) -> Iterator[tuple[str, Path, Path]]:
    """Kind, the folder of the process's cgroup and the one of the mounted hierarchy."""
    paths = {}
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind not in paths or (kind == "cgroup" and "memory" not in options.split(" ")[-1]):
            continue
        mounted, point = before.split(" ")[3:5]
        top = root / point.lstrip("/")
        # A container may see its own cgroup as the root, or a path outside of what it mounts.
        group = PurePosixPath(paths[kind])
        is_inside = group.is_relative_to(mounted) and ".." not in group.parts
        yield kind, top / group.relative_to(mounted) if is_inside else top, top
