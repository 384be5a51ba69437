"""TensorFlow Serving's recorded answers, asked of servers in containers.

The images: Plumbline's own with TensorFlow, and tensorflow/serving where it is on this machine.
"""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from serving.container.engine import find_engine, find_image, name_default_image
from tests.conformance.recordings import Addresses, Case, find_problem, read_cases, read_differences
from tests.conformance.servers import list_flags, wait_for_states, write_config_files
from tests.container.conftest import TENSORFLOW_IMAGE
from tests.container.processes import ContainerProcess

pytestmark = pytest.mark.container

RECORDED_IMAGE = "tensorflow/serving:2.20.0"
"""Whose answers the recordings are."""

METRICS_OFF = "single_metrics_off"
"""Recorded as 404, since that server ran without a monitoring config. `serving container` gives
every stock image one (serving/container/plan.py), so there the path answers with the metrics."""

Start = Callable[[str], Addresses]


@pytest.fixture(scope="module", params=[TENSORFLOW_IMAGE, name_default_image(), RECORDED_IMAGE])
def image(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name != TENSORFLOW_IMAGE and not find_image(find_engine(), name):
        pytest.skip(f"{name} is not on this machine")
    return name


@pytest.fixture(scope="module")
def start(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts a server for a recorded session; each once."""
    folder = tmp_path_factory.mktemp("conformance")
    write_config_files(folder)
    running: dict[str, Addresses] = {}
    with contextlib.ExitStack() as stack:

        def start_once(session: str) -> Addresses:
            if session not in running:
                flags = [f"--image={image}", "--rest_api_port=-1", *list_flags(session, folder)]
                process = stack.enter_context(ContainerProcess(folder, *flags))
                ports = process.wait_until_serving().addresses
                addresses = Addresses(ports["grpc_port"], ports["rest_port"])
                # It serves once each model has a version; the recorded server had all of them.
                versions = [3] if session == "single" else [3, 2, 1]
                wait_for_states(addresses, "affine", dict.fromkeys(versions, "AVAILABLE").__eq__)
                running[session] = addresses
            return running[session]

        yield start_once


@pytest.mark.parametrize("case", read_cases(), ids=lambda case: f"{case.session}-{case.id}")
def test_recorded_answers_come_out_of_a_container(case: Case, image: str, start: Start) -> None:
    problem = find_problem(case, start(case.session))
    if image == TENSORFLOW_IMAGE and case.id in read_differences():
        assert problem, f"docs/protocol.md declares {case.id} to differ, and it does not"
    elif image != TENSORFLOW_IMAGE and case.id == METRICS_OFF:
        assert problem.startswith("status 200 ")
    else:
        assert not problem
