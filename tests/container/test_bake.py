"""An image that holds one published version."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import yaml

from contract import layout
from contract.errors import ConfigError, ManifestError
from contract.manifest import read_manifest
from contract.signing import sign_version
from serving.config.server import parse_config
from serving.container.bake import MODELCAR_USER, describe_modelcar, name_image
from serving.container.engine import ContainerEngine, Image, ImageServer, find_image
from serving.container.plan import make_plan
from tests.container import images_for_tests as images
from tests.container.processes import (
    ROOT,
    TIMEOUT_S,
    ContainerProcess,
    name_container,
    read_version_states,
    run_serving,
)
from tests.signing_keys import make_keys

AVAILABLE = 30
REPOSITORY = "localhost/plumbline-test-baked"


def test_the_image_is_named_after_model_version_and_manifest(mlp_base_path: Path) -> None:
    manifest = read_manifest(mlp_base_path / "1")
    name = name_image(manifest, ImageServer.EMBEDDED)
    assert name == f"mlp:1-{manifest.digest[:12]}"
    assert name_image(manifest, ImageServer.TENSORFLOW_SERVING) == f"{name}-tensorflow-serving"


def test_a_name_that_no_image_can_have_is_refused(mlp_base_path: Path) -> None:
    manifest = read_manifest(mlp_base_path / "1")
    odd = msgspec.structs.replace(manifest, model_name='m" RUN x')
    with pytest.raises(ConfigError, match="an image wants letters"):
        name_image(odd, ImageServer.EMBEDDED)


def test_a_candidate_is_not_baked(mlp_base_path: Path) -> None:
    candidate = msgspec.structs.replace(read_manifest(mlp_base_path / "1"), version=0)
    with pytest.raises(ManifestError, match="publish it"):
        name_image(candidate, ImageServer.EMBEDDED)


def test_a_modelcar_is_the_base_path_that_kserve_mounts(mlp_base_path: Path) -> None:
    manifest = read_manifest(mlp_base_path / "1")
    assert name_image(manifest, None) == f"mlp:1-{manifest.digest[:12]}-modelcar"
    lines = describe_modelcar("busybox:1.37", manifest).splitlines()
    assert lines[0] == "FROM busybox:1.37"
    assert "COPY --chmod=755 . /models/1/" in lines
    assert "ENTRYPOINT []" in lines, "KServe gives sh as arguments"
    runtime = yaml.safe_load((ROOT / "deploy/kubernetes/kserve/runtime.yaml").read_text())
    context = runtime["spec"]["containers"][0]["securityContext"]
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in lines, "read through /proc"


def test_a_modelcar_has_no_server(mlp_base_path: Path) -> None:
    done = run_serving("bake", f"--version_dir={mlp_base_path}", "--modelcar", "--server=embedded")
    assert done.returncode == 2
    assert "a modelcar holds no server" in done.stderr


def test_a_modelcar_is_not_run_as_a_server() -> None:
    image = Image("mlp:1-modelcar", model_name="mlp", is_modelcar=True)
    config = parse_config(image.model_flags)
    with pytest.raises(ConfigError, match="KServe mounts it"):
        make_plan(config, {}, image, ContainerEngine("podman"))


def test_a_version_that_was_changed_is_not_baked(mlp_base_path: Path, tmp_path: Path) -> None:
    version = images.copy_version(mlp_base_path / "1", tmp_path / "mlp")
    (version / "model.tflite").write_bytes(b"changed")
    done = run_serving("bake", f"--version_dir={version}")
    assert done.returncode == 2
    assert "model.tflite has 7 bytes" in done.stderr


@pytest.mark.container
@pytest.mark.parametrize("server", list(ImageServer))
def test_a_baked_image_serves_its_version_without_a_flag_or_a_mount(
    engine: ContainerEngine,
    embedded_image: str,
    stand_in: Callable[[str], str],
    mlp_base_path: Path,
    tmp_path: Path,
    server: ImageServer,
) -> None:
    base = embedded_image if server is ImageServer.EMBEDDED else stand_in(images.STOCK)
    arguments = [f"--server={server.value}", f"--image={base}", f"--repository={REPOSITORY}"]
    done = run_serving("bake", f"--version_dir={mlp_base_path}", *arguments)
    assert done.returncode == 0, done.stderr
    reference = done.stdout.strip()
    assert reference == name_image(
        read_manifest(mlp_base_path / "1"), server, repository=REPOSITORY
    )
    image = find_image(engine, reference)
    assert image is not None
    assert image.model_name == "mlp"
    with ContainerProcess(tmp_path, f"--image={reference}") as process:
        process.wait_until_serving()
        assert "mlp: AVAILABLE" in process.log
        mounts = engine.call("inspect", "--format", "{{json .Mounts}}", process.name).stdout
        assert str(mlp_base_path) not in mounts


@pytest.mark.container
def test_a_baked_image_carries_the_signature_of_its_version(
    embedded_image: str, mlp_base_path: Path, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing")
    keys = make_keys(tmp_path)
    version = images.copy_version(mlp_base_path / "1", tmp_path / "mlp")
    sign_version(version, keys.private)
    arguments = [f"--image={embedded_image}", f"--repository={REPOSITORY}-signed"]
    done = run_serving("bake", f"--version_dir={version}", *arguments)
    assert done.returncode == 0, done.stderr
    flags = [f"--image={done.stdout.strip()}", f"--require_signature_key={keys.public}"]
    with ContainerProcess(tmp_path / "run", *flags) as process:
        process.wait_until_serving()
        assert "mlp: AVAILABLE" in process.log


@pytest.mark.container
def test_an_image_of_the_other_server_is_refused(embedded_image: str, mlp_base_path: Path) -> None:
    arguments = ["--server=tensorflow_serving", f"--image={embedded_image}"]
    done = run_serving("bake", f"--version_dir={mlp_base_path}", *arguments)
    assert done.returncode == 2
    assert "holds embedded" in done.stderr


@pytest.mark.container
def test_the_server_serves_a_modelcar_as_kserve_mounts_it(
    engine: ContainerEngine, embedded_image: str, mlp_base_path: Path, tmp_path: Path
) -> None:
    """Two containers, as in KServe's pod: one volume at /mnt, one namespace of processes."""
    base = os.environ.get("BASE", embedded_image)
    arguments = ["--modelcar", f"--image={base}", f"--repository={REPOSITORY}"]
    done = run_serving("bake", f"--version_dir={mlp_base_path}", *arguments)
    assert done.returncode == 0, done.stderr
    volume = tmp_path / "mnt"
    volume.mkdir()
    volume.chmod(0o777)  # as an emptyDir
    shared = ("--rm", "--detach", "--cap-drop=ALL", "--read-only", f"--volume={volume}:/mnt")
    car, server = name_container(), name_container()
    late = "sleep 3; ln -sf /proc/$$/root/models /mnt/models && sleep infinity"
    try:
        started = engine.call(
            *("run", *shared, f"--name={car}", "--network=none", done.stdout.strip()),
            *("sh", "-c", late),
        )
        assert started.returncode == 0, started.stderr
        started = engine.call(
            *("run", *shared, f"--user={MODELCAR_USER}", f"--name={server}"),
            *(f"--pid=container:{car}", "--env=MODEL_INIT_MODE=async"),
            *("--publish=127.0.0.1::9000", embedded_image, "--port=9000", "--rest_api_port=8080"),
            *("--model_name=mlp", "--model_base_path=/mnt/models"),
        )
        assert started.returncode == 0, started.stderr
        address = engine.call("port", server, "9000").stdout.split()[0]
        deadline = time.monotonic() + TIMEOUT_S
        expected = {int(layout.find_version_dir(mlp_base_path).name): AVAILABLE}
        while read_version_states(address, fails_with="UNAVAILABLE") != expected:
            assert time.monotonic() < deadline, engine.call("logs", server).stderr
            time.sleep(0.1)
    finally:
        for name in (server, car):
            engine.call("kill", name)
            engine.call("rm", "--force", name)


@pytest.mark.container
def test_a_base_in_which_kserve_could_run_nothing_is_named(
    engine: ContainerEngine, mlp_base_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "Containerfile").write_text("FROM scratch\nCOPY Containerfile /\n")
    base = f"{images.REPOSITORY}-bare"
    built = engine.call("build", "--quiet", "--tag", base, str(tmp_path))
    assert built.returncode == 0, built.stderr
    arguments = ["--modelcar", f"--image={base}", f"--repository={REPOSITORY}"]
    done = run_serving("bake", f"--version_dir={mlp_base_path}", *arguments)
    assert done.returncode == 3
    assert "but KServe could not mount it" in done.stderr
    assert "busybox" in done.stderr
