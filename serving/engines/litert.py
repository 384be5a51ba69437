"""LiteRT as an engine: `model.tflite`, without TensorFlow in the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from contract.errors import TensorMismatchError
from contract.lite import LiteModel, Program
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Batch, Signature, find_signature
from serving.context import NO_CONTEXT, RequestContext
from serving.engines.servable import Engine


class LiteRTEngine(Engine):
    """Answers the signatures of one `.tflite` file.

    A run ends at its caller's deadline or departure before the next chunk of 64 rows (or of as
    many as the file fixes), which is what bounds it: nothing interrupts an interpreter.

    Args:
        path: The file; it is read once.
        num_threads: Threads inside one run.
        tries_other_shapes: Whether axes may have other sizes than the file declares, as with
            TensorFlow Serving.

    Raises:
        ManifestError: The file is missing, unreadable or not a TFLite model.
        UnimplementedError: No TFLite runtime is installed, or the model needs Flex operators.
    """

    def __init__(
        self, path: Path, *, num_threads: int = 1, tries_other_shapes: bool = False
    ) -> None:
        self._model = LiteModel(path, num_threads=num_threads)
        self._tries_other_shapes = tries_other_shapes
        self._programs: dict[str, Program] = {
            name: self._model.find_program(name) for name in self._model.signatures
        }
        if DEFAULT_SIGNATURE_NAME in self._programs:
            self._programs[""] = self._programs[DEFAULT_SIGNATURE_NAME]

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Name to signature, as the file declares them."""
        return self._model.signatures

    def run(
        self,
        signature_name: str,
        inputs: Batch,
        *,
        output_filter: Sequence[str] = (),
        context: RequestContext = NO_CONTEXT,
    ) -> Batch:
        program = self._programs.get(signature_name)
        if program is None:
            find_signature(self._model.signatures, signature_name)  # raises, and lists them
            raise AssertionError(signature_name)
        try:
            outputs = program.run(inputs, proceed=context.check)
        except TensorMismatchError:
            if not self._tries_other_shapes:
                raise
            outputs = self._model.predict_reshaped(
                inputs, signature_name=signature_name, proceed=context.check
            )
        if output_filter:
            return {name: outputs[name] for name in output_filter}
        return outputs

    def close(self) -> None:
        self._model.close()
