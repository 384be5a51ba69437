"""How much memory there is: cgroups of both versions, nested or not, and the machine."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import logging
from pathlib import Path

import pytest

from serving.config import memory
from serving.config.flags import ServerFlags
from serving.config.memory import choose_max_bytes_in_flight, find_memory_limit

GIBIBYTE = 2**30
V1_MOUNT = "31 23 0:28 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
V1_OTHER = "32 23 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
V2_MOUNT = "41 31 0:38 {root} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw"


def make_system(
    root: Path, cgroup: str, mounts: str, files: dict[str, str], *, machine_kib: int = 8 * 2**20
) -> Path:
    """A root with `proc` and `sys` as the kernel shows them."""
    shown = {
        "proc/meminfo": f"MemTotal:       {machine_kib} kB\nMemFree: 1 kB\n",
        "proc/self/cgroup": cgroup,
        "proc/self/mountinfo": mounts,
        **files,
    }
    for name, text in shown.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_a_limit_the_machine_is_it(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/a/memory.max": "max\n"}
    root = make_system(tmp_path, "0::/a\n", V2_MOUNT.format(root="/"), files)
    assert find_memory_limit(root) == 8 * GIBIBYTE


def test_version_2_counts_with_every_group_above(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/a/memory.max": f"{2 * GIBIBYTE}\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/b/c/memory.max": f"{3 * GIBIBYTE}\n",
    }
    root = make_system(tmp_path, "0::/a/b/c\n", V2_MOUNT.format(root="/"), files)
    assert find_memory_limit(root) == 2 * GIBIBYTE


def test_version_2_counts_where_the_kernel_begins_to_throttle(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/a/memory.max": f"{2 * GIBIBYTE}\n",
        "sys/fs/cgroup/a/memory.high": f"{GIBIBYTE}\n",
    }
    root = make_system(tmp_path, "0::/a\n", V2_MOUNT.format(root="/"), files)
    assert find_memory_limit(root) == GIBIBYTE


def test_version_1_counts_too(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{GIBIBYTE}\n",
        "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu/a/b/memory.limit_in_bytes": "1\n",
    }
    cgroup = "5:cpu,cpuacct:/a/b\n4:memory:/a/b\n0::/\n"
    mounts = f"{V1_OTHER}\n{V1_MOUNT.format(root='/')}\n"
    assert find_memory_limit(make_system(tmp_path, cgroup, mounts, files)) == GIBIBYTE


@pytest.mark.parametrize("group", ["/docker/0123", "/docker/0123/below", "/", "/../elsewhere"])
def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path, group: str) -> None:
    mounts = V1_MOUNT.format(root="/docker/0123")
    files = {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIBIBYTE}\n"}
    root = make_system(tmp_path, f"4:memory:{group}\n", mounts, files)
    assert find_memory_limit(root) == GIBIBYTE


def test_a_system_that_says_nothing_has_no_limit(tmp_path: Path) -> None:
    assert find_memory_limit(tmp_path) == 2**63 - 1


def test_this_machine_has_some() -> None:
    assert 100 * 2**20 < find_memory_limit() < 2**50


def test_the_flag_wins() -> None:
    assert choose_max_bytes_in_flight(ServerFlags(max_bytes_in_flight=123), GIBIBYTE) == 123


def test_the_share_is_what_processes_leave_divided_by_their_number() -> None:
    for workers in (1, 2, 4):
        flags = ServerFlags(workers=workers, engine="litert")
        share = choose_max_bytes_in_flight(flags, 4 * GIBIBYTE)
        needed = workers * memory.PROCESS_BYTES + memory.BESIDE_BYTES
        assert (
            workers * share <= memory.CALLS_SHARE * (4 * GIBIBYTE - needed) < workers * (share + 1)
        )


def test_where_tensorflow_may_be_loaded_it_has_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(is_there: bool, name: str) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, None) if is_there else None

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find_spec(False, name))
    without = choose_max_bytes_in_flight(ServerFlags(), 4 * GIBIBYTE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find_spec(True, name))
    assert choose_max_bytes_in_flight(ServerFlags(), 4 * GIBIBYTE) < without
    assert choose_max_bytes_in_flight(ServerFlags(engine="litert"), 4 * GIBIBYTE) == without


def test_too_little_is_told_and_served_with(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        share = choose_max_bytes_in_flight(ServerFlags(engine="litert"), 64 * 2**20)
    assert share == memory.LEAST_BYTES
    assert "64 MiB of memory are little" in caplog.text
