"""The SavedModel: written, and asked in this process through its signatures.

Asking needs no Keras: `verify` does it where only TensorFlow is installed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tensorflow as tf

from contract import layout
from contract.errors import RequestError
from contract.signature import (
    CLASSIFY_METHOD,
    Array,
    Batch,
    Signature,
    TensorSpec,
    find_signature,
)
from exporter.artifacts.names import CLASSIFY
from exporter.publishing.staging import translate_disk_errors

if TYPE_CHECKING:
    from exporter.artifacts.signatures import Functions

_LOG = logging.getLogger(__name__)


def save_functions(
    directory: Path, functions: Functions, variables: Sequence[tf.Variable], model: object
) -> None:
    """Writes `saved_model.pb` and `variables/` of functions over variables.

    `model` owns them, and is saved with them where it holds more than variables (a lookup table,
    a random generator).
    """
    with translate_disk_errors(directory), quiet_log():
        # Tracks the variables alone: a tracked Keras model is traced again, layer by layer.
        module = tf.Module()
        module.variables_ = list(variables)
        try:
            tf.saved_model.save(module, str(directory), signatures=functions)
        except AssertionError:
            _LOG.debug("saving the whole model, for its untracked resources", exc_info=True)
            module.model = model
            tf.saved_model.save(module, str(directory), signatures=functions)
        if CLASSIFY in functions:
            _set_method_name(directory, CLASSIFY, CLASSIFY_METHOD)


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Keeps TensorFlow's note on where it wrote a temporary folder out of people's notebooks."""
    log = logging.getLogger("tensorflow")
    before = log.level
    log.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        log.setLevel(before)


def write_labels(directory: Path, class_names: Sequence[str]) -> None:
    """Writes `assets/labels.txt`, a name a line; nothing where there are none."""
    if not class_names:
        return
    labels = directory / layout.LABELS
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")


def _set_method_name(directory: Path, signature_name: str, method_name: str) -> None:
    """TensorFlow 2 writes `predict` everywhere; a server started with
    --enable_signature_method_name_check wants Classify's own (servables/tensorflow/classifier.cc).
    """
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(directory))
    updater.replace_method_name(signature_key=signature_name, method_name=method_name)
    updater.save()


class InProcessPredictor:
    """The model in this process, asked through its signatures; a `contract.parity.Predictor`.

    Args:
        functions: Signature name to concrete function.
        keep_alive: What owns their variables: a loaded SavedModel does.
    """

    def __init__(
        self,
        functions: Mapping[str, tf.types.experimental.ConcreteFunction],
        *,
        keep_alive: object = None,
    ) -> None:
        self._functions = functions
        self._keep_alive = keep_alive
        self.signatures = {name: _describe_function(name, f) for name, f in functions.items()}

    def predict(self, batch: Batch, *, signature_name: str = "") -> dict[str, Array]:
        """Output name to ndarray; strings are arrays of bytes."""
        signature = find_signature(self.signatures, signature_name)
        tensors = {
            name: tf.constant(array, signature.inputs[name].dtype) for name, array in batch.items()
        }
        try:
            outputs = self._functions[signature.name](**tensors)
        except tf.errors.InvalidArgumentError as error:
            raise RequestError(
                f"the graph of {signature.name!r} refused the inputs: {_find_reason(error)}"
            ) from error
        return {name: outputs[name].numpy() for name in signature.outputs}


def _find_reason(error: Exception) -> str:
    """The line of an operator's message that says what was wrong, without where in the graph."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    noise = ("Graph execution error", "Detected at node", "<stack traces", "[[{{node")
    said = [line for line in lines if not line.startswith(noise)]
    return " ".join(said) or str(error)


def _describe_function(name: str, function: tf.types.experimental.ConcreteFunction) -> Signature:
    inputs = function.structured_input_signature[1]
    return Signature(
        name,
        {key: _to_spec(key, spec) for key, spec in sorted(inputs.items())},
        {key: _to_spec(key, spec) for key, spec in sorted(function.structured_outputs.items())},
        *((CLASSIFY_METHOD,) if name == CLASSIFY else ()),
    )


def _to_spec(name: str, spec: tf.TensorSpec) -> TensorSpec:
    shape = None if spec.shape.rank is None else tuple(spec.shape.as_list())
    return TensorSpec(name, spec.dtype.name, shape)
