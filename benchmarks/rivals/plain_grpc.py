"""What a Python user would otherwise write: a synchronous grpcio server calling the model."""

import argparse
import pathlib
from concurrent import futures

import grpc
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)


class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict on `serving_default`, and the metadata that load generators ask for."""

    def __init__(self, version_dir: str) -> None:
        self._model = tf.saved_model.load(version_dir)
        self._function = self._model.signatures["serving_default"]
        saved = saved_model_pb2.SavedModel.FromString(
            pathlib.Path(version_dir, "saved_model.pb").read_bytes()
        )
        self._signatures = saved.meta_graphs[0].signature_def

    def GetModelMetadata(  # noqa: N802
        self,
        request: get_model_metadata_pb2.GetModelMetadataRequest,
        context: grpc.ServicerContext,
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in self._signatures.items():
            signatures.signature_def[name].CopyFrom(signature)
        response = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=request.model_spec)
        response.model_spec.version.value = 1
        response.metadata["signature_def"].Pack(signatures)
        return response

    def Predict(  # noqa: N802
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        inputs = {name: tf.constant(tf.make_ndarray(t)) for name, t in request.inputs.items()}
        response = predict_pb2.PredictResponse()
        for name, tensor in self._function(**inputs).items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(tensor.numpy()))
        return response


def main() -> None:
    """Serve a version directory on a port until killed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--version_dir", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=8),
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        Service(args.version_dir), server
    )
    server.add_insecure_port(f"127.0.0.1:{args.port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
