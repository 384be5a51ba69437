"""A model with signatures of its own, whoever made them: which of them the examples can test."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from contract.errors import DatasetError, PlumblineError
from contract.heads import Head
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Array, Signature
from exporter.artifacts.exportable import Exportable
from exporter.artifacts.golden import find_fixed_batch, shape_rows
from exporter.data.examples import ExportExamples
from exporter.models.inputs import name_rows
from exporter.tasks.heads import tell_head

_LOG = logging.getLogger(__name__)

_TRIED_ROWS = 8


class GivenModel(Exportable):
    """Signatures are kept by name; those that the examples cannot test are served all the same."""

    _testable: tuple[str, ...] = ()
    """Signatures that the examples can test, the main one first; set by `_try_signatures`."""

    @property
    def main_signature(self) -> Signature:
        """See `Exportable.main_signature`; one that the examples can test."""
        return self.signatures[self._testable[0]] if self._testable else super().main_signature

    def make_inputs(
        self, signature: Signature, examples: ExportExamples, inputs: Mapping[str, Array]
    ) -> dict[str, Array] | None:
        """See `Exportable.make_inputs`."""
        if signature.name not in self._testable:
            return None
        return self._shape(signature, examples, inputs)

    def _shape(
        self, signature: Signature, examples: ExportExamples, inputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        named = name_rows(inputs, {name: name for name in signature.inputs})
        return {
            name: shape_rows(named[name], spec, examples.pixels)
            for name, spec in signature.inputs.items()
        }

    def _try_signatures(self, examples: ExportExamples) -> dict[str, dict[str, Array]]:
        """Answers to a few rows by each signature that the examples can test, the main one first.

        Raises:
            DatasetError: They can test none; says why of the first.
        """
        names = sorted(self.signatures, key=lambda name: name != DEFAULT_SIGNATURE_NAME)
        found: dict[str, dict[str, Array]] = {}
        failures: dict[str, str] = {}
        for name in names:
            try:
                found[name] = self._try(self.signatures[name], examples)
            except PlumblineError as error:
                failures[name] = error.message
        if not found:
            raise DatasetError(f"signature {names[0]!r}: {failures[names[0]]}")
        self._testable = tuple(found)
        for name, reason in failures.items():
            _LOG.warning("signature %r is served but not verified: %s", name, reason)
        return found

    def _try(self, signature: Signature, examples: ExportExamples) -> dict[str, Array]:
        for what, specs in (("input", signature.inputs), ("output", signature.outputs)):
            for name, spec in specs.items():
                if spec.shape == ():
                    raise DatasetError(
                        f"{what} {name!r} is one {spec.dtype} whatever the rows are, so no row can "
                        "be checked by itself; give it an axis of rows, or a signature without it"
                    )
        size = find_fixed_batch(signature) or _TRIED_ROWS
        rows = examples.golden.take(np.resize(np.arange(min(len(examples.golden), size)), size))
        inputs = self._shape(signature, examples, rows.inputs)
        answers = self.predict(inputs, signature_name=signature.name)
        for name, answer in answers.items():
            if answer.shape[:1] != (size,):
                raise DatasetError(
                    f"output {name!r} answers {answer.shape} for {size} rows, not a row for each"
                )
        return answers

    def _tell_heads(
        self,
        answers: Mapping[str, Array],
        examples: ExportExamples,
        heads: Mapping[str, Head],
    ) -> dict[str, Head]:
        """Output name to what it means: as somebody knows it, else told."""
        found = {}
        for name, answer in answers.items():
            target = examples.targets.get(name)
            if target is None and (len(answers) == 1 or "" in examples.targets):
                target = next(iter(examples.targets.values()), None)
            head = heads.get(name) or tell_head(
                answer, target=target, class_names=examples.given_names
            )
            if head is not None:
                found[name] = head
        return found
