"""A `.tflite` file that answers batches: signatures by name, threads, chunks, int8 hidden."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from contract.errors import ConfigError, InternalError, ManifestError, TensorMismatchError
from contract.lite.program import LanePool, Program, prepare_resets
from contract.lite.runtime import create_interpreter
from contract.lite.schema import Memory, find_exotic_tensors, find_memory
from contract.lite.tensors import Quantisation, read_signatures
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Array, Batch, Signature, check_batch, find_signature

DEFAULT_MAX_CHUNK_ROWS = 64
"""Rows of one `invoke`. An interpreter keeps its largest arena (8,192 rows of the CNN: 1 GB),
and chunks of 32 to 64 rows are also fastest per row."""


class LiteModel:
    """One TFLite model, shared by any number of threads.

    The file is read once and its bytes are shared by all interpreters: what was verified is
    what runs, even when the version is retired underneath. Each row's numbers are the same
    whichever thread asks and whatever else runs.

    Args:
        source: A path, or a whole file's bytes.
        num_threads: Threads inside one `invoke`; callers in parallel usually gain more.
        max_chunk_rows: Larger batches run in chunks of so many rows, which bounds memory; of up
            to four times as many where that takes next to no time.

    Raises:
        ConfigError: `num_threads` or `max_chunk_rows` is below 1.
        ManifestError: The file is missing, unreadable or not a TFLite model.
        UnimplementedError: No TFLite runtime is installed, or the model needs Flex operators.

    Example:
        >>> with LiteModel("models/mlp/1/model.tflite", num_threads=2) as model:  # doctest: +SKIP
        ...     model.predict({"images": images}, signature_name="serving_uint8")
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes,
        *,
        num_threads: int = 1,
        max_chunk_rows: int = DEFAULT_MAX_CHUNK_ROWS,
    ) -> None:
        for key, value in (("num_threads", num_threads), ("max_chunk_rows", max_chunk_rows)):
            if value < 1:
                raise ConfigError(f"{key} is {value}; give 1 or more")
        content, label = _read_model(source)
        create = partial(create_interpreter, content, num_threads=num_threads, source=label)
        self._max_chunk_rows = max_chunk_rows
        interpreter = create()
        try:
            memory, exotic = find_memory(content), find_exotic_tensors(content)
        except ManifestError as error:
            raise ManifestError(f"{label}: {error.message}") from None
        if memory is Memory.TENSORS and not prepare_resets(interpreter):
            memory = Memory.RESOURCES
        self._pool = LanePool(create, memory)
        try:
            self._entries = read_signatures(interpreter, exotic)
        except (RuntimeError, ValueError, TypeError, LookupError, OverflowError) as error:
            # A runtime trusts the names and numbers of a file until it is asked for them.
            reason = " ".join(str(error).split())
            raise ManifestError(f"{label} has damaged signatures: {reason}") from error
        self._pool.idle.append(self._pool.make(interpreter))
        self._shown = self._compile(dequantise=True)
        self._raw = self._compile(dequantise=False)

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Name to signature as `predict` takes it by default: int8 tensors show as float32."""
        return {name: self._shown[name].signature for name in self._entries}

    @property
    def raw_signatures(self) -> Mapping[str, Signature]:
        """Name to signature with the dtypes of the file."""
        return {name: self._raw[name].signature for name in self._entries}

    @property
    def fixed_rows(self) -> Mapping[str, int]:
        """Name to how many rows the file fixes for a run; 0 where it takes any number."""
        return {name: entry.fixed_rows for name, entry in self._entries.items()}

    @property
    def is_quantised(self) -> bool:
        """Whether any input or output is int8 (or alike) behind a scale."""
        return self.signatures != self.raw_signatures

    def predict(
        self, batch: Batch, *, signature_name: str = "", dequantise: bool = True
    ) -> dict[str, Array]:
        """The outputs for `batch`, in chunks where it is large.

        Args:
            batch: Input name to ndarray; axis 0 is the batch, 0 rows included.
            signature_name: "" stands for `serving_default`.
            dequantise: float32 in and out where the file has int8; False for the integers.

        Returns:
            Output name to a new ndarray; axis 0 is the batch.

        Raises:
            SignatureNotFoundError: The model has no such signature.
            TensorMismatchError: A wrong name, dtype or shape; a number of rows that the file
                cannot be asked for.
            InternalError: The interpreter failed.
        """
        program = (self._shown if dequantise else self._raw).get(signature_name)
        if program is None:
            program = self.find_program(signature_name, dequantise=dequantise)
        return program.run(batch)

    def predict_reshaped(
        self,
        batch: Batch,
        *,
        signature_name: str = "",
        proceed: Callable[[], object] | None = None,
    ) -> dict[str, Array]:
        """`predict` for axes of other sizes than the file declares, as TensorFlow Serving feeds it.

        An image model without dense layers takes larger images, say. It is tried: a model may
        refuse, and one whose constants hold a size may answer what means nothing. The number of
        axes stays, none is empty, and every output must have as many rows as went in. Each call
        makes an interpreter, whose memory may be large and is not kept.

        Args:
            batch: Input name to ndarray.
            signature_name: "" stands for `serving_default`.
            proceed: See `Program.run`.

        Returns:
            Output name to a new ndarray.

        Raises:
            SignatureNotFoundError: The model has no such signature.
            TensorMismatchError: A wrong name, dtype or number of axes, or the model cannot be run
                with these sizes.
        """
        name = find_signature(self.signatures, signature_name).name
        entry = self._entries[name].reshape({key: array.shape for key, array in batch.items()})
        pool = self._pool.make_another()
        program = Program(entry, pool, max_chunk_rows=self._max_chunk_rows, dequantise=True)
        num_rows = check_batch(batch, program.signature)
        wanted = f"it wants {', '.join(one.spec.describe() for one in self._entries[name].inputs)}"
        try:
            answer = program.run(batch, proceed=proceed)
        except InternalError as error:
            raise TensorMismatchError(f"{error.message}; {wanted}") from error
        for one in entry.outputs:
            array = answer[one.spec.name]
            if one.is_batched and len(array) != num_rows:
                raise TensorMismatchError(
                    f"signature {name!r} answers {num_rows} rows of these sizes with {len(array)} "
                    f"of `{one.spec.name}`, so which belongs to which is unknown; {wanted}"
                )
        return answer

    def find_program(self, signature_name: str = "", *, dequantise: bool = True) -> Program:
        """One signature, ready to run: for callers that ask it again and again.

        Raises:
            SignatureNotFoundError: The model has no such signature.
        """
        signature = find_signature(self.signatures, signature_name)
        return (self._shown if dequantise else self._raw)[signature.name]

    def quantisation(
        self, signature_name: str = ""
    ) -> tuple[Mapping[str, Quantisation], Mapping[str, Quantisation]]:
        """Scale and zero point of the inputs and of the outputs that have them, by name.

        Tensors that pass as they are (uint8 pixels) are included: other languages need them.

        Raises:
            SignatureNotFoundError: The model has no such signature.
        """
        entry = self._entries[find_signature(self.signatures, signature_name).name]
        inputs, outputs = (
            {t.spec.name: t.quantisation for t in tensors if t.quantisation is not None}
            for tensors in (entry.inputs, entry.outputs)
        )
        return inputs, outputs

    def close(self) -> None:
        """Frees the interpreters nobody uses; a later `predict` makes new ones."""
        self._pool.idle.clear()

    def __enter__(self) -> LiteModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _compile(self, *, dequantise: bool) -> dict[str, Program]:
        most = self._max_chunk_rows
        programs = {
            name: Program(
                entry,
                self._pool,
                max_chunk_rows=most,
                dequantise=dequantise,
                signature_names=frozenset(self._entries),
            )
            for name, entry in self._entries.items()
        }
        if DEFAULT_SIGNATURE_NAME in programs:
            programs[""] = programs[DEFAULT_SIGNATURE_NAME]
        return programs


def _read_model(source: str | os.PathLike[str] | bytes) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, f"a TFLite model of {len(source)} bytes"
    try:
        return Path(source).read_bytes(), os.fspath(source)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ManifestError(f"{os.fspath(source)} cannot be read: {reason}") from error
