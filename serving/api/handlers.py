"""What every method does, in plain Python over messages and arrays; no transport.

A server (gRPC, REST) parses, calls one of these and writes the answer. Errors are
`contract.errors`, with the code and words of TensorFlow Serving's method.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TypeAlias

from contract.errors import PermissionDeniedError, RequestError, UnimplementedError
from contract.servable import DEFAULT_SIGNATURE_NAME, ModelSpec
from contract.signature import CLASSIFY_METHOD, REGRESS_METHOD, Array, Batch
from contract.wire.plumbline_wire import inference_pb2, status_pb2
from contract.wire.predict import PredictCall, model_spec_from_proto, model_spec_to_proto
from contract.wire.signatures import SIGNATURE_DEF_FIELD, metadata_response
from serving.api.results import (
    INPUTS,
    check_classify_signature,
    check_regress_signature,
    make_classification_result,
    make_regression_result,
)
from serving.config.models import ModelConfig, model_configs_from_message
from serving.config.server import ServerConfig
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
    from contract.wire.plumbline_wire import metadata_pb2
    from contract.wire.plumbline_wire.example_pb2 import Input
    from serving.api.request_log import RequestLog
    from serving.versions.states import VersionStatus


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

    def reload(self, models: Sequence[ModelConfig]) -> None:
        """Replaces the configuration and waits until new models are AVAILABLE; blocks.

        Raises:
            PlumblineError: See `ServableManager.reload`.
        """
        ...


HasModelSpec: TypeAlias = (
    "metadata_pb2.GetModelMetadataRequest | status_pb2.GetModelStatusRequest"
    " | inference_pb2.ClassificationRequest | inference_pb2.RegressionRequest"
)


class Handlers:
    """The methods of PredictionService and, in `models`, of ModelService.

    Args:
        manager: Who holds the servables.
        config: Limits and switches.
        metrics: Is told of every request.
        request_log: Is offered every request that was answered; None when nothing is logged.

    Attributes:
        inference: Classify, Regress and MultiInference.
        models: GetModelStatus and HandleReloadConfigRequest.
        observer: Who was given as `metrics`, for the servers.
        pool: Threads for what is not quick.
    """

    def __init__(
        self,
        manager: Manager,
        config: ServerConfig,
        metrics: Observer,
        *,
        request_log: RequestLog | None = None,
    ) -> None:
        self.request_log = request_log
        self._manager = manager
        self.pool = ThreadPool(max_queued_calls=config.max_queued_calls)
        self.observer = metrics
        self.inference = InferenceHandlers(
            manager,
            metrics,
            self.pool,
            is_method_checked=config.enable_signature_method_name_check,
        )
        self.models = ModelHandlers(
            manager, is_reload_enabled=config.enable_reload_config or config.strict_compat
        )

    def close(self) -> None:
        """Ends the threads, once what runs on them is done."""
        self.pool.close()
        if self.request_log is not None:
            self.request_log.close()

    def acquire(self, spec: ModelSpec) -> AbstractContextManager[Servable]:
        """See `Manager.acquire`."""
        return self._manager.acquire(spec)

    async def predict(self, call: PredictCall) -> tuple[ModelSpec, Batch]:
        """Predict over gRPC."""
        spec = call.model_spec
        with self._manager.acquire(spec) as servable:
            check = servable.checks.find(spec.signature_name, UNKNOWN_IN_PREDICT)
            check.check_names(call.input_names)
            inputs = check.complete(call.decode_inputs())
            if call.output_filter:
                check.check_filter(call.output_filter)
            outputs = await servable.answer(
                check.name, inputs, output_filter=call.output_filter, pool=self.pool
            )
        return check.answer_spec, outputs

    async def predict_arrays(
        self, servable: Servable, check: SignatureCheck, inputs: Mapping[str, Array]
    ) -> Batch:
        """Predict over REST, of a servable that the caller holds; all outputs."""
        check.check_names(inputs)
        outputs = await servable.answer(check.name, check.complete(inputs), pool=self.pool)
        if self.request_log is not None:
            self.request_log.offer_arrays(check.answer_spec, inputs, outputs)
        return outputs

    def get_model_metadata(
        self, request: metadata_pb2.GetModelMetadataRequest
    ) -> metadata_pb2.GetModelMetadataResponse:
        """A GetModelMetadataResponse for a GetModelMetadataRequest."""
        spec = read_model_spec(request)
        if not request.metadata_field:
            raise RequestError("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != SIGNATURE_DEF_FIELD:
                raise RequestError(f"Metadata field {field} is not supported")
        with self._manager.acquire(spec) as servable:
            answer_spec = ModelSpec(servable.id.name, version=servable.id.version)
            response: metadata_pb2.GetModelMetadataResponse = metadata_response(
                answer_spec, servable.signature_defs.signature_def
            )
            return response


class InferenceHandlers:
    """The methods of PredictionService that take tf.Examples: labelled scores or numbers out.

    Args:
        manager: Who holds the servables.
        observer: Is told how many examples came.
        pool: Threads for runs that are not quick.
        is_method_checked: `--enable_signature_method_name_check`.
    """

    def __init__(
        self,
        manager: Manager,
        observer: Observer,
        pool: ThreadPool,
        *,
        is_method_checked: bool = False,
    ) -> None:
        self._is_method_checked = is_method_checked
        self._manager = manager
        self._observer = observer
        self._pool = pool

    async def classify(
        self, request: inference_pb2.ClassificationRequest
    ) -> inference_pb2.ClassificationResponse:
        """A ClassificationResponse for a ClassificationRequest."""
        spec, result = await self.classify_examples(read_model_spec(request), request.input)
        return inference_pb2.ClassificationResponse(
            model_spec=model_spec_to_proto(spec), result=result
        )

    async def regress(
        self, request: inference_pb2.RegressionRequest
    ) -> inference_pb2.RegressionResponse:
        """A RegressionResponse for a RegressionRequest."""
        spec, result = await self.regress_examples(read_model_spec(request), request.input)
        return inference_pb2.RegressionResponse(model_spec=model_spec_to_proto(spec), result=result)

    async def classify_examples(
        self, spec: ModelSpec, message: Input
    ) -> tuple[ModelSpec, inference_pb2.ClassificationResult]:
        """Who answered, and a ClassificationResult, for an `Input`."""
        with self._manager.acquire(spec) as servable:
            check = servable.checks.find(spec.signature_name, UNKNOWN_IN_EXAMPLES)
            if self._is_method_checked:
                check_method_name(check.proto, "classification", CLASSIFY_METHOD)
            wanted = check_classify_signature(check.proto)
            outputs, count = await self._run_examples(servable, check, message, wanted)
        return check.answer_spec, make_classification_result(outputs, count)

    async def regress_examples(
        self, spec: ModelSpec, message: Input
    ) -> tuple[ModelSpec, inference_pb2.RegressionResult]:
        """Who answered, and a RegressionResult, for an `Input`."""
        with self._manager.acquire(spec) as servable:
            check = servable.checks.find(spec.signature_name, UNKNOWN_IN_EXAMPLES)
            if self._is_method_checked:
                check_method_name(check.proto, "regression", REGRESS_METHOD)
            wanted = check_regress_signature(check.proto)
            outputs, count = await self._run_examples(servable, check, message, wanted)
        return check.answer_spec, make_regression_result(outputs, count)

    async def multi_infer(
        self, request: inference_pb2.MultiInferenceRequest
    ) -> inference_pb2.MultiInferenceResponse:
        """A MultiInferenceResponse for a MultiInferenceRequest.

        The tasks must name one model and different signatures
        (`servables/tensorflow/multi_inference.cc`).
        """
        spec = (
            model_spec_from_proto(request.tasks[0].model_spec) if request.tasks else ModelSpec("")
        )
        response = inference_pb2.MultiInferenceResponse()
        with self._manager.acquire(spec) as servable:
            plan = _plan_tasks(request.tasks, servable)
            examples = serialize_examples(request.input)
            for task, (check, wanted) in zip(request.tasks, plan, strict=True):
                outputs = await servable.answer(
                    check.name, {INPUTS: examples}, output_filter=wanted, pool=self._pool
                )
                result = response.results.add(model_spec=model_spec_to_proto(check.answer_spec))
                if task.method_name == CLASSIFY_METHOD:
                    classified = make_classification_result(outputs, len(examples))
                    result.classification_result.CopyFrom(classified)
                else:
                    regressed = make_regression_result(outputs, len(examples))
                    result.regression_result.CopyFrom(regressed)
        self._observer.observe_examples(spec.name, len(examples))
        return response

    async def _run_examples(
        self, servable: Servable, check: SignatureCheck, message: Input, wanted: tuple[str, ...]
    ) -> tuple[Batch, int]:
        examples = serialize_examples(message)
        self._observer.observe_examples(servable.id.name, len(examples))
        outputs = await servable.answer(
            check.name, {INPUTS: examples}, output_filter=wanted, pool=self._pool
        )
        return outputs, len(examples)


def read_model_spec(request: HasModelSpec) -> ModelSpec:
    """The ModelSpec of a request."""
    if not request.HasField("model_spec"):
        raise RequestError("Missing ModelSpec")
    return model_spec_from_proto(request.model_spec)


def _plan_tasks(
    tasks: Sequence[inference_pb2.InferenceTask], servable: Servable
) -> list[tuple[SignatureCheck, tuple[str, ...]]]:
    plan: list[tuple[SignatureCheck, tuple[str, ...]]] = []
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
        if task.method_name == CLASSIFY_METHOD:
            plan.append((check, check_classify_signature(check.proto)))
        elif task.method_name == REGRESS_METHOD:
            plan.append((check, check_regress_signature(check.proto)))
        else:
            raise UnimplementedError(f"Unsupported signature method_name: {task.method_name}")
    return plan


class ModelHandlers:
    """The methods of ModelService: what state versions are in, and replacing the configuration.

    Args:
        manager: Who holds the servables.
        is_reload_enabled: `--enable_reload_config`.
    """

    def __init__(self, manager: Manager, *, is_reload_enabled: bool) -> None:
        self._manager = manager
        self._is_reload_enabled = is_reload_enabled

    def get_model_status(
        self, request: status_pb2.GetModelStatusRequest
    ) -> status_pb2.GetModelStatusResponse:
        """A GetModelStatusResponse for a GetModelStatusRequest.

        A version label is not looked at, as in TensorFlow Serving
        (`model_servers/get_model_status_impl.cc`).
        """
        spec = read_model_spec(request)
        return self.describe_versions(spec.name, spec.version)

    def describe_versions(
        self, name: str, version: int | None
    ) -> status_pb2.GetModelStatusResponse:
        """A GetModelStatusResponse of one version of a model, or of all."""
        response = status_pb2.GetModelStatusResponse()
        for status in self._manager.list_states(name, version):
            response.model_version_status.add(
                version=status.version,
                state=int(status.state),
                status=status_pb2.StatusProto(
                    error_code=status.code.name, error_message=status.message
                ),
            )
        return response

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
