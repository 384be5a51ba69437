"""What every method does, in plain Python over messages and arrays; no transport.

A server (gRPC, REST) parses, calls one of these with the request's context and writes the
answer. Errors are `contract.errors`, with the code and words of TensorFlow Serving's method.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Protocol

from contract.errors import PermissionDeniedError, RequestError, UnimplementedError
from contract.servable import DEFAULT_SIGNATURE_NAME, ModelSpec
from contract.signature import Array, Batch
from contract.wire.examples import ExamplesRequest
from contract.wire.plumbline_wire import inference_pb2, status_pb2
from contract.wire.predict import PredictCall, model_spec_from_proto, model_spec_to_proto
from contract.wire.signatures import SIGNATURE_DEF_FIELD, metadata_response
from serving.api.results import (
    EXAMPLES_METHODS,
    INPUTS,
    ExamplesMethod,
    ExamplesResult,
)
from serving.config.models import ModelConfig, model_configs_from_message
from serving.config.server import ServerConfig
from serving.context import NO_CONTEXT, RequestContext
from serving.engines.servable import Servable
from serving.engines.signatures import (
    UNKNOWN_IN_EXAMPLES,
    UNKNOWN_IN_MULTI_INFERENCE,
    UNKNOWN_IN_PREDICT,
    SignatureCheck,
    check_method_name,
    serialize_examples,
)
from serving.engines.thread_pool import ThreadPool
from serving.observer import Observer

if TYPE_CHECKING:
    from contract.shadow import ShadowFigures, ShadowRow
    from contract.wire.plumbline_wire import metadata_pb2, shadow_pb2
    from contract.wire.plumbline_wire.example_pb2 import Input
    from serving.api.request_log import RequestLog
    from serving.api.shadow import Shadow, ShadowOrder
    from serving.versions.states import ListedModel, VersionStatus

LARGE_BYTES = 64 * 1024
"""Outputs from here on count for the memory that a call may hold."""

MANY_RESULTS = 4096
"""Scores and labels from here on are made messages on a thread."""


class Manager(Protocol):
    """What handlers need of a `ServableManager`."""

    def acquire(self, spec: ModelSpec) -> AbstractContextManager[Servable]:
        """Holds the servable that a request asks for.

        Raises:
            RequestError: No name, or an unknown label.
            ServableNotFoundError: Nothing AVAILABLE answers to it.
            ServableUnavailableError: The model's first load has not been decided yet.
        """
        ...

    def list_states(self, name: str, version: int | None = None) -> Sequence[VersionStatus]:
        """The states of a model's versions, the highest first.

        Raises:
            ServableNotFoundError: The model or version is not known.
        """
        ...

    def list_models(self) -> Sequence[ListedModel]:
        """The models of the configuration in force, by name, with their versions' statuses."""
        ...

    def reload(self, models: Sequence[ModelConfig]) -> None:
        """Replaces the configuration and waits until new models are AVAILABLE; blocks."""
        ...

    async def shadow(
        self, order: ShadowOrder, lease_s: float
    ) -> tuple[ShadowFigures, Sequence[ShadowRow]]:
        """Has every process shadow a version for so long, or end it if that is 0.

        Returns:
            What all saw so far, and, once it has ended, the worst rows.

        Raises:
            PlumblineError: Another order is under way.
        """
        ...


