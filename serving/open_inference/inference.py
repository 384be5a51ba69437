"""What the Open Inference Protocol asks for, done by the handlers of TensorFlow Serving's API.

No transport: gRPC and REST read a request into an `InferCall`, and write what comes back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

import msgspec

from contract.errors import (
    RequestError,
    ServableNotFoundError,
    ServableUnavailableError,
    SignatureNotFoundError,
    TensorMismatchError,
    UnimplementedError,
)
from contract.servable import MAX_VERSION, ModelSpec, VersionState
from contract.signature import Array, TensorSpec
from contract.wire.open_inference import SIGNATURE_NAME, find_datatype
from contract.wire.signatures import INIT_OP
from contract.wire.tensors import layout_of_name
from serving.api.handlers import Handlers
from serving.context import RequestContext
from serving.engines.servable import LITERT, TENSORFLOW, Servable
from serving.engines.signatures import UNKNOWN_IN_PREDICT, SignatureCheck
from serving.monitoring.health import Health
from serving.monitoring.metrics import find_product_version

Parameter: TypeAlias = "bool | int | float | str"
Parameters: TypeAlias = Mapping[str, Parameter]

_SERVER_NAME = "plumbline"
_EXTENSIONS = ("binary_tensor_data",)
_PLATFORMS = {LITERT: "litert_tflite", TENSORFLOW: "tensorflow_savedmodel"}


class ServerMetadata(msgspec.Struct, frozen=True):
    """Who answers.

    Attributes:
        name: Of the server's kind.
        version: Of the distribution.
        extensions: Of the protocol, by the names of those who made them.
    """

    name: str
    version: str
    extensions: tuple[str, ...]


class TensorMetadata(msgspec.Struct, frozen=True):
    """An input or output.

    Attributes:
        name: As requests have it.
        datatype: The protocol's; TensorFlow's name of what the protocol cannot carry.
        shape: Axis sizes, -1 for one that varies; [-1] for an unknown rank.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(msgspec.Struct, frozen=True):
    """One signature of a model.

    Attributes:
        name: The model's.
        versions: Those that are AVAILABLE, ascending.
        platform: What answers, and from which format.
        inputs: By name.
        outputs: By name.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class InferCall:
    """A request of which the tensors are not decoded yet.

    Attributes:
        model_spec: What is asked for.
        id: The caller's word for the request, which the answer repeats.
        input_names: In the request's order.
        decode: Makes arrays of the inputs, given what tells the memory budget of bytes that it
            takes; raises TensorMismatchError.
        is_quick: Whether that takes no time to speak of.
        output_names: The outputs wanted, in their order; empty for all.
    """

    model_spec: ModelSpec
    id: str
    input_names: tuple[str, ...]
    decode: Callable[[Callable[[int], None]], Mapping[str, Array]]
    is_quick: bool
    output_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Inference:
    """What a request is answered with.

    Attributes:
        model_name: Who answered.
        version: Which version of it.
        id: The request's.
        outputs: In the order that was asked for; each can be carried.
    """

    model_name: str
    version: str
    id: str
    outputs: tuple[InferOutput, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class InferOutput:
    """One output.

    Attributes:
        name: Its name.
        datatype: The protocol's.
        array: Its values.
    """

    name: str
    datatype: str
    array: Array


class OpenInference:
    """The protocol's methods, in plain Python.

    Args:
        handlers: Those of TensorFlow Serving's API.
        health: Of the server.

    Attributes:
        handlers: See above.
        health: See above.
    """

    def __init__(self, handlers: Handlers, health: Health) -> None:
        self.handlers = handlers
        self.health = health

    def describe_server(self) -> ServerMetadata:
        """Who answers."""
        return ServerMetadata(_SERVER_NAME, find_product_version(), _EXTENSIONS)

    def is_model_ready(self, spec: ModelSpec) -> bool:
        """Whether a model or a version of it is served; what nobody knows is not ready."""
        try:
            with self.handlers.acquire(spec):
                return True
        except (RequestError, ServableNotFoundError, ServableUnavailableError):
            return False

    def describe_model(self, spec: ModelSpec) -> ModelMetadata:
        """A signature of a model, and the versions that are served."""
        with self.handlers.acquire(spec) as servable:
            check = _find_check(servable, spec.signature_name)
            signature = servable.signatures[check.name]
            choice = servable.engines.get(check.name)
            name = servable.id.name
        states = self.handlers.describe_versions(name, None).model_version_status
        versions = sorted(row.version for row in states if int(row.state) == VersionState.AVAILABLE)
        return ModelMetadata(
            name=name,
            versions=tuple(map(str, versions)),
            platform=_PLATFORMS[TENSORFLOW if choice is None else choice.engine],
            inputs=tuple(map(_describe_tensor, signature.inputs.values())),
            outputs=tuple(map(_describe_tensor, signature.outputs.values())),
        )

    async def infer(self, call: InferCall, context: RequestContext) -> Inference:
        """Runs one signature of a model."""
        if context.notes is not None:
            context.notes.ask(call.model_spec)
        spec, handlers = call.model_spec, self.handlers
        with handlers.acquire(spec) as servable:
            check = _find_check(servable, spec.signature_name)
            check.check_names(call.input_names)
            if call.is_quick:
                inputs = call.decode(context.reserve)
            else:
                inputs = await handlers.pool.run(
                    lambda: call.decode(context.reserve), context=context
                )
            outputs = await handlers.predict_arrays(
                servable,
                check,
                inputs,
                output_filter=call.output_names,
                asked=spec,
                context=context,
            )
        answered = check.answer_spec
        return Inference(
            model_name=answered.name,
            version=str(answered.version),
            id=call.id,
            outputs=tuple(
                _make_output(name, outputs[name]) for name in call.output_names or sorted(outputs)
            ),
        )


def make_spec(name: str, version: str, signature_name: str = "") -> ModelSpec:
    """What a request asks for; a version that is no number is a label."""
    if not version:
        return ModelSpec(name, signature_name=signature_name)
    if version.isascii() and version.isdigit():
        number = int(version) if len(version.lstrip("0")) < 20 else MAX_VERSION + 1
        if number > MAX_VERSION:
            raise RequestError(f"Failed to convert version: {version} to numeric.")
        return ModelSpec(name, version=number, signature_name=signature_name)
    return ModelSpec(name, version_label=version, signature_name=signature_name)


def read_signature_name(parameters: Parameters) -> str:
    """The signature that a request's parameters name; "" for `serving_default`."""
    name = parameters.get(SIGNATURE_NAME, "")
    if not isinstance(name, str):
        raise RequestError(f"the parameter {SIGNATURE_NAME} must be a string; got {name!r}")
    return name


