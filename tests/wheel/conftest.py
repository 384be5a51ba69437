"""The wheel and the sdist of `make dist`, installed away from the checkout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.wheel.environments import Environment

Install = Callable[..., Environment]
"""An environment, given its extras."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them want `make dist`."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("dist")


def find_built(pattern: str) -> Path:
    """What `make dist` left there."""
    found = list((ROOT / "dist").glob(pattern))
    assert len(found) == 1, "build them first: make dist"
    return found[0]


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The wheel."""
    return find_built("*.whl")


@pytest.fixture(scope="session")
def sdist() -> Path:
    """The sdist."""
    return find_built("*.tar.gz")


@pytest.fixture(scope="session")
def install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Makes an environment per set of extras, once."""
    made: dict[tuple[str, ...], Environment] = {}

    def make(*extras: str) -> Environment:
        if extras not in made:
            folder = tmp_path_factory.mktemp("-".join(("env", *extras)))
            made[extras] = Environment(folder, wheel, extras)
        return made[extras]

    return make


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, with nothing of the checkout."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def base_path(install: Install, home: Path) -> Path:
    """Of a version that an installed exporter made."""
    done = install("tensorflow").run(
        *("plumbline-exporter", "export", "--config", "mlp", "--set", "training.epochs=12"),
        cwd=home,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "models" / "mlp"


@pytest.fixture(scope="session")
def server(install: Install, base_path: Path, home: Path) -> Iterator[dict[str, int]]:
    """The ports of an installed server, which serves that version on LiteRT alone."""
    with install("serving").serve(base_path, home) as ports:
        yield ports
