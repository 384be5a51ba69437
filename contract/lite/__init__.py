"""One batch through a TFLite interpreter, for whoever holds a `.tflite` file.

The exporter verifies variants with it, the embedded server answers with it, the clients
predict on the device with it: one implementation, so that all three say the same numbers.
Importing this package imports numpy only; an interpreter is looked for when a `LiteModel`
is made. TensorFlow is never imported statically.

Example:
    >>> model = LiteModel("models/mlp/1/model.tflite")              # doctest: +SKIP
    >>> model.predict({"images": images})["probabilities"].shape    # doctest: +SKIP
    (32, 10)
"""

from contract.lite.model import LiteModel
from contract.lite.program import Program
from contract.lite.schema import list_custom_ops, list_flex_ops
from contract.lite.tensors import Quantisation

__all__ = ["LiteModel", "Program", "Quantisation", "list_custom_ops", "list_flex_ops"]
