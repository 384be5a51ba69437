"""Classify, Regress and MultiInference: tf.Examples in, labelled scores or numbers out."""

from __future__ import annotations

from typing import Any

from contract.errors import RequestError, UnimplementedError
from contract.servable import DEFAULT_SIGNATURE_NAME, ModelSpec
from contract.signature import CLASSIFY_METHOD, REGRESS_METHOD, Batch
from contract.wire.plumbline_wire import inference_pb2
from contract.wire.predict import model_spec_from_proto, model_spec_to_proto
from serving.classification import check_classify_signature, make_classification_result
from serving.example_inputs import serialize_examples
from serving.forms import SignatureForm, check_method_name
from serving.regression import check_regress_signature, make_regression_result
from serving.servable import Manager, Observer, Servable
from serving.worker_pool import WorkerPool

INPUTS = "inputs"


class InferenceHandlers:
    """The methods of PredictionService that take tf.Examples.

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
        pool: WorkerPool,
        *,
        is_method_checked: bool = False,
    ) -> None:
        self._is_method_checked = is_method_checked
        self._manager = manager
        self._observer = observer
        self._pool = pool

    async def classify(self, request: Any) -> Any:
        """A ClassificationResponse for a ClassificationRequest.

        Raises:
            PlumblineError: See `classify_examples`; or there is no ModelSpec.
        """
        spec, result = await self.classify_examples(read_model_spec(request), request.input)
        return inference_pb2.ClassificationResponse(
            model_spec=model_spec_to_proto(spec), result=result
        )

    async def regress(self, request: Any) -> Any:
        """A RegressionResponse for a RegressionRequest.

        Raises:
            PlumblineError: See `regress_examples`; or there is no ModelSpec.
        """
        spec, result = await self.regress_examples(read_model_spec(request), request.input)
        return inference_pb2.RegressionResponse(model_spec=model_spec_to_proto(spec), result=result)

    async def classify_examples(self, spec: ModelSpec, message: Any) -> tuple[ModelSpec, Any]:
        """Who answered, and a ClassificationResult, for an `Input`.

        Raises:
            PlumblineError: See `Servable.run`, `Manager.acquire`, `serving.classification`.
        """
        with self._manager.acquire(spec) as servable:
            form = servable.forms.find_for_examples(spec.signature_name)
            if self._is_method_checked:
                check_method_name(form.proto, "classification", CLASSIFY_METHOD)
            wanted = check_classify_signature(form.proto)
            outputs, count = await self._run_examples(servable, form, message, wanted)
        return form.answer_spec, make_classification_result(outputs, count)

    async def regress_examples(self, spec: ModelSpec, message: Any) -> tuple[ModelSpec, Any]:
        """Who answered, and a RegressionResult, for an `Input`.

        Raises:
            PlumblineError: See `Servable.run`, `Manager.acquire`, `serving.regression`.
        """
        with self._manager.acquire(spec) as servable:
            form = servable.forms.find_for_examples(spec.signature_name)
            if self._is_method_checked:
                check_method_name(form.proto, "regression", REGRESS_METHOD)
            wanted = check_regress_signature(form.proto)
            outputs, count = await self._run_examples(servable, form, message, wanted)
        return form.answer_spec, make_regression_result(outputs, count)

    async def multi_infer(self, request: Any) -> Any:
        """A MultiInferenceResponse for a MultiInferenceRequest.

        Raises:
            PlumblineError: As Classify and Regress; the tasks must name one model and
                different signatures (`servables/tensorflow/multi_inference.cc`).
        """
        spec = (
            model_spec_from_proto(request.tasks[0].model_spec) if request.tasks else ModelSpec("")
        )
        response = inference_pb2.MultiInferenceResponse()
        with self._manager.acquire(spec) as servable:
            plan = _plan_tasks(request.tasks, servable)
            examples = serialize_examples(request.input)
            for task, (form, wanted) in zip(request.tasks, plan, strict=True):
                outputs = await servable.answer(
                    form.name, {INPUTS: examples}, output_filter=wanted, pool=self._pool
                )
                result = response.results.add(model_spec=model_spec_to_proto(form.answer_spec))
                if task.method_name == CLASSIFY_METHOD:
                    made = make_classification_result(outputs, len(examples))
                    result.classification_result.CopyFrom(made)
                else:
                    made = make_regression_result(outputs, len(examples))
                    result.regression_result.CopyFrom(made)
        self._observer.observe_examples(spec.name, len(examples))
        return response

    async def _run_examples(
        self, servable: Servable, form: SignatureForm, message: Any, wanted: tuple[str, ...]
    ) -> tuple[Batch, int]:
        examples = serialize_examples(message)
        self._observer.observe_examples(servable.id.name, len(examples))
        outputs = await servable.answer(
            form.name, {INPUTS: examples}, output_filter=wanted, pool=self._pool
        )
        return outputs, len(examples)


def read_model_spec(request: Any) -> ModelSpec:
    """The ModelSpec of a request.

    Raises:
        RequestError: It has none.
    """
    if not request.HasField("model_spec"):
        raise RequestError("Missing ModelSpec")
    return model_spec_from_proto(request.model_spec)


def _plan_tasks(tasks: Any, servable: Servable) -> list[tuple[SignatureForm, tuple[str, ...]]]:
    plan: list[tuple[SignatureForm, tuple[str, ...]]] = []
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
        form = servable.forms.find_for_multi_inference(name)
        if task.method_name == CLASSIFY_METHOD:
            plan.append((form, check_classify_signature(form.proto)))
        elif task.method_name == REGRESS_METHOD:
            plan.append((form, check_regress_signature(form.proto)))
        else:
            raise UnimplementedError(f"Unsupported signature method_name: {task.method_name}")
    return plan
