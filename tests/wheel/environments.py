"""Environments that hold a wheel, one extra, and nothing else.

What the extra brings is linked from the environment of this process, package by package along the
metadata that the wheel itself carries: nothing is downloaded, the versions are the tested ones, and
what no requirement asks for is truly absent.

    python -m tests.wheel.environments FOLDER WHEEL EXTRA,EXTRA [PACKAGE...]

makes one, with packages beside, for `make test-clients`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.message import Message
from email.parser import Parser
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

NAME = "plumbline-tf"
TIMEOUT_S = 280
_POLL_S = 0.02


def read_metadata(wheel: Path) -> Message:
    """The METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def list_requirements(
    wheel: Path, extras: Sequence[str], beside: Sequence[str] = ()
) -> dict[str, Distribution]:
    """What an installer would install with the wheel, by name, as it is installed here."""
    found: dict[str, Distribution] = {}
    done: set[tuple[str, str]] = set()
    lines = read_metadata(wheel).get_all("Requires-Dist", [])
    left = [(Requirement(line), extra) for line in lines for extra in ("", *extras)]
    left += [(Requirement(name), "") for name in beside]
    while left:
        requirement, extra = left.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name == NAME:  # [all] is made of the others
            left += [(Requirement(line), one) for line in lines for one in requirement.extras]
            continue
        installed = distribution(requirement.name)
        assert requirement.specifier.contains(installed.version, prereleases=True), requirement
        found[requirement.name.lower().replace("_", "-")] = installed
        for one in ("", *requirement.extras):
            if (requirement.name, one) not in done:
                done.add((requirement.name, one))
                left += [(Requirement(line), one) for line in installed.requires or []]
    return found


class Environment:
    """A Python with the wheel, and what some extras bring.

    Args:
        folder: Where it is made.
        wheel: Of ours.
        extras: Of it.
        beside: Packages that nothing of it asks for.

    Attributes:
        python: Its interpreter.
        bin: Where the commands are.
    """

    def __init__(
        self, folder: Path, wheel: Path, extras: Sequence[str], beside: Sequence[str] = ()
    ) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.bin = folder / "bin"
        self.python = self.bin / "python"
        (packages,) = (folder / "lib").glob("python*/site-packages")
        for installed in list_requirements(wheel, extras, beside).values():
            _link(installed, packages)
        self._uv("install", "--offline", "--no-deps", str(wheel))
        self._uv("check")

    def _uv(self, verb: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "uv", "pip", verb, "--python", str(self.python)]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def run(
        self, command: str, *arguments: str | Path, cwd: Path, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Runs `plumbline-clients` and the like, with nothing of this process's own paths."""
        return subprocess.run(
            [self.bin / command, *map(str, arguments)],
            cwd=cwd,
            env=self.variables(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def finds(self, module: str, cwd: Path) -> bool:
        """Whether a module is there."""
        code = f"import importlib.util, sys; sys.exit(not importlib.util.find_spec({module!r}))"
        return self.run("python", "-c", code, cwd=cwd).returncode == 0

    @contextmanager
    def serve(
        self,
        base_path: Path,
        cwd: Path,
        *more: str,
        environment: Mapping[str, str] | None = None,
    ) -> Iterator[dict[str, int]]:
        """Serves a model as `mlp`, with `more` flags; gives its `grpc_port` and `rest_port`."""
        port_file = cwd / f"ports-{time.monotonic_ns()}.json"
        flags = ["--port=-1", "--rest_api_port=-1", f"--port_file={port_file}", "--model_name=mlp"]
        flags += [f"--model_base_path={base_path}", *more]
        with (cwd / "server.log").open("w+") as log:
            process = subprocess.Popen(
                [self.bin / "plumbline-serving", "embedded", *flags],
                cwd=cwd,
                env=self.variables() | (environment or {}),
                stderr=log,
            )
            try:
                while not port_file.exists():
                    assert process.poll() is None, Path(log.name).read_text()
                    time.sleep(_POLL_S)
                yield json.loads(port_file.read_text())
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(TIMEOUT_S)

    def variables(self) -> dict[str, str]:
        """Those of this process, without what leads back to the checkout."""
        kept = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        return kept | {"PYTHONPATH": "", "PATH": f"{self.bin}:/usr/bin:/bin"}


def _link(installed: Distribution, packages: Path) -> None:
    """Puts a distribution's files into another environment, without a copy where it can be."""
    for file in installed.files or []:
        if ".." in file.parts:  # scripts, which name the interpreter of this environment
            continue
        source, target = Path(str(installed.locate_file(file))), packages / file
        if not source.is_file():  # bytecode that was never made
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(source)
        except FileExistsError:  # of two that share a file
            pass
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.copy2(source, target)


if __name__ == "__main__":
    made_in, given, wanted, *packages = sys.argv[1:]
    Environment(Path(made_in), Path(given), wanted.split(","), packages)
