"""Prints the part of requirements.lock, hashes and all, that an image needs.

    python3 locked.py [--extra EXTRA]... [PACKAGE...]

With an extra: the base dependencies, those of the extras, and the PACKAGEs; without one the
PACKAGEs alone; and everything that they need, which the lock's `# via` lines tell.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path


def list_direct(extras: list[str], packages: list[str], folder: Path = Path()) -> list[str]:
    """The requirements that are asked for, as the folder's pyproject.toml writes them."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    wanted = [one for extra in extras for one in project["optional-dependencies"][extra]]
    return [*(project["dependencies"] if extras else ()), *wanted, *packages]


def select_entries(lock: str, requirements: Iterable[str]) -> list[str]:
    """The lock's entries for the requirements and for all that they need."""
    entries: dict[str, str] = {}
    for entry in re.split(r"^(?=\w)", lock, flags=re.M)[1:]:
        # A package may have several, for one Python or system each: pip chooses.
        entries[normalise(entry)] = entries.get(normalise(entry), "") + entry
    needs: dict[str, list[str]] = {}
    for name, entry in entries.items():
        for parent in re.findall(r"^    #(?: via|  ) +([\w.-]+)", entry, re.M):
            needs.setdefault(normalise(parent), []).append(name)
    found: set[str] = set()
    todo = [normalise(one) for one in requirements]
    while todo:
        name = todo.pop()
        if name not in entries:
            raise SystemExit(f"requirements.lock has no {name}; resolve it again with `make lock`")
        if name not in found:
            found.add(name)
            todo += needs.get(name, ())
    return [entries[name] for name in sorted(found)]


def normalise(requirement: str) -> str:
    """A requirement's package, as all spellings of its name are one."""
    name = re.match(r"[\w.-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def main() -> None:
    """Reads pyproject.toml and requirements.lock of the working directory."""
    parser = argparse.ArgumentParser(description="Print a part of requirements.lock.")
    parser.add_argument("--extra", action="append", default=[])
    parser.add_argument("packages", nargs="*")
    given = parser.parse_args()
    lock = Path("requirements.lock").read_text()
    sys.stdout.writelines(select_entries(lock, list_direct(given.extra, given.packages)))


if __name__ == "__main__":
    main()
