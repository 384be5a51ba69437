"""TensorFlow as an engine: the only file of this package that imports it, and lazily.

Graphs are loaded into a Session and fed by tensor name, as TensorFlow Serving does
(`cc/saved_model/loader.cc`, `servables/tensorflow/predict_util.cc`): TF 1 and TF 2, any
number of signatures, output filters and errors then come out alike. The call below
`Session.run` costs 50 µs (MLP, one row) where a restored `tf.function` costs 360 µs and
`Session.run` 210 µs. A prepared callable costs as much, and its RunOptions are fixed, so that
no call of it could have a deadline of its own.

A run ends with DEADLINE_EXCEEDED within one operator of its deadline (`RunOptions.timeout_in_ms`,
as `servables/tensorflow/predict_util.cc` sets it): nothing interrupts a single kernel. A caller
that leaves before its deadline does not end a run: sessions know no other cancellation.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contract.errors import (
    Code,
    ConfigError,
    InternalError,
    PlumblineError,
    SignatureNotFoundError,
    TensorMismatchError,
    UnimplementedError,
)
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Array, Batch
from serving.config.server import ServerConfig
from serving.context import NO_CONTEXT, RequestContext
from serving.engines.servable import Engine

_log = logging.getLogger(__name__)

MAX_CALLS = 256
"""Prepared calls kept: one per signature, set of inputs and output filter."""

_MAX_TIMEOUT_S = 86_400.0
"""Deadlines further away than a day are none."""

_Call = tuple[tuple[Any, ...], list[Any]]
"""What is fed, in the order of the inputs' aliases, and what is fetched."""


class TensorFlowEngine(Engine):
    """Answers every signature of one SavedModel.

    Args:
        version_dir: The directory with `saved_model.pb`.
        config: Tags of the meta graph, and threads.

    Raises:
        UnimplementedError: TensorFlow is not installed.
        PlumblineError: The SavedModel cannot be loaded; the code is TensorFlow's.
    """

    def __init__(self, version_dir: Path, config: ServerConfig) -> None:
        tf = _import_tensorflow()
        from tensorflow.core.protobuf import config_pb2
        from tensorflow.python.client import pywrap_tf_session

        self._errors = tf.errors.OpError
        self._c_api = pywrap_tf_session
        self._run_options = config_pb2.RunOptions
        graph = tf.Graph()
        session_config = _make_session_config(config, config_pb2.ConfigProto())
        try:
            self._session = tf.compat.v1.Session(graph=graph, config=session_config)
            with graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(
                    self._session, config.saved_model_tags.split(","), str(version_dir)
                )
        except self._errors as error:
            raise _translate(error) from error
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise PlumblineError(
                f"{version_dir}: the SavedModel cannot be loaded: {error}",
                code=Code.INVALID_ARGUMENT,
            ) from error
        self._signature_defs = dict(meta_graph.signature_def)
        self._calls: dict[tuple[Any, ...], _Call] = {}
        self._lock = threading.Lock()

    def run(
        self,
        signature_name: str,
        inputs: Batch,
        *,
        output_filter: Sequence[str] = (),
        context: RequestContext = NO_CONTEXT,
    ) -> Batch:
        name = signature_name or DEFAULT_SIGNATURE_NAME
        aliases = tuple(sorted(inputs))
        wanted = tuple(output_filter)
        try:
            call = self._calls.get((name, aliases, wanted))
            if call is None:
                call = self._prepare(name, aliases, wanted)
            keys, fetches = call
            feeds = {key: _to_feed(inputs[alias]) for key, alias in zip(keys, aliases, strict=True)}
            values = self._run(feeds, fetches, context.remaining_s)
        except self._errors as error:
            raise _translate(error) from error
        except UnicodeDecodeError as error:
            # TensorFlow's text quotes the caller's bytes and Python cannot read it, so its code
            # is lost; kernels quote what they find invalid.
            text = bytes(error.object).decode(errors="replace")
            raise PlumblineError(text, code=Code.INVALID_ARGUMENT) from error
        names = wanted or tuple(self._signature_defs[name].outputs)
        return {alias: _to_array(value) for alias, value in zip(names, values, strict=True)}

    def close(self) -> None:
        self._calls.clear()
        self._session.close()

    def _run(self, feeds: dict[Any, Array], fetches: list[Any], timeout_s: float) -> list[Any]:
        session, c_api, options = self._session._session, self._c_api, None
        if timeout_s > _MAX_TIMEOUT_S:
            values: list[Any] = c_api.TF_SessionRun_wrapper(session, None, feeds, fetches, [], None)
            return values
        wanted = self._run_options(timeout_in_ms=max(1, math.ceil(timeout_s * 1e3)))
        options = c_api.TF_NewBufferFromString(wanted.SerializeToString())
        try:
            values = c_api.TF_SessionRun_wrapper(session, options, feeds, fetches, [], None)
        finally:
            c_api.TF_DeleteBuffer(options)
        return values

    def _prepare(self, name: str, aliases: tuple[str, ...], wanted: tuple[str, ...]) -> _Call:
        signature = self._signature_defs.get(name)
        if signature is None:
            raise SignatureNotFoundError(f'Serving signature key "{name}" not found.')
        unknown = [
            *(alias for alias in aliases if alias not in signature.inputs),
            *(alias for alias in wanted if alias not in signature.outputs),
        ]
        if unknown:  # and a message's map would make an entry of what it is asked for
            raise TensorMismatchError(f"signature {name!r} has no {', '.join(unknown)}")
        made: _Call = (
            tuple(self._find_tensor(signature.inputs[alias].name) for alias in aliases),
            [
                self._find_tensor(signature.outputs[alias].name)
                for alias in wanted or signature.outputs
            ],
        )
        with self._lock:
            self._session._extend_graph()  # what Session.run does before each run
            if len(self._calls) >= MAX_CALLS:  # clients choose output filters
                self._calls.clear()
            self._calls[name, aliases, wanted] = made
        return made

    def _find_tensor(self, name: str) -> Any:
        return self._session.graph.get_tensor_by_name(name)._as_tf_output()


