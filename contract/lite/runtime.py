"""The TFLite runtime: `ai_edge_litert`, else `tflite_runtime`, else `tf.lite`.

TensorFlow comes last and by name only: it costs 3 s and 400 MB to import, and `contract`
never imports it. Someone who has nothing else still gets an answer.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO, TypedDict

from contract.console.extras import advise_extra, is_installed
from contract.errors import ManifestError, UnimplementedError
from contract.lite.schema import list_flex_ops

if TYPE_CHECKING:
    import numpy as np

    from contract.signature import Array

_LOG = logging.getLogger(__name__)
_LIGHT_RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")


class TensorDetails(TypedDict):
    """What an interpreter says of a tensor; of what it says, what is used here.

    Attributes:
        name: Of the tensor in the graph.
        index: Of the tensor in its subgraph.
        dtype: numpy's class of its elements.
        shape: int32, the sizes of its axes as allocated.
        shape_signature: int32, the same with -1 for an axis that varies; may be empty.
        quantization: Scale and zero point of the whole tensor, scale 0 without.
    """

    name: str
    index: int
    dtype: type[np.generic]
    shape: Array
    shape_signature: Array
    quantization: tuple[float, int]


class SignatureRunner(Protocol):
    """What `Interpreter.get_signature_runner` returns."""

    def get_input_details(self) -> dict[str, TensorDetails]: ...
    def get_output_details(self) -> dict[str, TensorDetails]: ...


class Calls(Protocol):
    """The extension object below an interpreter, the same in all three runtimes.

    Private to them, and used as `SignatureRunner` itself uses it: nothing public reaches
    a subgraph without allocating it anew (`tflite/python/interpreter_wrapper`).
    """

    def AllocateTensors(self, subgraph: int) -> None: ...
    def GetSubgraphIndexFromSignature(self, name: str) -> int: ...
    def GetTensor(self, tensor: int, subgraph: int) -> Array: ...
    def Invoke(self, subgraph: int) -> None: ...
    def NumSubgraphs(self) -> int: ...
    def ResetVariableTensors(self) -> None: ...
    def ResizeInputTensor(self, tensor: int, shape: Array, strict: bool, subgraph: int) -> None: ...
    def SetTensor(self, tensor: int, value: Array, subgraph: int) -> None: ...
    def tensor(self, base: Interpreter, tensor: int, subgraph: int) -> Array: ...


class Interpreter(Protocol):
    """What is used of a runtime's class `Interpreter`."""

    _interpreter: Calls

    def allocate_tensors(self) -> None: ...
    def get_input_details(self) -> list[TensorDetails]: ...
    def get_output_details(self) -> list[TensorDetails]: ...
    def get_signature_list(self) -> Mapping[str, object]: ...
    def get_signature_runner(self, name: str) -> SignatureRunner: ...
    def get_tensor(self, tensor: int) -> Array: ...
    def invoke(self) -> None: ...
    def resize_tensor_input(self, tensor: int, shape: Sequence[int]) -> None: ...
    def set_tensor(self, tensor: int, value: Array) -> None: ...


def has_runtime() -> bool:
    """Whether any TFLite runtime is installed; imports none."""
    return any(map(is_installed, (*_LIGHT_RUNTIMES, "tensorflow")))


@functools.cache
def find_interpreter() -> Callable[..., Interpreter]:
    """The Interpreter class of the first TFLite runtime that is installed.

    Returns:
        The class; it takes `model_content` (or `model_path`) and `num_threads`.

    Raises:
        UnimplementedError: None is, and the message names the extra to install; or it cannot run on
            this processor.
    """
    for name in _LIGHT_RUNTIMES:
        if is_installed(name):
            _LOG.debug("TFLite runtime: %s", name)
            if sys.platform == "linux" and os.uname().machine == "aarch64":
                _check_processor()
            interpreter: Callable[..., Interpreter] = importlib.import_module(name).Interpreter
            return interpreter
    if is_installed("tensorflow"):
        _LOG.info("TFLite runtime: tf.lite; `plumbline-tf[on-device]` starts much faster")
        found: Callable[..., Interpreter] = importlib.import_module("tensorflow").lite.Interpreter
        return found
    raise UnimplementedError(
        "no TFLite interpreter is installed (looked for ai_edge_litert, tflite_runtime and "
        f"tensorflow); install the extra with: {advise_extra('on-device')}"
    )


def _check_processor() -> None:
    """Refuses a LiteRT that would end this process.

    Its `cpuinfo` makes room for no L2 cache where `/proc/cpuinfo` names no ARM architecture, and
    then notes there what `/sys` shows. No ARM machine is like that; an emulator on another is.
    """
    from importlib.metadata import PackageNotFoundError, version
    from pathlib import Path

    try:
        release = version("ai-edge-litert")
        is_fatal = (
            release.startswith(("2.2.", "2.3."))
            and "CPU architecture" not in Path("/proc/cpuinfo").read_text()
            and any(Path("/sys/devices/system/cpu").glob("cpu*/cache/index2/size"))
        )
    except (PackageNotFoundError, OSError):
        return
    if is_fatal:
        raise UnimplementedError(
            f"ai-edge-litert {release} would end this process: the emulator it runs in shows it "
            "another machine's processor, as QEMU before 8.2 does; install another release with: "
            "pip install 'ai-edge-litert<2.2', or use a newer QEMU"
        )


def create_interpreter(content: bytes, *, num_threads: int, source: str) -> Interpreter:
    """An interpreter over `content`, which it shares and does not copy.

    Args:
        content: A whole `.tflite` file.
        num_threads: Threads of one `invoke`.
        source: What to call the file in a message.

    Returns:
        An interpreter with the default delegate applied, its tensors allocated as declared.

    Raises:
        ManifestError: `content` is not a TFLite model.
        UnimplementedError: No runtime is installed, or the model needs operators that the
            runtime lacks; they are named.
    """
    interpreter_class = find_interpreter()
    try:
        flex = list_flex_ops(content)
    except ManifestError as error:
        raise ManifestError(f"{source}: {error.message}") from None
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


@contextmanager
def hide_delegate_notes() -> Iterator[TextIO]:
    """Keeps TFLite's `INFO: Created … delegate` off the terminal: C++ writes it to stderr
    without asking. Whatever else is written meanwhile comes out afterwards.

    It replaces the process's stderr for a while: for commands, which have one thread, and
    nothing for a server.

    Yields:
        The stderr from before, for what is to be seen meanwhile.
    """
    import tempfile

    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        stderr = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            with open(stderr, "w", encoding="utf-8", errors="replace", closefd=False) as shown:
                yield shown
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            kept.seek(0)
            rest = [line for line in kept if not line.startswith(b"INFO: Created")]
            os.write(2, b"".join(rest))
