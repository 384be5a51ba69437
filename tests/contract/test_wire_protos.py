"""Our protos against the official ones, message by message."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from contract.wire import generate

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / generate.PACKAGE).glob("*_pb2.py"))
OFFICIAL = [
    "tensorflow.core.framework.tensor_pb2",
    "tensorflow.core.protobuf.named_tensor_pb2",
    "tensorflow.core.protobuf.saved_model_pb2",
    "tensorflow.core.example.example_pb2",
    *(
        f"tensorflow_serving.apis.{name}_pb2"
        for name in (
            *("classification", "get_model_metadata", "get_model_status", "inference", "input"),
            *("logging", "model", "model_management", "predict", "prediction_log", "regression"),
            *("session_service", "status"),
        )
    ),
    *(
        f"tensorflow_serving.config.{name}_pb2"
        for name in (
            *("file_system_storage_path_source", "log_collector_config", "logging_config"),
            *("model_server_config", "platform_config"),
        )
    ),
]
# Their descriptors come with no Python package that the tests install; numbers are from
# tensorflow_serving/{config/ssl_config,config/monitoring_config,
# servables/tensorflow/session_bundle_config}.proto and grpc/health/v1/health.proto.
BY_HAND = {
    "SSLConfig": {"server_key": 1, "server_cert": 2, "custom_ca": 3, "client_verify": 4},
    "PrometheusConfig": {"enable": 1, "path": 2},
    "MonitoringConfig": {"prometheus_config": 1},
    "BatchingParameters": {
        "max_batch_size": 1,
        "batch_timeout_micros": 2,
        "max_enqueued_batches": 3,
        "num_batch_threads": 4,
        "thread_pool_name": 5,
        "allowed_batch_sizes": 6,
        "pad_variable_length_inputs": 7,
        "enable_large_batch_splitting": 8,
        "max_execution_batch_size": 9,
    },
    "HealthCheckRequest": {"service": 1},
    "HealthCheckResponse": {"status": 1},
    # kserve/open-inference-protocol, specification/protocol/open_inference_grpc.proto; what
    # tests/tritonclient compares field by field.
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": 1},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": 1},
    "ModelReadyRequest": {"name": 1, "version": 2},
    "ModelReadyResponse": {"ready": 1},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": 1, "version": 2, "extensions": 3},
    "ModelMetadataRequest": {"name": 1, "version": 2},
    "ModelMetadataResponse": {
        "name": 1,
        "versions": 2,
        "platform": 3,
        "inputs": 4,
        "outputs": 5,
    },
    "InferParameter": {
        "bool_param": 1,
        "int64_param": 2,
        "string_param": 3,
        "double_param": 4,
        "uint64_param": 5,
    },
    "InferTensorContents": {
        "bool_contents": 1,
        "int_contents": 2,
        "int64_contents": 3,
        "uint_contents": 4,
        "uint64_contents": 5,
        "fp32_contents": 6,
        "fp64_contents": 7,
        "bytes_contents": 8,
    },
    "ModelInferRequest": {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "inputs": 5,
        "outputs": 6,
        "raw_input_contents": 7,
    },
    "ModelInferResponse": {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "outputs": 5,
        "raw_output_contents": 6,
    },
}
# Messages of the embedded server's own.
OUR_OWN = {"ShadowRequest", "ShadowRow", "ShadowResponse"}
# Fields that our messages leave to protobuf's unknown fields.
TRIMMED = {
    "MetaGraphDef": {"graph_def", "saver_def", "collection_def", "object_graph_def"},
    "MetaInfoDef": {"stripped_op_list"},
    "CompositeTensor": {"type_spec"},
    "SessionRunRequest": {"options"},
    "SessionRunResponse": {"metadata"},
}


# What came with release 2.21 of the official protos, as ours are.
SINCE_2_21 = {"handshake", "Handshake", "DT_FLOAT4_E2M1FN", "DT_FLOAT4_E2M1FN_REF"}


def our_messages() -> dict[str, Descriptor]:
    found: dict[str, Descriptor] = {}
    for name in MODULES:
        module = importlib.import_module(f"contract.wire.plumbline_wire.{name}")
        found.update(module.DESCRIPTOR.message_types_by_name)
    return found


def official_messages() -> dict[str, Descriptor]:
    found: dict[str, Descriptor] = {}

    def add(file) -> None:
        for name, message in file.message_types_by_name.items():
            found.setdefault(name, message)
        for other in file.dependencies:
            if other.name.startswith("tensorflow"):
                add(other)

    for name in OFFICIAL:
        add(importlib.import_module(name).DESCRIPTOR)
    return found


def list_unofficial() -> set[str]:
    """What the official protos that are installed do not have yet."""
    return SINCE_2_21 if version("tensorflow-serving-api").startswith("2.20.") else set()


def describe(field: FieldDescriptor) -> dict[str, object]:
    oneof = field.containing_oneof
    return {
        "number": field.number,
        "type": field.type,
        "repeated": field.is_repeated,
        "packed": field.is_packed,
        "presence": field.has_presence,
        "oneof": oneof and oneof.name,
        "message": field.message_type and field.message_type.name,
        "map": bool(field.message_type and field.message_type.GetOptions().map_entry),
        "enum": field.enum_type
        and {
            value.name: value.number
            for value in field.enum_type.values
            if value.name not in list_unofficial()
        },
    }


def compare(ours: Descriptor, theirs: Descriptor) -> int:
    their_fields = {name: describe(field) for name, field in theirs.fields_by_name.items()}
    our_fields = {
        name: describe(field)
        for name, field in ours.fields_by_name.items()
        if name not in list_unofficial()
    }
    for name in TRIMMED.get(ours.name, ()):
        del their_fields[name]
    assert our_fields == their_fields, ours.full_name
    return 1 + sum(
        compare(nested, theirs.nested_types_by_name[nested.name])
        for nested in ours.nested_types
        if nested.name not in list_unofficial()
    )


@pytest.mark.tensorflow
def test_every_message_has_the_official_fields():
    official = official_messages()
    ours = our_messages()
    compared = sum(
        compare(message, official[name])
        for name, message in ours.items()
        if name not in BY_HAND and name not in OUR_OWN
    )
    assert compared > 80


def test_messages_that_no_package_describes_have_the_official_numbers():
    ours = our_messages()
    for name, numbers in BY_HAND.items():
        fields = ours[name].fields_by_name
        assert {field: fields[field].number for field in fields} == numbers


@pytest.mark.skipif(find_spec("grpc_tools") is None, reason="grpcio-tools is not installed")
def test_generating_again_gives_the_committed_code(tmp_path):
    # In a process of its own: the compiler in grpcio-tools and TensorFlow crash each other.
    subprocess.run(
        [sys.executable, "-m", "contract.wire.generate", str(tmp_path)],
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    assert read_code(tmp_path / generate.PACKAGE) == read_code(ROOT / generate.PACKAGE)


def read_code(folder: Path) -> dict[str, str]:
    """Generated files without the compiler's version, which the next test holds fast."""
    stamp = re.compile(r"^# Protobuf Python Version: .*$|^    \d+,$", re.MULTILINE)
    return {path.name: stamp.sub("", path.read_text()) for path in folder.glob("*_pb2.py*")}