def _make_session_config(config: ServerConfig, message: Any) -> Any:
    """The file's ConfigProto with flags over it, as `model_servers/server.cc` has it."""
    if config.session_config:
        from google.protobuf import text_format

        try:
            text_format.Parse(config.session_config, message)
        except text_format.ParseError as error:
            raise ConfigError(
                f"--tensorflow_session_config_file={config.tensorflow_session_config_file}: "
                f"no text-format ConfigProto: {error}"
            ) from None
    both = config.tensorflow_session_parallelism
    if intra := config.tensorflow_intra_op_parallelism or both:
        message.intra_op_parallelism_threads = intra
    if inter := config.tensorflow_inter_op_parallelism or both:
        message.inter_op_parallelism_threads = inter
    if fraction := config.per_process_gpu_memory_fraction:
        message.gpu_options.per_process_gpu_memory_fraction = fraction
    return message


def _import_tensorflow() -> Any:
    from contract.console.terminal import hide_chatter

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        if "tensorflow" in sys.modules:  # or another thread imports it: then this one waits
            import tensorflow as tf
        else:
            with hide_chatter():
                import tensorflow as tf
            gc.freeze()  # its modules hold half a million objects: looked through, 0.2 s of pause
    except ImportError as error:
        raise UnimplementedError(
            "this signature needs TensorFlow, which is not installed where the "
            "server runs: its extra is plumbline-tf[tensorflow]"  # no paths: callers read it
        ) from error
    tf.get_logger().setLevel(logging.ERROR)  # it calls what TensorFlow Serving does deprecated
    return tf


def _to_feed(array: Array) -> Array:
    # TensorFlow reads C-contiguous, aligned memory; strings may be bytes of numpy's own.
    if array.dtype.kind == "S":
        return array.astype(object)
    if array.dtype.hasobject:
        return array
    return np.require(array, requirements=("C", "A"))


def _to_array(value: Any) -> Array:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, bytes):
        scalar = np.empty((), object)
        scalar[()] = value
        return scalar
    return np.asarray(value)


def _translate(error: Any) -> PlumblineError:
    """TensorFlow's error under the same canonical code, without Python's own traces."""
    code = Code(int(error.error_code))
    text = str(error.message).split("\n\nOriginal stack trace", 1)[0]
    if code is Code.INTERNAL:
        _log.error("TensorFlow failed: %s", text)
        return InternalError(text)
    return PlumblineError(text, code=code)
