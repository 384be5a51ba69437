"""The SavedModel: variables and the signatures that `exporter.signature_rules` chose."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from contract import layout
from contract.signature import CLASSIFY_METHOD
from exporter.datasets import Dataset
from exporter.disk_errors import translate_disk_errors
from exporter.model_heads import ModelHeads
from exporter.predictors import InProcessPredictor
from exporter.signature_names import CLASSIFY
from exporter.signature_rules import ModelFace, look_at, trace_signatures

_LOG = logging.getLogger(__name__)


def save_model(
    model: Any, heads: ModelHeads, dataset: Dataset, directory: Path
) -> tuple[InProcessPredictor, ModelFace]:
    """Writes `saved_model.pb`, `variables/` and `assets/labels.txt`.

    Args:
        model: A built, trained `tf_keras.Model`.
        heads: Its inputs and outputs, as `train` found them.
        dataset: What it was trained on.
        directory: Made when missing.

    Returns:
        The same functions in this process: what the SavedModel is compared with; and the
        model's names.

    Raises:
        OSError: The disk is full or the folder not writable.
    """
    face = look_at(model, heads, dataset)
    functions = trace_signatures(face, dataset)
    with translate_disk_errors(directory):
        _save(model, functions, directory)
        if CLASSIFY in functions:
            _set_method_name(directory, CLASSIFY, CLASSIFY_METHOD)
    labels = directory / layout.LABELS
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text("".join(f"{name}\n" for name in dataset.class_names), encoding="utf-8")
    return InProcessPredictor(functions), face


def _save(model: Any, functions: Mapping[str, Any], directory: Path) -> None:
    # Tracks the variables alone: a tracked Keras model is traced again, layer by layer.
    module = tf.Module()
    module.variables_ = model.variables
    try:
        tf.saved_model.save(module, str(directory), signatures=dict(functions))
    except AssertionError:
        # A layer holds more than variables (a lookup table, a random generator).
        _LOG.debug("saving the whole model, for its untracked resources", exc_info=True)
        module.model = model
        tf.saved_model.save(module, str(directory), signatures=dict(functions))


def _set_method_name(directory: Path, signature_name: str, method_name: str) -> None:
    """TensorFlow 2 writes `predict` everywhere; a server started with
    --enable_signature_method_name_check wants Classify's own (servables/tensorflow/classifier.cc).
    """
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(directory))
    updater.replace_method_name(signature_key=signature_name, method_name=method_name)
    updater.save()
