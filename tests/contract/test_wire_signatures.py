"""Signatures out of a saved_model.pb and over the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import InternalError, ManifestError, PlumblineError
from contract.servable import ModelSpec
from contract.signature import CLASSIFY_METHOD, Signature, TensorSpec
from contract.wire import signatures
from contract.wire.plumbline_wire import metadata_pb2, saved_model_pb2
from contract.wire.tensors import LAYOUTS

SPEC = ModelSpec("mlp", version=3)
SIGNATURE = Signature(
    "serving_default",
    {"images": TensorSpec("images", "float32", (None, 784))},
    {
        "label": TensorSpec("label", "string", None),
        "probabilities": TensorSpec("probabilities", "bfloat16", (None, 10)),
        "scalar": TensorSpec("scalar", "int64", ()),
    },
)


def saved_model_of(*tags: str) -> bytes:
    proto = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    graph = proto.meta_graphs.add()
    graph.meta_info_def.tags.extend(tags)
    graph.signature_def["serving_default"].CopyFrom(signatures.signature_to_proto(SIGNATURE))
    graph.signature_def[signatures.INIT_OP].outputs[signatures.INIT_OP].name = "NoOp"
    return proto.SerializeToString()


def test_a_signature_comes_back_from_its_message():
    proto = signatures.signature_to_proto(SIGNATURE)
    assert signatures.signature_from_proto("serving_default", proto) == SIGNATURE
    assert proto.inputs["images"].name == "serving_default_images:0"


def test_the_initialiser_is_no_signature():
    body = saved_model_of("serve")
    assert signatures.read_signatures(body) == {"serving_default": SIGNATURE}
    assert signatures.INIT_OP in signatures.read_signature_defs(body)


def test_missing_tags_are_named_beside_those_there_are():
    with pytest.raises(ManifestError, match=r"\{serve\}.*\{gpu,serve\}"):
        signatures.read_signatures(saved_model_of("gpu", "serve"))


def test_a_damaged_file_is_a_manifest_error():
    with pytest.raises(ManifestError, match=r"no saved_model\.pb"):
        signatures.read_signatures(b"\xff\xff")


@given(st.binary(max_size=100))
def test_random_bytes_raise_only_errors_of_ours(body):
    try:
        signatures.read_signatures(body)
    except PlumblineError as error:
        assert error.message


def test_metadata_comes_back_from_its_message():
    protos = signatures.read_signature_defs(saved_model_of("serve"))
    response = signatures.metadata_response(SPEC, protos)
    assert signatures.signatures_from_metadata(response) == (SPEC, {"serving_default": SIGNATURE})


@pytest.mark.parametrize(
    "entry",
    [None, ("type.googleapis.com/other", b""), ("x/tensorflow.serving.SignatureDefMap", b"\xff")],
)
def test_metadata_without_signatures_is_the_server_s_fault(entry):
    response = metadata_pb2.GetModelMetadataResponse()
    if entry:
        response.metadata["signature_def"].type_url = entry[0]
        response.metadata["signature_def"].value = entry[1]
    with pytest.raises(InternalError, match="signature_def"):
        signatures.signatures_from_metadata(response)


@pytest.mark.tensorflow
def test_tensorflow_s_own_saved_model_is_read_as_tensorflow_reads_it(tmp_path):
    import tensorflow as tf

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def predict(self, x):
            return {"y": 2 * x, "n": tf.shape(x)[0]}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def classify(self, examples):
            return {"classes": examples}

    model = Model()
    tf.saved_model.save(
        model, str(tmp_path), {"serving_default": model.predict, "text": model.classify}
    )
    body = (tmp_path / "saved_model.pb").read_bytes()
    read = signatures.read_signatures(body)
    assert read["serving_default"].inputs == {"x": TensorSpec("x", "float32", (None, 4))}
    assert read["serving_default"].outputs == {
        "n": TensorSpec("n", "int32", ()),
        "y": TensorSpec("y", "float32", (None, 4)),
    }
    assert read["text"].inputs["examples"].describe() == "string (batch,)"
    from tensorflow.core.protobuf import saved_model_pb2 as official

    golden = official.SavedModel.FromString(body).meta_graphs[0]
    ours = signatures.read_meta_graph(body)
    assert ours.meta_info_def.tensorflow_version == tf.__version__
    for name, proto in golden.signature_def.items():
        same = type(proto).FromString(ours.signature_def[name].SerializeToString())
        assert same == proto
        assert str(ours.signature_def[name]) == str(proto)


@pytest.mark.tensorflow
def test_the_official_messages_unpack_our_metadata():
    from tensorflow_serving.apis import get_model_metadata_pb2 as official

    classify = Signature("c", SIGNATURE.inputs, {}, CLASSIFY_METHOD)
    response = official.GetModelMetadataResponse.FromString(
        signatures.metadata_response(
            SPEC, {"c": signatures.signature_to_proto(classify)}
        ).SerializeToString()
    )
    found = official.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    assert found.signature_def["c"].method_name == CLASSIFY_METHOD
    assert found.signature_def["c"].inputs["images"].tensor_shape.dim[1].size == 784


def test_a_reference_dtype_is_that_of_its_values_for_inputs_and_outputs() -> None:
    for number, layout in LAYOUTS.items():
        proto = saved_model_pb2.SignatureDef()
        for side in (proto.inputs, proto.outputs):
            side["x"].dtype = number + 100  # type: ignore[assignment]
        signature = signatures.signature_from_proto("s", proto)
        assert signature.inputs["x"].dtype == signature.outputs["x"].dtype == layout.name
