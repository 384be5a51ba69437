"""--require_signature_key: what its holder has not signed is not loaded, and says why."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest

pytest.importorskip("model_signing")

from contract import layout
from contract.errors import Code, UntrustedVersionError
from contract.servable import ServableId
from contract.signing import sign_version
from contract.wire.plumbline_wire import status_pb2
from contract.wire.rpc import GET_MODEL_STATUS, PREDICT
from exporter.publishing.publish import PublishOptions, publish_version
from serving.config.server import ServerConfig, parse_config
from serving.engines.loading import Findings, Trials, examine_version, load_servable
from serving.observer import Observer
from tests.serving.mlp_calls import make_request
from tests.serving.server_process import ServerProcess, call, run_embedded
from tests.signing_keys import Keys, make_keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def base(tmp_path: Path, published_mlp: Path, keys: Keys) -> Path:
    """A base path with one signed version."""
    publish(published_mlp / "mlp" / "1", tmp_path / "mlp", keys.private)
    return tmp_path / "mlp"


def publish(source: Path, base: Path, key: Path | None = None) -> Path:
    return publish_version(source, base, PublishOptions(signing_key=key)).path


def serve(folder: Path, base: Path, keys: Keys, *flags: str) -> ServerProcess:
    return ServerProcess(
        folder,
        "--model_name=mlp",
        f"--model_base_path={base}",
        f"--require_signature_key={keys.public}",
        *flags,
    )


END = status_pb2.ModelVersionStatus.END


def wait_for_end(server: ServerProcess, version: int) -> status_pb2.ModelVersionStatus:
    """Waits until a version has ended, in the worker that says so; what it says of it."""
    request = status_pb2.GetModelStatusRequest()
    request.model_spec.name = "mlp"
    ended: list[status_pb2.ModelVersionStatus] = []

    def has_ended() -> bool:  # of several workers each call may ask another
        with grpc.insecure_channel(server.address) as channel:
            found = call(channel, GET_MODEL_STATUS, request).model_version_status
        ended[:] = [one for one in found if one.version == version and one.state == END]
        return bool(ended)

    server.wait_for(has_ended)
    return ended[0]


def ask(server: ServerProcess) -> int:
    """The version that answers a Predict."""
    with grpc.insecure_channel(server.address) as channel:
        answer = call(channel, PREDICT, make_request())
    return int(answer.model_spec.version.value)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_version_that_nobody_signed_is_not_loaded_until_it_is(
    tmp_path: Path, base: Path, keys: Keys, workers: int
) -> None:
    with serve(tmp_path, base, keys, f"--workers={workers}") as server:
        server.wait_until_ready()
        unsigned = publish(base / "1", base)
        ended = wait_for_end(server, 2)
        assert ended.status.error_code == Code.PERMISSION_DENIED
        assert f"{unsigned} has no signature" in ended.status.error_message
        assert f"PERMISSION_DENIED: {unsigned} has no signature" in server.log
        assert [ask(server) for _ in range(4)] == [1] * 4
        sign_version(unsigned, keys.private)
        server.wait_for(lambda: server.list_states("mlp").get(2) == "AVAILABLE")
        assert ask(server) == 2


def test_a_version_that_was_changed_after_signing_serves_nobody(
    tmp_path: Path, base: Path, keys: Keys
) -> None:
    (base / "1" / layout.LABELS).write_text("others\n")
    done = run_embedded(
        *("--port=-1", "--model_name=mlp", f"--model_base_path={base}"),
        f"--require_signature_key={keys.public}",
    )
    assert done.returncode == 3
    assert f"{layout.LABELS} was changed" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_server_itself_imports_nothing_that_reads_signatures(
    tmp_path: Path, base: Path, keys: Keys
) -> None:
    with serve(tmp_path, base, keys) as server:
        server.wait_until_ready()
        mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "cryptography" in mapped  # which looked at the key
    assert "pydantic_core" not in mapped


def test_a_key_that_cannot_be_used_ends_the_start_with_a_sentence(
    tmp_path: Path, base: Path, keys: Keys
) -> None:
    done = run_embedded(
        *("--port=-1", "--model_name=mlp", f"--model_base_path={base}"),
        f"--require_signature_key={keys.private}",
    )
    assert done.returncode == 3
    assert "is a private key" in done.stderr
    assert "Traceback" not in done.stderr


def make_config(base: Path, keys: Keys, *flags: str) -> ServerConfig:
    return parse_config(
        [f"--model_base_path={base}", f"--require_signature_key={keys.public}", *flags]
    )


def test_a_version_put_into_the_place_of_another_is_not_loaded(base: Path, keys: Keys) -> None:
    config = make_config(base, keys)
    other = shutil.copytree(base / "1", base / "7")
    with pytest.raises(UntrustedVersionError, match="version 1 of mlp, and it was found as vers"):
        load_servable(ServableId("mlp", 7), other, config, Observer())
    other = shutil.copytree(base / "1", base.with_name("fraud") / "1")
    with pytest.raises(UntrustedVersionError, match="found as one of fraud or spam"):
        load_servable(ServableId("spam", 1), other, config, Observer())


def test_a_model_may_be_served_by_another_name_than_its_folders(base: Path, keys: Keys) -> None:
    load_servable(ServableId("digits", 1), base / "1", make_config(base, keys), Observer()).close()


class Intruder(Trials):
    """Examines a version, and does something to it afterwards."""

    def __init__(self, config: ServerConfig, act: Callable[[Path], object]) -> None:
        self._config = config
        self._act = act

    def examine(self, servable_id: ServableId, version_dir: Path, observer: Observer) -> Findings:
        findings, engine = examine_version(servable_id, version_dir, self._config, observer)
        if engine is not None:
            engine.close()
        self._act(version_dir)
        return findings

    def try_tensorflow(
        self, servable_id: ServableId, version_dir: Path, signature_names: Sequence[str]
    ) -> None:
        """Nothing: the version is as it was."""


def test_a_file_that_is_exchanged_between_check_and_load_is_not_loaded(
    base: Path, keys: Keys
) -> None:
    config = make_config(base, keys)

    def exchange(version_dir: Path) -> None:
        path = version_dir / layout.TFLITE
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)  # its times are others, whatever it holds

    with pytest.raises(UntrustedVersionError, match="changed after its signature was checked"):
        load_servable(
            ServableId("mlp", 1),
            base / "1",
            config,
            Observer(),
            trials=Intruder(config, exchange),
        )


def test_a_graph_that_is_exchanged_before_tensorflow_is_first_needed_is_not_loaded(
    base: Path, keys: Keys
) -> None:
    config = make_config(base, keys)
    trials = Intruder(config, lambda _: None)
    servable = load_servable(ServableId("mlp", 1), base / "1", config, Observer(), trials=trials)
    (base / "1" / layout.SAVED_MODEL).write_bytes(b"another")
    with pytest.raises(UntrustedVersionError, match="changed after its signature was checked"):
        servable.run("serving_image_bytes", {"image_bytes": np.array([b""], dtype=object)})
    servable.close()
