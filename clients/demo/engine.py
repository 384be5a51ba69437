"""The engine in Python: TFLite on this machine, asked and answering in the server's own JSON."""

from __future__ import annotations

import json
from typing import Any

from clients.core.rest_dialect import read_array, write_array
from clients.on_device import OnDevicePredictor
from clients.web.server import Request, Response
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
            body: dict[str, Any] = json.loads(request.body)
            name, given = str(body["signature_name"]), body["inputs"]
            specs = find_signature(self._predictor.signatures, name).inputs
            batch = {key: read_array(key, given[key], spec) for key, spec in specs.items()}
        except (ValueError, RecursionError, KeyError, TypeError, InternalError) as error:
            raise RequestError(f"the page asked what cannot be read: {error}") from None
        outputs = self._predictor.predict(batch, signature_name=name)
        written = {key: write_array(key, array) for key, array in outputs.items()}
        # As the server: NaN and Infinity as bare words, which are no JSON and lose nothing.
        return Response(json.dumps({"outputs": written}).encode(), JSON)
