"""One parser, in a process of its own: NAME FOLDER, then flags of libFuzzer."""

from __future__ import annotations

import sys

import atheris

from benchmarks.fuzz.targets import TARGETS


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    name, folder, *flags = sys.argv[1:]
    target = TARGETS[name]
    with atheris.instrument_imports(include=list(target.modules)):
        feed = target.make()
    atheris.Setup([sys.argv[0], *flags, folder], feed)
    atheris.Fuzz()


main()
