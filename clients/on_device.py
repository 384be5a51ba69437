"""Predictions on this very machine, through a TFLite interpreter: no server, no TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from contract import layout
from contract.errors import (
    ConfigError,
    ManifestError,
    RequestError,
    SignatureNotFoundError,
    TensorMismatchError,
)
from contract.lite import LiteModel, Quantisation
from contract.signature import Array, Batch, Signature


class OnDevicePredictor:
    """Answers batches with one TFLite variant of a version.

    Any number of threads may share one predictor: each call takes an interpreter of its own
    from a pool. An int8 variant takes and gives float32: scale and zero point stay hidden.

    Files of other tools will do. Where one fixes its batch, which is nearly always 1, batches of
    any size are run so many rows at a time; where one remembers from call to call, as recurrent
    layers may, every run begins afresh, so that no row's answer depends on another's.

    Args:
        path: A version directory, a base path (its newest version is taken), or a single
            `.tflite` file, of this or of another tool.
        variant: `float32`, `float16`, `dynamic_range`, `int8` or `web`; not looked at for a single
            file.
        num_threads: Threads inside one call. Callers in parallel usually gain more.
        allow_non_finite: False refuses NaN and infinity, to which a model may answer with
            plausible probabilities. The servers' clients refuse them by default; here the
            check (1 µs) would be a quarter of the MLP's whole call.

    Raises:
        ConfigError: No such variant; the message lists those there are.
        ManifestError: The file is missing, unreadable or not a TFLite model.
        UnimplementedError: No TFLite runtime is installed (`plumbline-tf[on-device]`).

    Example:
        >>> with OnDevicePredictor("models/mlp", variant="int8") as predictor:  # doctest: +SKIP
        ...     predictor.predict(images)["probabilities"].argmax(axis=1)
        array([7, 2, 1])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        variant: str = layout.FLOAT32,
        num_threads: int = 1,
        allow_non_finite: bool = True,
    ) -> None:
        self.path = find_variant(Path(path), variant)
        self.variant = variant
        self._checks_finite = not allow_non_finite
        self._model = LiteModel(self.path, num_threads=num_threads)
        self._programs: dict[str, tuple[Callable[[Batch], dict[str, Array]], str]] = {}

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Name to signature, int8 tensors shown as float32."""
        return self._model.signatures

    @property
    def fixed_rows(self) -> Mapping[str, int]:
        """Signature name to how many rows the file fixes for a run; 0 where it takes any."""
        return self._model.fixed_rows

    def predict(
        self,
        batch: Batch | Array,
        *,
        signature_name: str = "",
        output_filter: Sequence[str] = (),
    ) -> dict[str, Array]:
        """The outputs for a batch of any size.

        Args:
            batch: Input name to ndarray of the signature's dtype and shape, axis 0 being the
                rows: float32 (rows, 784), say. A single array stands for the only input.
            signature_name: "" stands for `serving_default`.
            output_filter: The outputs wanted, all when empty.

        Returns:
            Output name to a new ndarray of the signature's dtype, axis 0 being the rows.

        Raises:
            SignatureNotFoundError: The variant has no such signature.
            TensorMismatchError: A wrong name, dtype or shape, a value that is not finite, or
                rows that do not fill up runs of a fixed size and depend on one another.
            RequestError: `output_filter` names an output that the signature lacks.
            InternalError: The interpreter failed.
        """
        try:
            run, only_input = self._programs[signature_name]
        except KeyError:
            run, only_input = self._find_program(signature_name)
        if isinstance(batch, np.ndarray):
            if not only_input:
                raise self._blame_single_array(signature_name)
            batch = {only_input: batch}
        if self._checks_finite:
            for name, array in batch.items():
                check_finite(name, array)
        outputs = run(batch)
        return _filter(outputs, output_filter) if output_filter else outputs

    def quantisation(
        self, signature_name: str = ""
    ) -> tuple[Mapping[str, Quantisation], Mapping[str, Quantisation]]:
        """Scale and zero point of the tensors that have them.

        Args:
            signature_name: "" stands for `serving_default`.

        Returns:
            Input name to quantisation, and output name to quantisation: of int8 tensors, which
            `predict` takes and gives as float32, and of those that pass as they are.

        Raises:
            SignatureNotFoundError: The variant has no such signature.
        """
        return self._model.quantisation(signature_name)

    def close(self) -> None:
        """Frees the interpreters nobody uses; a later `predict` makes new ones."""
        self._model.close()

    def __enter__(self) -> OnDevicePredictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find_program(self, signature_name: str) -> tuple[Callable[[Batch], dict[str, Array]], str]:
        try:
            program = self._model.find_program(signature_name)
        except SignatureNotFoundError as error:
            raise SignatureNotFoundError(f"{self.path}: {error}; {self._advise()}") from None
        names = list(program.signature.inputs)
        found = program.run, names[0] if len(names) == 1 else ""
        self._programs[signature_name] = found
        return found

    def _advise(self) -> str:
        folder = self.path.parent
        if any((one / layout.SAVED_MODEL).is_file() for one in (folder, folder.parent.parent)):
            return "signatures of strings need a server"
        return "give the name of one as signature_name"

    def _blame_single_array(self, signature_name: str) -> TensorMismatchError:
        signature = self._model.find_program(signature_name).signature
        return TensorMismatchError(
            f"got a single array, and signature {signature.name!r} has the inputs "
            f"{', '.join(signature.inputs)}; give a mapping from input name to array"
        )


def find_variant(path: Path, variant: str) -> Path:
    """The file of a variant in a version directory or in the newest version of a base path.

    Raises:
        ConfigError: No such variant or path; the message lists the variants there are.
    """
    if path.is_file():
        return path
    version_dir = layout.find_version_dir(path)
    found = version_dir / layout.variant_path(variant)
    if variant not in layout.VARIANTS or not found.is_file():
        present = ", ".join(list_variants(version_dir)) or "none, and needs a server"
        raise ConfigError(
            f"{version_dir} has no TFLite variant {variant!r}; it has {present}; copies are made "
            f"by: python -m exporter export --model {version_dir} --examples FILE"
        )
    return found


def explain_missing(version_dir: Path, variant: str) -> str:
    """Why a version has no such variant, as far as its manifest remembers, and what to do."""
    from contract.manifest import read_manifest

    path = layout.variant_path(variant)
    try:
        made = read_manifest(version_dir).parity.get(variant)
    except ManifestError:
        made = None
    if isinstance(made, dict) and made.get("problems"):
        why = "; ".join(map(str, made["problems"]))
        if (remedy := str(made.get("remedy") or "")) not in why:
            why += f"; {remedy}"
        return f"{path} was left out of {version_dir}: {why}"
    return (
        f"{version_dir} has no {path}; copies are made by: python -m exporter export "
        f"--model {version_dir} --examples FILE"
    )


def list_variants(version_dir: Path) -> list[str]:
    """The variants that a version directory holds, in the order of every table."""
    return [
        variant
        for variant in layout.VARIANTS
        if (version_dir / layout.variant_path(variant)).is_file()
    ]


def check_finite(name: str, array: Array) -> None:
    """Refuses NaN and infinity.

    Raises:
        TensorMismatchError: Counts them and says where the first one is.
    """
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    bad = np.argwhere(~np.isfinite(array))
    raise TensorMismatchError(
        f"`{name}` {array.shape} has {len(bad)} values that are not finite, "
        f"the first at {tuple(bad[0].tolist())}; clean them, or pass allow_non_finite=True"
    )


def _filter(outputs: dict[str, Array], names: Sequence[str]) -> dict[str, Array]:
    missing = [name for name in names if name not in outputs]
    if missing:
        raise RequestError(
            f"output_filter names {', '.join(missing)}; the signature has {', '.join(outputs)}"
        )
    return {name: outputs[name] for name in names}