def refuse_sequence(parameters: Parameters) -> None:
    """Requests that go together in order: the models here remember nothing between calls."""
    if parameters.get("sequence_id"):
        raise UnimplementedError(
            "sequences of requests (sequence_id) are not implemented: no model here remembers "
            "anything between calls"
        )


def refuse_tensor_parameters(name: str, parameters: Collection[str]) -> None:
    """Extensions of Triton's that would change what a tensor is, by their names."""
    if "classification" in parameters:
        raise UnimplementedError(
            f"output {name!r}: classification (class_count) is not implemented; ask for the "
            "output itself and sort it"
        )
    if any(key.startswith("shared_memory_") for key in parameters):
        raise UnimplementedError(
            f"tensor {name!r}: shared memory is not implemented; send and fetch it in the message"
        )


def check_input_names(names: Sequence[str]) -> None:
    """A name given twice would hide a tensor."""
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"input {twice!r} is given twice")


def name_failure(name: str, error: TensorMismatchError) -> TensorMismatchError:
    """The error of one input among others."""
    return TensorMismatchError(f"input {name!r}: {error.message}")


def _find_check(servable: Servable, signature_name: str) -> SignatureCheck:
    try:
        return servable.checks.find(signature_name, UNKNOWN_IN_PREDICT)
    except SignatureNotFoundError as error:
        known = ", ".join(sorted(servable.signatures.keys() - {INIT_OP}))
        raise SignatureNotFoundError(
            f"{error.message} The signatures are {known}; the parameter {SIGNATURE_NAME} names one",
            code=error.code,
        ) from None


def _describe_tensor(spec: TensorSpec) -> TensorMetadata:
    shape = (None,) if spec.shape is None else spec.shape
    return TensorMetadata(
        spec.name, _name_datatype(spec.dtype), tuple(-1 if n is None else n for n in shape)
    )


def _name_datatype(dtype: str) -> str:
    """The datatype of a TensorSpec's dtype; its own name where there is none."""
    try:
        return find_datatype(layout_of_name(dtype).dtype) or dtype
    except TensorMismatchError:  # TensorFlow's own, as DT_RESOURCE
        return dtype


def _make_output(name: str, array: Array) -> InferOutput:
    datatype = find_datatype(array.dtype)
    if datatype is None:
        raise UnimplementedError(
            f"output {name!r} is {array.dtype}, which the Open Inference Protocol cannot carry; "
            "name other outputs in the request, or ask by TensorFlow Serving's API"
        )
    return InferOutput(name, datatype, array)
