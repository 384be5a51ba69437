"""What an export asks of a model, whether it is Keras, a SavedModel or a `.tflite` file."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path

import msgspec

from contract.heads import Head
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Array, Batch, Signature
from exporter.data.examples import ExportExamples


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How functions are traced for the converter, where the SavedModel's own do not convert.

    Whatever the recipe, they compute in float32, hold no other signature's variables and tables,
    and their recurrent layers are loops (or unrolled), never TFLite's fused operators, which keep
    their state from one call to the next.

    Attributes:
        batch_size: Rows of every call; None leaves the batch axis free.
        unroll_up_to: Recurrent layers over so many steps or fewer are unrolled; 0 unrolls none.
    """

    batch_size: int | None = None
    unroll_up_to: int = 0


class Exportable(abc.ABC):
    """A model under the signatures that it will be served with; a `contract.parity.Predictor`.

    Attributes:
        signatures: Signature name to what it takes and gives; the first is the one that copies
            are timed and measured with.
        heads: Output name, of whichever signatures have it, to what it means; outputs that are
            no numbers have none.
        has_saved_model: Whether a version of it holds a SavedModel.
        given_variants: TFLite variants that it was given as.
        lite_signatures: Signatures that TFLite variants can be made of; none where there can be
            no other copies.
        is_half_precision: Whether it computes in float16 or bfloat16, so that a float32 copy is
            as far from it as a float16 copy is from other models.
    """

    signatures: Mapping[str, Signature]
    heads: Mapping[str, Head]
    has_saved_model: bool = True
    given_variants: tuple[str, ...] = ()
    lite_signatures: tuple[str, ...] = ()
    is_half_precision: bool = False

    @property
    def main_signature(self) -> Signature:
        """`serving_default` where there is one, else the first."""
        names = list(self.signatures)
        name = DEFAULT_SIGNATURE_NAME if DEFAULT_SIGNATURE_NAME in names else names[0]
        return self.signatures[name]

    @abc.abstractmethod
    def predict(self, batch: Batch, *, signature_name: str = "") -> dict[str, Array]:
        """Answers in this process: what every copy is held against."""

    @abc.abstractmethod
    def make_inputs(
        self, signature: Signature, examples: ExportExamples, inputs: Mapping[str, Array]
    ) -> dict[str, Array] | None:
        """Rows of the data as one signature takes them; None where the data lack an input of it.

        Args:
            signature: One of `signatures`.
            examples: What the rows are of.
            inputs: The rows, by the data's own names.
        """

    def name_targets(self, targets: Mapping[str, Array]) -> dict[str, Array]:
        """Targets by the outputs of the main signature that they are for.

        A single target without a name goes to the first output that says a class, else to the
        first that has a head.
        """
        outputs = [name for name in self.main_signature.outputs if name in self.heads]
        if len(targets) == 1 and not targets.keys() & set(outputs):
            outputs.sort(key=lambda name: not self.heads[name].has_classes)
            return dict(zip(outputs[:1], targets.values(), strict=False))
        return {name: array for name, array in targets.items() if name in outputs}

    @abc.abstractmethod
    def save(self, directory: Path) -> None:
        """Writes the model's own files of a version."""

    def save_for_conversion(self, directory: Path, recipe: Recipe) -> bool:
        """Writes a SavedModel for the converter alone.

        Signatures and their tensors are those of `lite_signatures`, but for the batch axis.

        Returns:
            False, and nothing is written, where this cannot be done, or would give what an
            earlier recipe gives.
        """
        del directory, recipe
        return False
