"""The engine in Python: TFLite on this machine, asked and answering in the server's own JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from clients.core.rest_dialect import read_array, write_array
from clients.on_device import OnDevicePredictor
from clients.web_server import Request, Response
from contract.errors import InternalError, RequestError
from contract.signature import find_signature

JSON = "application/json"


class Engine:
    """Answers what TensorFlow Serving's REST API takes in columns, with `inputs` and `outputs`.

    The page sends the same bytes here and to the server, so that nothing but the engine differs.
    """

    def __init__(self, predictor: OnDevicePredictor) -> None:
        self._predictor = predictor

    def predict(self, request: Request) -> Response:
        """Answers a body; a handler of `WebServer`, in any number of threads.

        Raises:
            PlumblineError: The body or its rows do not fit the signature.
        """
        try:
            body: dict[str, Any] = msgspec.json.decode(request.body, type=dict[str, Any])
            name, given = str(body["signature_name"]), body["inputs"]
            specs = find_signature(self._predictor.signatures, name).inputs
            batch = {key: read_array(key, given[key], spec) for key, spec in specs.items()}
        except (msgspec.MsgspecError, KeyError, TypeError, InternalError) as error:
            raise RequestError(f"the page asked what cannot be read: {error}") from None
        outputs = self._predictor.predict(batch, signature_name=name)
        written = {key: write_array(key, array) for key, array in outputs.items()}
        return Response(msgspec.json.encode({"outputs": written}), JSON)