def test_the_oldest_protobuf_that_is_allowed_runs_the_generated_code():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (oldest,) = (
        one.removeprefix("protobuf>=")
        for one in project["dependencies"]
        if one.startswith("protobuf>=")
    )
    stamps = {
        re.search(r"^# Protobuf Python Version: (.*)$", path.read_text(), re.MULTILINE)[1]
        for path in (ROOT / generate.PACKAGE).glob("*_pb2.py")
    }
    assert stamps == {oldest}


OURS = f"import {', '.join(f'contract.wire.plumbline_wire.{name}' for name in MODULES)}"
THEIRS = (
    "import tensorflow, tensorflow_serving.apis.prediction_service_pb2_grpc, "
    "tensorflow_serving.apis.prediction_log_pb2, tensorflow_serving.config.platform_config_pb2"
)


@pytest.mark.parametrize("first, second", [(OURS, THEIRS), (THEIRS, OURS)])
def test_both_live_in_one_process_in_either_order(first, second):
    use = (
        "from contract.wire.tensors import to_tensor_proto, decode_tensor; "
        "proto = to_tensor_proto([1.0]); "
        "print(tensorflow.make_ndarray(tensorflow.make_tensor_proto(0.0).__class__"
        ".FromString(proto.SerializeToString())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{first}\n{second}\n{use}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[1.]"


def test_the_wire_loads_neither_grpcio_nor_tensorflow():
    code = (
        "import sys, contract.wire.predict, contract.wire.rpc, contract.wire.signatures; "
        "print(sorted(name for name in ('grpc', 'tensorflow', 'google.protobuf.json_format')"
        " if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
