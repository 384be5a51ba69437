"""TensorFlow Serving's recorded answers, asked of every server there is.

The servers: the embedded one, and a tensorflow_model_server on PATH or named by
$TENSORFLOW_MODEL_SERVER. Deliberate differences are declared in docs/protocol.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.conformance.recordings import (
    Addresses,
    Case,
    find_problem,
    read_cases,
    read_differences,
)
from tests.conformance.servers import (
    find_model_server,
    list_flags,
    start_server,
    write_config_files,
)

CASES = read_cases()
MODELS = {"single": ("affine",)}
KINDS = ["embedded", *(["tensorflow_model_server"] if find_model_server() else [])]

Start = Callable[[str, str], Addresses]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts a server for a recorded session; each once."""
    folder = tmp_path_factory.mktemp("conformance")
    write_config_files(folder)
    running: dict[tuple[str, str], Addresses] = {}
    with contextlib.ExitStack() as stack:

        def start_once(kind: str, session: str) -> Addresses:
            if (kind, session) not in running:
                running[kind, session] = stack.enter_context(
                    start_server(
                        kind,
                        list_flags(session, folder),
                        folder / f"{kind}-{session}",
                        models=MODELS.get(session, ("affine", "mixed", "dense")),
                    )
                )
            return running[kind, session]

        yield start_once


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.session}-{case.id}")
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_answers_come_again(kind: str, case: Case, start: Start) -> None:
    problem = find_problem(case, start(kind, case.session))
    if kind == "embedded" and case.id in read_differences():
        assert problem, f"docs/protocol.md declares {case.id} to differ, and it does not"
    else:
        assert not problem


@pytest.mark.parametrize(
    "case_id", [one.case_id for one in read_differences().values() if one.is_off_when_strict]
)
def test_strict_compat_turns_deliberate_differences_off(case_id: str, start: Start) -> None:
    case = next(case for case in CASES if case.id == case_id)
    assert not find_problem(case, start("strict", case.session))


def test_declared_differences_are_recorded_cases() -> None:
    assert set(read_differences()) <= {case.id for case in CASES}


def test_at_least_ninety_five_of_a_hundred_texts_are_exact() -> None:
    assert len(read_differences()) <= 0.05 * len(CASES)
