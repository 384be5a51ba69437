"""A real engine, and images made on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.container.engine import ContainerEngine, find_engine, find_image
from tests.container import images_for_tests as images
from tests.container.images_for_tests import make_image
from tests.container.processes import ContainerProcess

IMAGE = os.environ.get("PLUMBLINE_IMAGE", "plumbline:embedded")
TENSORFLOW_IMAGE = os.environ.get("PLUMBLINE_TENSORFLOW_IMAGE", "plumbline:tensorflow")


@pytest.fixture(scope="session")
def engine() -> Iterator[ContainerEngine]:
    """Docker or podman. Without one these tests fail: whoever asks for them wants them run."""
    found = find_engine()
    yield found
    listed = found.call("images", f"--filter=reference={images.REPOSITORY}*", "--quiet")
    if listed.stdout.split():
        found.call("rmi", "--force", *set(listed.stdout.split()))


@pytest.fixture(scope="session")
def embedded_image(engine: ContainerEngine) -> str:
    """The image of the embedded server; `make image` builds it."""
    assert find_image(engine, IMAGE), f"{IMAGE} is not here: make image"
    return IMAGE


@pytest.fixture(scope="session")
def stand_in(
    engine: ContainerEngine, embedded_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """Makes an image that Plumbline takes for tensorflow/serving, running a script."""

    def make(script: str) -> str:
        return make_image(engine, embedded_image, script, tmp_path_factory.mktemp("image"))

    return make


@pytest.fixture(scope="session")
def mlp_base_path(published_mlp: Path) -> Path:
    """Base path of the published MLP."""
    return published_mlp / "mlp"


@pytest.fixture
def flags(mlp_base_path: Path) -> list[str]:
    """Of a server of the published MLP."""
    return ["--model_name=mlp", f"--model_base_path={mlp_base_path}"]


@pytest.fixture(scope="session")
def server(
    embedded_image: str, mlp_base_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ContainerProcess]:
    """The embedded server in a container, shared by tests that leave it as it is."""
    arguments = ["--model_name=mlp", f"--model_base_path={mlp_base_path}", "--rest_api_port=-1"]
    folder = tmp_path_factory.mktemp("server")
    with ContainerProcess(folder, f"--image={embedded_image}", *arguments) as process:
        yield process.wait_until_serving()


@pytest.fixture
def stock(stand_in: Callable[[str], str]) -> str:
    """An image that behaves as tensorflow/serving."""
    return stand_in(images.STOCK)
