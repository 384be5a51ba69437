"""A `.tflite` file that nobody vouches for, read and tried in a process of its own.

A runtime trusts a file's offsets and numbers: a damaged one can end the process that opens it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from contract.errors import ERRORS_BY_NAME, ManifestError, PlumblineError
from contract.lite.model import LiteModel
from contract.lite.tensors import Quantisation
from contract.signature import STRING, Batch, Signature

_TIMEOUT_S = 60.0


class Quantised(NamedTuple):
    """Tensor name to scale and zero point, of those that have them."""

    inputs: dict[str, Quantisation]
    outputs: dict[str, Quantisation]


class LiteDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What a `.tflite` file says of itself.

    Attributes:
        signatures: By name, as callers see them: int8 tensors show as float32.
        raw_signatures: The same with the dtypes of the file.
        fixed_rows: Signature name to how many rows the file fixes for a run; 0 for any number.
        quantisation: By signature name.
        tried: Signature name to why a row of zeros is not answered, "" if it is; only what was
            tried: not what takes strings, nor what takes axes of any size beside the batch.
    """

    signatures: dict[str, Signature]
    raw_signatures: dict[str, Signature]
    fixed_rows: dict[str, int]
    quantisation: dict[str, Quantised]
    tried: dict[str, str] = {}


class _Outcome(msgspec.Struct, frozen=True):
    """What the other process says."""

    found: LiteDescription | None = None
    error: str = ""
    message: str = ""


def describe_file(path: Path, *, tries: bool = False) -> LiteDescription:
    """Reads a file in this process, which a damaged one can end: for those that are vouched for.

    Args:
        path: A `.tflite` file.
        tries: Whether each signature is asked once.

    Raises:
        ManifestError: Missing, unreadable or not a TFLite model.
        UnimplementedError: No TFLite runtime is installed, or the model needs what it lacks.
    """
    with LiteModel(path) as model:
        return LiteDescription(
            signatures=dict(model.signatures),
            raw_signatures=dict(model.raw_signatures),
            fixed_rows=dict(model.fixed_rows),
            quantisation={
                name: Quantised(*map(dict, model.quantisation(name))) for name in model.signatures
            },
            tried=_try_signatures(model) if tries else {},
        )


def describe_apart(path: Path, *, timeout_s: float = _TIMEOUT_S) -> LiteDescription:
    """`describe_file` with every signature asked once, in another process.

    Args:
        path: A `.tflite` file.
        timeout_s: How long the other process may take.

    Raises:
        ManifestError: Missing, unreadable, not a TFLite model, or one that ends the process that
            opens it, or never answers.
        UnimplementedError: No TFLite runtime is installed, or the model needs what it lacks.
    """
    code = f"from {__name__} import main; main()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ManifestError(
            f"{path}: opening it and asking it once took longer than {timeout_s:g} s"
        ) from None
    try:
        outcome = msgspec.json.decode(done.stdout, type=_Outcome)
    except msgspec.DecodeError as error:
        raise ManifestError(
            f"{path} ends the process that opens it ({_describe_end(done.returncode)}): it is "
            "damaged, or the TFLite runtime has a fault; convert or copy it again"
        ) from error
    if outcome.found is None:
        raise ERRORS_BY_NAME[outcome.error](outcome.message)
    return outcome.found


def main() -> None:
    """What the other process does."""
    try:
        outcome = _Outcome(describe_file(Path(sys.argv[1]), tries=True))
    except PlumblineError as error:
        outcome = _Outcome(None, type(error).__name__, error.message)
    sys.stdout.buffer.write(msgspec.json.encode(outcome))


def _try_signatures(model: LiteModel) -> dict[str, str]:
    tried = {}
    for name, signature in model.signatures.items():
        batch = _make_zeros(signature, model.fixed_rows[name] or 1)
        if batch is None:
            continue
        try:
            model.predict(batch, signature_name=name)
            tried[name] = ""
        except PlumblineError as error:
            tried[name] = error.message
    return tried


def _make_zeros(signature: Signature, num_rows: int) -> Batch | None:
    batch = {}
    for name, spec in signature.inputs.items():
        if spec.dtype == STRING or spec.shape is None or None in spec.shape[1:]:
            return None
        shape = [num_rows if size is None else size for size in spec.shape]
        batch[name] = np.zeros(shape, spec.numpy_dtype)
    return batch


def _describe_end(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
