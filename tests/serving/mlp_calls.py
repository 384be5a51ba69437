"""Calls of the digits model, and those who keep making them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import grpc

from contract.wire.plumbline_wire import predict_pb2, tensor_pb2
from contract.wire.rpc import PREDICT
from tests.serving.server_process import call

NUM_PIXELS = 784


def make_request(name: str = "mlp", *, version: int = 0, num_rows: int = 1) -> Any:
    """A PredictRequest of zeros."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    if version:
        request.model_spec.version.value = version
    tensor = request.inputs["images"]
    tensor.dtype = tensor_pb2.DT_FLOAT
    for size in (num_rows, NUM_PIXELS):
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = bytes(4 * num_rows * NUM_PIXELS)
    return request


class Callers:
    """Threads that call Predict until they are told to stop, or refused; a context manager.

    Attributes:
        faults: The errors that ended them.
        versions: Who answered each.
        num_answers: Of each.
    """

    def __init__(
        self,
        address: str,
        num_callers: int,
        options: Sequence[tuple[str, int]] = (),
        *,
        pause_s: float = 0.002,
    ) -> None:
        self.faults: list[grpc.RpcError] = []
        self.versions: list[set[int]] = [set() for _ in range(num_callers)]
        self.num_answers = [0] * num_callers
        self._address, self._options, self._pause_s = address, options, pause_s
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(index,)) for index in range(num_callers)
        ]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        """Waits until all have been refused, or told to stop."""
        for thread in self._threads:
            thread.join()

    def _run(self, index: int) -> None:
        with grpc.insecure_channel(self._address, self._options) as channel:
            while not self._stop.wait(self._pause_s):
                try:
                    answer = call(channel, PREDICT, make_request())
                except grpc.RpcError as error:
                    self.faults.append(error)
                    return
                self.num_answers[index] += 1
                self.versions[index].add(answer.model_spec.version.value)
