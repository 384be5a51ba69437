"""The methods of the REST server: bodies in, bodies out, around `Handlers`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from contract.errors import RequestError
from contract.servable import ModelSpec
from contract.wire.plumbline_wire import example_pb2
from contract.wire.predict import model_spec_to_proto
from contract.wire.rpc import CLASSIFY, REGRESS
from serving.api.handlers import Handlers
from serving.config.server import ServerConfig
from serving.engines.signatures import UNKNOWN_IN_REST
from serving.rest.answers import (
    encode_classification,
    encode_columns,
    encode_document,
    encode_regression,
    encode_rows,
)
from serving.rest.json_text import parse_json_object
from serving.rest.paths import Target
from serving.rest.requests import read_examples, read_inputs, read_signature_name

Result = TypeVar("Result")

LARGE_BYTES = 64 * 1024
"""Bodies from here on are read and written on a thread, so that they hold up nobody else."""


class RestMethods:
    """What a REST request asks for, done.

    Args:
        handlers: What answers.
        config: Limits.
    """

    def __init__(self, handlers: Handlers, config: ServerConfig) -> None:
        self._handlers = handlers
        self._max_depth = config.max_json_depth
        self._verbs: dict[str, Callable[[ModelSpec, bytes], Awaitable[bytes]]] = {
            "predict": self._predict,
            "classify": self._classify,
            "regress": self._regress,
        }

    async def answer(self, method: str, target: Target, body: bytes) -> bytes | None:
        """The body of the answer; None when there is no such thing to ask for."""
        if method == "GET":
            return self._describe(target)
        verb = self._verbs.get(target.verb)
        return None if verb is None else await verb(target.spec, body)

    async def _predict(self, spec: ModelSpec, body: bytes) -> bytes:
        document = await self._parse(body)
        name = read_signature_name(document)
        with self._handlers.acquire(spec) as servable:
            check = servable.checks.find(name, UNKNOWN_IN_REST)
            if not check.input_names:
                raise RequestError(f"Failed to get input map for signature: {name or 'DEFAULT'}")
            inputs, by_row = await self._run(
                lambda: read_inputs(document, check.input_dtypes), len(body)
            )
            outputs = await self._handlers.predict_arrays(servable, check, inputs)
        encode = encode_rows if by_row else encode_columns
        size = sum(array.nbytes for array in outputs.values())
        return await self._run(lambda: encode(outputs), size)

    async def _classify(self, spec: ModelSpec, body: bytes) -> bytes:
        spec, message = await self._read_examples(spec, body)
        answered, result = await self._handlers.inference.classify_examples(spec, message)
        if self._handlers.request_log is not None:
            self._handlers.request_log.offer_examples(CLASSIFY, spec, message, answered, result)
        return encode_classification(result)

    async def _regress(self, spec: ModelSpec, body: bytes) -> bytes:
        spec, message = await self._read_examples(spec, body)
        answered, result = await self._handlers.inference.regress_examples(spec, message)
        if self._handlers.request_log is not None:
            self._handlers.request_log.offer_examples(REGRESS, spec, message, answered, result)
        return encode_regression(result)

    async def _read_examples(
        self, spec: ModelSpec, body: bytes
    ) -> tuple[ModelSpec, example_pb2.Input]:
        document = await self._parse(body)
        spec = ModelSpec(spec.name, spec.version, spec.version_label, read_signature_name(document))
        return spec, await self._run(lambda: read_examples(document), len(body))

    async def _parse(self, body: bytes) -> dict[str, Any]:
        return await self._run(
            lambda: parse_json_object(body, max_depth=self._max_depth), len(body)
        )

    async def _run(self, call: Callable[[], Result], num_bytes: int) -> Result:
        if num_bytes < LARGE_BYTES:
            return call()
        return await self._handlers.pool.run(call)

    def _describe(self, target: Target) -> bytes:
        spec = target.spec
        if not spec.name:
            raise RequestError("Missing model name in request.")
        if target.verb == "metadata":
            return self._describe_metadata(spec)
        response = self._handlers.models.describe_versions(spec.name, spec.version)
        return encode_document(_to_dict(response))

    def _describe_metadata(self, spec: ModelSpec) -> bytes:
        with self._handlers.acquire(spec) as servable:
            answer_spec = ModelSpec(servable.id.name, version=servable.id.version)
            document = {
                "model_spec": _to_dict(model_spec_to_proto(answer_spec)),
                "metadata": {"signature_def": _to_dict(servable.signature_defs)},
            }
        return encode_document(document)


def _to_dict(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
