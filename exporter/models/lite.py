"""A `.tflite` file that somebody gives: a version without a SavedModel."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from contract import layout
from contract.errors import ConfigError, DatasetError, PlumblineError, TensorMismatchError
from contract.heads import Head
from contract.lite import LiteModel
from contract.signature import Array, Batch, Signature
from exporter.data.examples import ExportExamples
from exporter.models.given import GivenModel
from exporter.publishing.staging import translate_disk_errors


class LiteFile(GivenModel):
    """A `.tflite` file as it lies, asked through an interpreter in this process.

    Args:
        path: The file.
        examples: What it will be verified with.
        heads: Output name to what it means, as far as somebody knows; the rest is told.

    Raises:
        ConfigError: It cannot be run as a TFLite model.
        DatasetError: The examples do not fit its inputs.
    """

    has_saved_model = False
    given_variants = (layout.FLOAT32,)

    def __init__(
        self, path: Path, examples: ExportExamples, *, heads: Mapping[str, Head] | None = None
    ) -> None:
        self._content = path.read_bytes()
        try:
            self._model = LiteModel(self._content)
        except PlumblineError as error:
            raise ConfigError(f"{path}: {error.message}") from error
        self.signatures = {
            name: self._bind(signature, examples)
            for name, signature in self._model.signatures.items()
        }
        self.heads = {}
        answers = next(iter(self._try_signatures(examples).values()))
        self.heads = self._tell_heads(answers, examples, heads or {})

    def _bind(self, signature: Signature, examples: ExportExamples) -> Signature:
        """The signature; with its fixed batch, where rows depend on those beside them."""
        rows = self._model.fixed_rows.get(signature.name, 0)
        if rows <= 1:
            return signature
        try:
            inputs = self._shape(signature, examples, examples.golden.take(slice(1)).inputs)
            self.predict(inputs, signature_name=signature.name)
        except TensorMismatchError:
            taken, given = (
                {
                    name: dataclasses.replace(spec, shape=(rows, *spec.shape[1:]))
                    if spec.shape and spec.shape[0] is None
                    else spec
                    for name, spec in specs.items()
                }
                for specs in (signature.inputs, signature.outputs)
            )
            return dataclasses.replace(signature, inputs=taken, outputs=given)
        except DatasetError:
            pass  # told where the signature is tried
        return signature

    def predict(self, batch: Batch, *, signature_name: str = "") -> dict[str, Array]:
        """See `Exportable.predict`."""
        return self._model.predict(batch, signature_name=signature_name)

    def save(self, directory: Path) -> None:
        """See `Exportable.save`."""
        with translate_disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            (directory / layout.variant_path(layout.FLOAT32)).write_bytes(self._content)