class Handlers:
    """The methods of PredictionService and of ModelService.

    Attributes:
        acquire: See `Manager.acquire`.
        observer: Is told of every request.
        list_models: See `Manager.list_models`.
        pool: Threads for what is not quick.
        request_log: Is offered every request that was answered; None when nothing is logged.
        shadow: Is offered every call that was answered; None while no version is shadowed.
    """

    def __init__(
        self,
        manager: Manager,
        config: ServerConfig,
        metrics: Observer,
        *,
        request_log: RequestLog | None = None,
    ) -> None:
        self.acquire = manager.acquire
        self.observer = metrics
        self.pool = ThreadPool(
            num_processes=config.workers, max_queued_calls=config.max_queued_calls
        )
        self.request_log = request_log
        self.list_models = manager.list_models
        self.shadow: Shadow | None = None
        self._manager = manager
        self._is_method_checked = config.enable_signature_method_name_check
        self._is_reload_enabled = config.enable_reload_config or config.strict_compat

    def set_shadow(self, shadow: Shadow | None) -> None:
        """Has calls offered to a shadow from now on, or to nobody."""
        self.shadow = shadow

    def close(self) -> None:
        """Ends the threads, once what runs on them is done."""
        self.pool.close()
        if self.shadow is not None:
            self.shadow.close()
        if self.request_log is not None:
            self.request_log.close()

    def predict_again(
        self, call: PredictCall, context: RequestContext
    ) -> tuple[SignatureCheck, Batch] | None:
        """`predict` of a call that differs from one before in values alone, if it is quick.

        Returns:
            As `predict`; None if that must be asked.
        """
        form = call.form
        if form is None:
            return None
        with self.acquire(call.model_spec) as servable:
            answered = servable.answer_again(form, call.decode_inputs, context)
        if answered is not None:
            _reserve_outputs(answered[1], context)
            if self.shadow is not None:
                self.shadow.offer(
                    call.model_spec, answered[0], call.decode_inputs, call.output_filter
                )
        return answered

    async def predict(
        self, call: PredictCall, *, context: RequestContext = NO_CONTEXT
    ) -> tuple[SignatureCheck, Batch]:
        """Predict over gRPC: the signature that answers, and the outputs."""
        spec = call.model_spec
        with self.acquire(spec) as servable:
            check = servable.checks.find(spec.signature_name, UNKNOWN_IN_PREDICT)
            check.check_names(call.input_names)
            if call.is_quick:
                given = call.decode_inputs(reserve=context.reserve)
            else:
                decode = partial(call.decode_inputs, reserve=context.reserve)
                given = await self.pool.run(decode, context=context)
            inputs = check.complete(given)
            if call.output_filter:
                check.check_filter(call.output_filter)
            outputs = await servable.answer(
                check.name,
                inputs,
                output_filter=call.output_filter,
                pool=self.pool,
                context=context,
            )
            if call.form is not None and inputs is given:
                servable.remember(call.form, check, inputs, call.output_filter)
        _reserve_outputs(outputs, context)
        if self.shadow is not None:
            self.shadow.offer(spec, check, lambda: given, call.output_filter)
        return check, outputs

    async def predict_arrays(
        self,
        servable: Servable,
        check: SignatureCheck,
        inputs: Mapping[str, Array],
        *,
        output_filter: Sequence[str] = (),
        asked: ModelSpec | None = None,
        context: RequestContext = NO_CONTEXT,
    ) -> Batch:
        """Predict of arrays, of a servable that the caller holds; all outputs without a filter.

        `asked` is what the caller named; without it the call is taken for one that names a version.
        """
        check.check_names(inputs)
        if output_filter:
            check.check_filter(output_filter)
        outputs = await servable.answer(
            check.name,
            check.complete(inputs),
            output_filter=output_filter,
            pool=self.pool,
            context=context,
        )
        if self.request_log is not None:
            self.request_log.offer_arrays(check.answer_spec, inputs, outputs)
        if self.shadow is not None and asked is not None:
            self.shadow.offer(asked, check, lambda: inputs)
        return outputs

    async def answer_examples(
        self,
        method: ExamplesMethod,
        spec: ModelSpec,
        given: Input | Array,
        *,
        context: RequestContext = NO_CONTEXT,
    ) -> tuple[ModelSpec, ExamplesResult]:
        """Classify or Regress of an `Input`, or of its rows: who answered, and the result."""
        with self.acquire(spec) as servable:
            check = servable.checks.find(spec.signature_name, UNKNOWN_IN_EXAMPLES)
            if self._is_method_checked:
                check_method_name(check.proto, method.name, method.method_name)
            wanted = method.check_signature(check.proto)
            examples = serialize_examples(given, context.reserve)
            self.observer.observe_examples(servable.id.name, len(examples))
            outputs = await servable.answer(
                check.name,
                {INPUTS: examples},
                output_filter=wanted,
                pool=self.pool,
                context=context,
            )
            result = await self._make_result(method, outputs, len(examples), context)
        if self.shadow is not None:
            self.shadow.offer(spec, check, lambda: {INPUTS: examples}, wanted)
        return check.answer_spec, result

    async def _make_result(
        self, method: ExamplesMethod, outputs: Batch, num_examples: int, context: RequestContext
    ) -> ExamplesResult:
        if sum(array.size for array in outputs.values()) < MANY_RESULTS:
            return method.make_result(outputs, num_examples)
        make = partial(method.make_result, outputs, num_examples)
        return await self.pool.run(make, context=context)

    async def answer_request(
        self,
        method: ExamplesMethod,
        request: ExamplesRequest,
        *,
        context: RequestContext = NO_CONTEXT,
    ) -> inference_pb2.ClassificationResponse | inference_pb2.RegressionResponse:
        """Classify or Regress over gRPC."""
        spec, result = await self.answer_examples(
            method, _read_model_spec(request.message), request.rows, context=context
        )
        response: inference_pb2.ClassificationResponse | inference_pb2.RegressionResponse
        response = method.rpc.response(model_spec=model_spec_to_proto(spec), result=result)
        return response

    async def multi_infer(
        self, request: ExamplesRequest, *, context: RequestContext = NO_CONTEXT
    ) -> inference_pb2.MultiInferenceResponse:
        """A MultiInferenceResponse for a MultiInferenceRequest.

        The tasks must name one model and different signatures
        (`servables/tensorflow/multi_inference.cc`).
        """
        tasks = request.message.tasks
        spec = model_spec_from_proto(tasks[0].model_spec) if tasks else ModelSpec("")
        response = inference_pb2.MultiInferenceResponse()
        with self.acquire(spec) as servable:
            plan = _plan_tasks(tasks, servable)
            examples = serialize_examples(request.rows, context.reserve)
            for method, check, wanted in plan:
                outputs = await servable.answer(
                    check.name,
                    {INPUTS: examples},
                    output_filter=wanted,
                    pool=self.pool,
                    context=context,
                )
                result = response.results.add(model_spec=model_spec_to_proto(check.answer_spec))
                made = await self._make_result(method, outputs, len(examples), context)
                getattr(result, f"{method.name}_result").CopyFrom(made)
                if self.shadow is not None:
                    self.shadow.offer(spec, check, lambda: {INPUTS: examples}, wanted)
        self.observer.observe_examples(spec.name, len(examples))
        return response

    async def get_model_metadata(
        self, request: metadata_pb2.GetModelMetadataRequest
    ) -> metadata_pb2.GetModelMetadataResponse:
        """A GetModelMetadataResponse for a GetModelMetadataRequest."""
        spec = _read_model_spec(request)
        if not request.metadata_field:
            raise RequestError("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != SIGNATURE_DEF_FIELD:
                raise RequestError(f"Metadata field {field} is not supported")
        with self.acquire(spec) as servable:
            answer_spec = ModelSpec(servable.id.name, version=servable.id.version)
            response: metadata_pb2.GetModelMetadataResponse = metadata_response(
                answer_spec, servable.signature_defs.signature_def
            )
            return response

    async def get_model_status(
        self, request: status_pb2.GetModelStatusRequest
    ) -> status_pb2.GetModelStatusResponse:
        """A GetModelStatusResponse for a GetModelStatusRequest.

        A version label is not looked at, as in TensorFlow Serving
        (`model_servers/get_model_status_impl.cc`).
        """
        spec = _read_model_spec(request)
        return self.describe_versions(spec.name, spec.version)

    def describe_versions(
        self, name: str, version: int | None
    ) -> status_pb2.GetModelStatusResponse:
        """A GetModelStatusResponse of one version of a model, or of all."""
        return statuses_to_proto(self._manager.list_states(name, version))

    async def reload_config(
        self, request: status_pb2.ReloadConfigRequest
    ) -> status_pb2.ReloadConfigResponse:
        """A ReloadConfigResponse for a ReloadConfigRequest, once new models are AVAILABLE."""
        if not self._is_reload_enabled:
            raise PermissionDeniedError(
                "HandleReloadConfigRequest is off; start the server with --enable_reload_config"
            )
        if request.config.WhichOneof("config") != "model_config_list":
            raise RequestError(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
                "ModelConfigList is currently supported"
            )
        models = model_configs_from_message(request.config)
        await asyncio.to_thread(self._manager.reload, models)
        response = status_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        for name in request.metric_names:
            response.metric.add(name=name, int64_value_increase=0)
        return response

    async def shadow_version(self, request: shadow_pb2.ShadowRequest) -> shadow_pb2.ShadowResponse:
        """A ShadowResponse for a ShadowRequest; who may reload may ask for it."""
        from contract.wire.shadow import write_shadow_response  # of no use to predictions
        from serving.api.shadow import read_order

        if not self._is_reload_enabled:
            raise PermissionDeniedError(
                "Shadow is off; start the server with --enable_reload_config"
            )
        order = read_order(request)
        if request.lease_s:
            with self.acquire(ModelSpec(order.model_name, order.version)):
                pass  # it is AVAILABLE
        return write_shadow_response(*await self._manager.shadow(order, request.lease_s))


def statuses_to_proto(statuses: Iterable[VersionStatus]) -> status_pb2.GetModelStatusResponse:
    """A GetModelStatusResponse of these versions."""
    response = status_pb2.GetModelStatusResponse()
    for status in statuses:
        response.model_version_status.add(
            version=status.version,
            state=int(status.state),
            status=status_pb2.StatusProto(
                error_code=status.code.name, error_message=status.message
            ),
        )
    return response


def _reserve_outputs(outputs: Batch, context: RequestContext) -> None:
    size = 0
    for array in outputs.values():
        size += array.nbytes
    if size >= LARGE_BYTES:
        context.reserve(2 * size)  # the message too


def _read_model_spec(
    request: metadata_pb2.GetModelMetadataRequest
    | status_pb2.GetModelStatusRequest
    | inference_pb2.ClassificationRequest
    | inference_pb2.RegressionRequest,
) -> ModelSpec:
    """The ModelSpec of a request."""
    if not request.HasField("model_spec"):
        raise RequestError("Missing ModelSpec")
    return model_spec_from_proto(request.model_spec)


def _plan_tasks(
    tasks: Sequence[inference_pb2.InferenceTask], servable: Servable
) -> list[tuple[ExamplesMethod, SignatureCheck, tuple[str, ...]]]:
    """For each task what to make, of whom, and the outputs to ask for."""
    plan = []
    seen = set()
    for task in tasks:
        if not task.model_spec.name:
            raise RequestError("Found ModelSpec with an empty model name.")
        if task.model_spec.name != tasks[0].model_spec.name:
            raise RequestError(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE_NAME
        if name in seen:
            raise RequestError(f"Duplicate evaluation of signature: {name}")
        seen.add(name)
        check = servable.checks.find(name, UNKNOWN_IN_MULTI_INFERENCE)
        method = EXAMPLES_METHODS.get(task.method_name)
        if method is None:
            raise UnimplementedError(f"Unsupported signature method_name: {task.method_name}")
        plan.append((method, check, method.check_signature(check.proto)))
    return plan
