"""Finding a TFLite interpreter: `ai_edge_litert`, then `tflite_runtime`, then `tf.lite`.

TensorFlow comes last and by name only: it costs 3 s and 400 MB to import, and `contract`
never imports it. Someone who has nothing else still gets an answer.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from typing import Any

from contract.errors import ManifestError, UnimplementedError
from contract.lite.ops import list_flex_ops

_LOG = logging.getLogger(__name__)
_LIGHT_RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")


@functools.cache
def find_interpreter() -> type[Any]:
    """The Interpreter class of the first TFLite runtime that is installed.

    Raises:
        UnimplementedError: None is; the message names the extra to install.
    """
    for name in _LIGHT_RUNTIMES:
        if _is_installed(name):
            _LOG.debug("TFLite runtime: %s", name)
            interpreter: type[Any] = importlib.import_module(name).Interpreter
            return interpreter
    if _is_installed("tensorflow"):
        _LOG.info("TFLite runtime: tf.lite; `plumbline-tf[on-device]` starts much faster")
        found: type[Any] = importlib.import_module("tensorflow").lite.Interpreter
        return found
    raise UnimplementedError(
        "no TFLite interpreter is installed (looked for ai_edge_litert, tflite_runtime and "
        "tensorflow); install the extra with: pip install 'plumbline-tf[on-device]'"
    )


def create_interpreter(content: bytes, *, num_threads: int, source: str) -> Any:
    """An interpreter over `content`, which it shares and does not copy.

    Args:
        content: A whole `.tflite` file.
        num_threads: Threads of one `invoke`.
        source: What to call the file in a message.

    Raises:
        ManifestError: `content` is not a TFLite model.
        UnimplementedError: No runtime is installed, or the model needs operators that the
            runtime lacks; they are named.
    """
    interpreter_class = find_interpreter()
    flex = list_flex_ops(content)
    if flex:
        raise UnimplementedError(
            f"{source} needs TensorFlow operators ({', '.join(flex)}), which a TFLite "
            f"interpreter lacks; convert it with builtin operators only"
        )
    try:
        interpreter = interpreter_class(model_content=content, num_threads=num_threads)
        # Applies the default delegate (XNNPACK) to every subgraph: runtimes that apply it
        # lazily do so here, and not when a single subgraph is allocated.
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ManifestError(f"{source} cannot be run as a TFLite model: {reason}") from error
    return interpreter


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package is not there
        return False
