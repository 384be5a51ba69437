"""The methods of the REST server: bodies in, bodies out, around `Handlers`."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from contract.errors import RequestError
from contract.servable import ModelSpec
from contract.wire.predict import model_spec_to_proto
from serving.api.handlers import Handlers, statuses_to_proto
from serving.api.results import CLASSIFICATION, REGRESSION, ExamplesMethod
from serving.config.server import ServerConfig
from serving.context import NO_CONTEXT, RequestContext
from serving.engines.signatures import UNKNOWN_IN_REST
from serving.rest.answers import (
    encode_classification,
    encode_columns,
    encode_document,
    encode_regression,
    encode_rows,
)
from serving.rest.json_text import may_hold_booleans, parse_json_object
from serving.rest.paths import Target
from serving.rest.pieces import CUT_BYTES, PieceReader, cut_body
from serving.rest.requests import read_examples, read_inputs, read_signature_name
from serving.rest.weighing import weigh_answer, weigh_json

if TYPE_CHECKING:
    from google.protobuf.message import Message

Result = TypeVar("Result")
Body: TypeAlias = bytes | bytearray
Verb: TypeAlias = Callable[[ModelSpec, Body, RequestContext], Awaitable[bytes]]

LARGE_BYTES = 64 * 1024
"""Bodies from here on are read and written on a thread, so that they hold up nobody else."""


class RestMethods:
    """What a REST request asks for, done."""

    def __init__(self, handlers: Handlers, config: ServerConfig) -> None:
        self._handlers = handlers
        self._is_listing = not config.strict_compat
        self._max_depth = config.max_json_depth
        self._pieces = PieceReader(max_depth=config.max_json_depth)
        self._verbs: dict[str, Verb] = {
            "predict": self._predict,
            "classify": partial(self._answer_examples, CLASSIFICATION, encode_classification),
            "regress": partial(self._answer_examples, REGRESSION, encode_regression),
        }
        self._describe_signatures: Verb = self._answer_metadata
        if handlers.is_on_demand:
            self._verbs = {name: self._wait_with(verb) for name, verb in self._verbs.items()}
            self._describe_signatures = self._wait_with(self._describe_signatures)

    async def answer(
        self, method: str, target: Target, body: Body, *, context: RequestContext = NO_CONTEXT
    ) -> bytes | None:
        """The body of the answer; None when there is no such thing to ask for."""
        if method == "GET":
            return await self._describe(target, context)
        verb = self._verbs.get(target.verb)
        return None if verb is None else await verb(target.spec, body, context)

    def _wait_with(self, verb: Verb) -> Verb:
        """`verb`, once the model is loaded that it asks (`--load_on_demand`)."""
        from serving.api.waiting import answer_when_loaded

        async def wait(spec: ModelSpec, body: Body, context: RequestContext) -> bytes:
            call = partial(verb, spec, body, context)
            return await answer_when_loaded(self._handlers, call, context, spec)

        return wait

    async def _predict(self, spec: ModelSpec, body: Body, context: RequestContext) -> bytes:
        cut = cut_body(body) if len(body) >= CUT_BYTES else None
        document = await self._parse(body, context) if cut is None else cut.document
        name = read_signature_name(document)
        with self._handlers.acquire(spec) as servable:
            check = servable.checks.find(name, UNKNOWN_IN_REST)
            if not check.input_names:
                raise RequestError(f"Failed to get input map for signature: {name or 'DEFAULT'}")
            inputs = None
            if cut is not None:
                by_row = cut.is_row_format
                inputs = await self._pieces.read(cut, check.input_dtypes, context.reserve)
                if inputs is None:
                    document = await self._parse(body, context)
            if inputs is None:
                read = partial(
                    read_inputs,
                    document,
                    check.input_dtypes,
                    has_booleans=may_hold_booleans(body),
                )
                found = await self._run(read, len(body), context)
                inputs, by_row = found
            outputs = await self._handlers.predict_arrays(
                servable, check, inputs, asked=spec, context=context
            )
        encode = encode_rows if by_row else encode_columns
        size = sum(array.nbytes for array in outputs.values())
        if size >= LARGE_BYTES:
            context.reserve(weigh_answer(outputs))
        return await self._run(lambda: encode(outputs), size, context)

    async def _answer_examples(
        self,
        method: ExamplesMethod,
        encode: Callable[[Any], bytes],
        spec: ModelSpec,
        body: Body,
        context: RequestContext,
    ) -> bytes:
        document = await self._parse(body, context)
        spec = dataclasses.replace(spec, signature_name=read_signature_name(document))
        message = await self._run(lambda: read_examples(document), len(body), context)
        answered, result = await self._handlers.answer_examples(
            method, spec, message, context=context
        )
        if self._handlers.request_log is not None:
            self._handlers.request_log.offer_examples(method.rpc, spec, message, answered, result)
        return encode(result)

    async def _parse(self, body: Body, context: RequestContext) -> dict[str, Any]:
        def parse() -> dict[str, Any]:
            if len(body) >= LARGE_BYTES:
                context.reserve(weigh_json(body))
            return parse_json_object(body, max_depth=self._max_depth)

        return await self._run(parse, len(body), context)

    async def _run(
        self, call: Callable[[], Result], num_bytes: int, context: RequestContext
    ) -> Result:
        if num_bytes < LARGE_BYTES:
            return call()
        return await self._handlers.pool.run(call, context=context)

    async def _describe(self, target: Target, context: RequestContext) -> bytes:
        spec = target.spec
        if self._is_listing and spec == _EVERY_MODEL and not target.verb:
            return self._list_models()
        if not spec.name:
            raise RequestError("Missing model name in request.")
        if target.verb != "metadata":
            response = self._handlers.describe_versions(spec.name, spec.version)
            return encode_document(_to_dict(response))
        return await self._describe_signatures(spec, b"", context)

    async def _answer_metadata(
        self, spec: ModelSpec, _body: Body, _context: RequestContext
    ) -> bytes:
        with self._handlers.acquire(spec) as servable:
            answer_spec = ModelSpec(servable.id.name, version=servable.id.version)
            document = {
                "model_spec": _to_dict(model_spec_to_proto(answer_spec)),
                "metadata": {"signature_def": _to_dict(servable.signature_defs)},
            }
        return encode_document(document)

    def _list_models(self) -> bytes:
        """Every model, each as its own status tells it; no paths of this machine."""
        models = [
            {
                "name": model.name,
                "version_labels": {label: str(number) for label, number in model.labels.items()},
                **_to_dict(statuses_to_proto(model.versions)),
            }
            for model in self._handlers.list_models()
        ]
        return encode_document({"models": models})


_EVERY_MODEL = ModelSpec("")
"""What `/v1/models` asks for."""


def _to_dict(message: Message) -> dict[str, Any]:
    from google.protobuf import json_format  # of no use to predictions, and slow to import

    return json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
