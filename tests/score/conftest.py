"""Versions to score with, and the command from the rows of a test to its `out`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.grpc_servers import ModelServer
from tests.score import jobs
from tests.score.jobs import Score, make_table_version, serve_answers


@pytest.fixture(scope="session")
def digits(published_mlp: Path) -> Path:
    """A version of pictures of digits."""
    return published_mlp / "mlp" / "1"


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version of a table, that answers with the three numbers that it is given."""
    return make_table_version(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="session")
def version(digits: Path) -> Path:
    """What `score` and `server` answer with; files of tests may take another."""
    return digits


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """What `score` reads; files of tests may put the same rows there for all of theirs."""
    return tmp_path / "in"


@pytest.fixture
def score(rows: Path, tmp_path: Path, version: Path) -> Score:
    """Runs the command; its exit code."""

    def run(*arguments: str, source: object = rows, out: object = tmp_path / "out") -> int:
        return jobs.score(source, out, version, *arguments)

    return run


@pytest.fixture
def server(version: Path) -> Iterator[ModelServer]:
    """A server that answers as `version` does."""
    with serve_answers(version) as server:
        yield server
