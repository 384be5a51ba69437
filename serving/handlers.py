"""What every method does, in plain Python over messages and arrays; no transport.

A face (gRPC, REST) parses, calls one of these and writes the answer. Errors are
`contract.errors`, with the code and words of TensorFlow Serving's method.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from contract.errors import RequestError
from contract.servable import ModelSpec
from contract.signature import Array, Batch
from contract.wire.predict import PredictCall
from contract.wire.signatures import SIGNATURE_DEF_FIELD, metadata_response
from serving.config import ServerConfig
from serving.forms import SignatureForm
from serving.inference_handlers import InferenceHandlers, read_model_spec
from serving.model_handlers import ModelHandlers
from serving.servable import Manager, Observer, Servable
from serving.worker_pool import WorkerPool

if TYPE_CHECKING:
    from serving.request_log import RequestLog


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
        observer: Who was given as `metrics`, for the faces.
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
        self.pool = WorkerPool(max_queued_calls=config.max_queued_calls)
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
        """Predict over gRPC.

        Returns:
            Who answered, and output name to array.

        Raises:
            PlumblineError: See `Servable.run`, `Manager.acquire` and `SignatureForm`.
        """
        spec = call.model_spec
        with self._manager.acquire(spec) as servable:
            form = servable.forms.find_for_predict(spec.signature_name)
            form.check_names(call.input_names)
            inputs = form.complete(call.decode_inputs())
            if call.output_filter:
                form.check_filter(call.output_filter)
            outputs = await servable.answer(
                form.name, inputs, output_filter=call.output_filter, pool=self.pool
            )
        return form.answer_spec, outputs

    async def predict_arrays(
        self, servable: Servable, form: SignatureForm, inputs: Mapping[str, Array]
    ) -> Batch:
        """Predict over REST, of a servable that the caller holds; all outputs.

        Raises:
            PlumblineError: See `Servable.run` and `SignatureForm`.
        """
        form.check_names(inputs)
        outputs = await servable.answer(form.name, form.complete(inputs), pool=self.pool)
        if self.request_log is not None:
            self.request_log.offer_arrays(form.answer_spec, inputs, outputs)
        return outputs

    def get_model_metadata(self, request: Any) -> Any:
        """A GetModelMetadataResponse for a GetModelMetadataRequest.

        Raises:
            RequestError: No ModelSpec, or a field that there is not.
            PlumblineError: See `Manager.acquire`.
        """
        spec = read_model_spec(request)
        if not request.metadata_field:
            raise RequestError("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != SIGNATURE_DEF_FIELD:
                raise RequestError(f"Metadata field {field} is not supported")
        with self._manager.acquire(spec) as servable:
            answer_spec = ModelSpec(servable.id.name, version=servable.id.version)
            return metadata_response(answer_spec, servable.signature_defs.signature_def)
