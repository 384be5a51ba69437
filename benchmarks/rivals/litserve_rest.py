"""LitServe as its documentation shows it: a LitAPI that calls the model, one worker a core."""

import argparse

import litserve as ls
import numpy as np


class Digits(ls.LitAPI):
    """`{"instances": [[…]]}` in, `{"predictions": [[…]]}` out, as TensorFlow Serving answers."""

    def __init__(self, version_dir: str) -> None:
        super().__init__()
        self._version_dir = version_dir

    def setup(self, device: str) -> None:
        import tensorflow as tf

        self._tf = tf
        self._model = tf.saved_model.load(self._version_dir)
        self._function = self._model.signatures["serving_default"]

    def decode_request(self, request: dict) -> np.ndarray:
        return np.asarray(request["instances"], np.float32)

    def predict(self, images: np.ndarray) -> np.ndarray:
        return self._function(images=self._tf.constant(images))["probabilities"].numpy()

    def encode_response(self, output: np.ndarray) -> dict:
        return {"predictions": output.tolist()}


def main() -> None:
    """Serve a version directory on a port until killed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--version_dir", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    server = ls.LitServer(Digits(args.version_dir), accelerator="cpu", workers_per_device=2)
    server.run(host="127.0.0.1", port=args.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
