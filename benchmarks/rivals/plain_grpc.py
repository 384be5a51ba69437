"""What a Python user would otherwise write: a synchronous grpcio server calling the model."""

import argparse
from concurrent import futures

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict alone, on `serving_default`."""

    def __init__(self, version_dir: str) -> None:
        self._model = tf.saved_model.load(version_dir)
        self._function = self._model.signatures["serving_default"]

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
