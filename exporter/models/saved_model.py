"""A SavedModel that somebody gives, or a `tf.Module`, with signatures of its own."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from contract.errors import ConfigError
from contract.heads import Head
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import STRING, Array, Batch
from exporter.artifacts.exportable import Recipe
from exporter.artifacts.lite_graph import save_for_converter, uses_tables
from exporter.artifacts.saved_model import InProcessPredictor
from exporter.artifacts.signatures import fix_batch
from exporter.data.examples import ExportExamples
from exporter.models.given import GivenModel
from exporter.publishing.staging import translate_disk_errors

_LOG = logging.getLogger(__name__)

_SERVED_FILES = ("saved_model.pb", "fingerprint.pb")
_SERVED_FOLDERS = ("variables", "assets")


class GivenSavedModel(GivenModel):
    """A SavedModel as it lies: its files are copied, its signatures keep their names.

    Args:
        directory: Holds `saved_model.pb`.
        examples: What it will be verified with. A signature with an input that they lack, or
            with a tensor that has no row for each example, is served and has no golden examples.
        heads: Output name to what it means, as far as somebody knows; the rest is told.

    Raises:
        ConfigError: It has no signatures, or cannot be loaded.
        DatasetError: The examples fit none of its signatures.
    """

    def __init__(
        self, directory: Path, examples: ExportExamples, *, heads: Mapping[str, Head] | None = None
    ) -> None:
        self._directory = directory
        try:
            loaded = tf.saved_model.load(str(directory))
        except Exception as error:  # OSError, ValueError, RuntimeError, op errors: all are its own
            reason = next(iter(str(error).splitlines()), "")
            raise ConfigError(f"{directory} cannot be loaded by TensorFlow: {reason}") from error
        functions = dict(loaded.signatures.items())
        if not functions:
            raise ConfigError(
                f"{directory} is a SavedModel without signatures, so no server can answer for it; "
                "save it with tf.saved_model.save(model, path, signatures={...}), or export the "
                "Keras model that it was made of"
            )
        self._predictor = InProcessPredictor(functions, keep_alive=loaded)
        self.signatures = self._predictor.signatures
        self.heads = {}
        tried = self._try_signatures(examples)
        self.heads = self._tell_heads(next(iter(tried.values())), examples, heads or {})
        self._functions = functions
        without_strings = tuple(
            name
            for name in tried
            if all(spec.dtype != STRING for spec in self.signatures[name].inputs.values())
        )
        # One that uses a table would keep all the others from converting.
        self.lite_signatures = (
            tuple(name for name in without_strings if not uses_tables(functions[name]))
            or without_strings
        )

    def predict(self, batch: Batch, *, signature_name: str = "") -> dict[str, Array]:
        """See `Exportable.predict`."""
        return self._predictor.predict(batch, signature_name=signature_name)

    def save(self, directory: Path) -> None:
        """See `Exportable.save`."""
        with translate_disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            for name in _SERVED_FILES:
                if (self._directory / name).exists():
                    shutil.copyfile(self._directory / name, directory / name)
            for name in _SERVED_FOLDERS:
                if (self._directory / name).is_dir():
                    shutil.copytree(self._directory / name, directory / name, dirs_exist_ok=True)

    def save_for_conversion(self, directory: Path, recipe: Recipe) -> bool:
        """See `Exportable.save_for_conversion`; what the functions are made of stays as it is."""
        if recipe.unroll_up_to:
            return False
        functions = {name: self._functions[name] for name in self.lite_signatures}
        if recipe.batch_size is not None:
            try:
                functions = {
                    name: fix_batch(function, recipe.batch_size)
                    for name, function in functions.items()
                }
            except Exception:  # the user's own graph: not all of them take a batch of any size
                _LOG.debug("cannot be traced by %s", recipe, exc_info=True)
                return False
        return save_for_converter(directory, functions, batch_size=recipe.batch_size)


def save_module(
    module: tf.Module, examples: ExportExamples, *, heads: Mapping[str, Head] | None = None
) -> GivenSavedModel:
    """A `tf.Module` by its own signatures, saved to a temporary folder.

    Its signatures are `module.signatures` where it has them (a loaded SavedModel does), else its
    `tf.function`s with an `input_signature`; `__call__` is `serving_default`.
    """
    signatures = dict(getattr(module, "signatures", None) or _find_functions(module))
    if not signatures:
        raise ConfigError(
            f"a {type(module).__name__} has no signatures; give a method of it "
            "@tf.function(input_signature=[tf.TensorSpec(...)])"
        )
    directory = Path(tempfile.mkdtemp(prefix="plumbline-module-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    try:
        tf.saved_model.save(module, str(directory), signatures=signatures)
        made = GivenSavedModel(directory, examples, heads=heads)
    except (ValueError, TypeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"a {type(module).__name__} cannot be saved: {reason}") from error
    return made


def _find_functions(module: tf.Module) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in dir(module):
        function = getattr(type(module), name, None) or vars(module).get(name)
        if getattr(function, "input_signature", None) is not None:
            served = DEFAULT_SIGNATURE_NAME if name == "__call__" else name
            found[served] = getattr(module, name)
    if len(found) == 1:
        return {DEFAULT_SIGNATURE_NAME: next(iter(found.values()))}
    return found
