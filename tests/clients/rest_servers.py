"""A small real HTTP server that speaks TensorFlow Serving's REST API, for the clients' tests."""

from __future__ import annotations

import gzip
import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

SIGNATURES: dict[str, Any] = {
    "serving_default": {
        "inputs": {"x": ("DT_FLOAT", [-1, 4])},
        "outputs": {"y": ("DT_FLOAT", [-1, 2])},
        "method_name": "tensorflow/serving/predict",
    },
    "strings": {
        "inputs": {"s": ("DT_STRING", [-1])},
        "outputs": {"length": ("DT_INT64", [-1]), "twice": ("DT_STRING", [-1])},
        "method_name": "tensorflow/serving/predict",
    },
}


def write_signatures() -> dict[str, Any]:
    """As TensorFlow Serving prints them: sizes are strings."""

    def write_specs(specs: dict[str, Any]) -> dict[str, Any]:
        return {
            name: {
                "name": f"{name}:0",
                "dtype": dtype,
                "tensor_shape": {
                    "dim": [{"size": str(size), "name": ""} for size in sizes],
                    "unknown_rank": False,
                },
            }
            for name, (dtype, sizes) in specs.items()
        }

    return {
        name: {
            "inputs": write_specs(parts["inputs"]),
            "outputs": write_specs(parts["outputs"]),
            "method_name": parts["method_name"],
            "defaults": {},
        }
        for name, parts in SIGNATURES.items()
    }


class RestServer:
    """Serves model `m` on 127.0.0.1; a context manager.

    Attributes:
        answer: Given instead of the model: (path, body) to (status, headers, body), or None.
        requests: (method, path, headers, body) of every request.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._scheme = "http" if tls is None else "https"
        self.answer: Callable[[str, Any], tuple[int, dict[str, str], bytes] | None] = (
            lambda path, body: None
        )
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._serve(None)

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    data = gzip.decompress(data)
                self._serve(json.loads(data))

            def _serve(self, body: Any) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.requests.append((self.command, self.path, headers, body))
                status, extra, reply = outer.answer(self.path, body) or outer.serve(self.path, body)
                self.send_response(status)
                for name, value in {"content-length": str(len(reply)), **extra}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))

    def __enter__(self) -> RestServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        """For a client."""
        return f"{self._scheme}://127.0.0.1:{self._http.server_address[1]}"

    def serve(self, path: str, body: Any) -> tuple[int, dict[str, str], bytes]:
        """What the model answers."""
        return 200, {}, json.dumps(self._reply(path, body)).encode()

    def _reply(self, path: str, body: Any) -> Any:
        if path.endswith("/metadata"):
            return {
                "model_spec": {"name": "m", "version": "3", "signature_name": ""},
                "metadata": {"signature_def": {"signature_def": write_signatures()}},
            }
        if path.endswith(":classify"):
            shared = body.get("context", {}).get("offset", [0.0])[0]
            rows = [row["x"][0] for row in body["examples"]]
            return {"results": [[["low", x], ["high", x + shared]] for x in rows]}
        if path.endswith(":regress"):
            return {"results": [row["x"][0] for row in body["examples"]]}
        if path.endswith(":predict") and body.get("signature_name") == "strings":
            values = body["inputs"]["s"]
            return {"outputs": {"length": [len(v["b64"]) for v in values], "twice": values}}
        if path.endswith(":predict"):
            x = np.array(body["inputs"]["x"], np.float32).reshape(-1, 4)
            return {"outputs": np.stack([x.sum(axis=1), x[:, 0]], axis=1).tolist()}
        status = {"error_code": "OK", "error_message": ""}
        return {"model_version_status": [{"version": "3", "state": "AVAILABLE", "status": status}]}
