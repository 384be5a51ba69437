"""How most people call TensorFlow Serving: one batch after the other, with TensorFlow's helpers.

Prints the rows per second as JSON. A process of its own, since it imports TensorFlow.
"""

import argparse
import json
import time

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def main() -> None:
    """Predict `--rows` rows in batches, as often as asked."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    args = parser.parse_args()
    images = np.random.default_rng(0).random((args.rows, 784), np.float32)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(
        grpc.insecure_channel(f"127.0.0.1:{args.port}")
    )
    start = time.perf_counter()
    answers = []
    for first in range(0, args.rows, args.batch_size):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "m"
        batch = images[first : first + args.batch_size]
        request.inputs["images"].CopyFrom(tf.make_tensor_proto(batch))
        response = stub.Predict(request, 60)
        answers.append(tf.make_ndarray(response.outputs["probabilities"]))
    seconds = time.perf_counter() - start
    assert len(np.concatenate(answers)) == args.rows
    print(json.dumps({"rows_per_s": args.rows / seconds}))


if __name__ == "__main__":
    main()
