"""The checks of signatures, the same for a version directory and for a server."""

from __future__ import annotations

import re
from collections.abc import Mapping

from clients.doctor.findings import FAILS, MESSAGE_LIMIT, OK, SHAPES, SIGNATURES, WARNING, Finding
from contract.signature import Signature

_GENERATED = re.compile(
    r"(args|conv2d|dense|flatten|functional|input|keras_tensor|output|sequential)(_\d+)+"
)
_GRPC_DEFAULT_BYTES = 4 * 2**20


def check_names(signatures: Mapping[str, Signature]) -> list[Finding]:
    """Whether signatures and tensors are called what people will ask for."""
    if "serving_default" not in signatures:
        return [
            Finding(
                SIGNATURES,
                FAILS,
                f"no `serving_default`, only {', '.join(signatures) or 'nothing'}: a request "
                "without a signature name fails",
                "name the signature in each request (--signature_name), or export with "
                "signatures={'serving_default': …}",
            )
        ]
    generated = sorted(
        f"{signature.name}.{name}"
        for signature in signatures.values()
        for name in (*signature.inputs, *signature.outputs)
        if _GENERATED.fullmatch(name)
    )
    if generated:
        return [
            Finding(
                SIGNATURES,
                WARNING,
                f"Keras made up the names {', '.join(generated)}; they change with every export",
                "export with explicit names: tf.saved_model.save(…, signatures={…}), as "
                "`python -m exporter export` does",
            )
        ]
    return [Finding(SIGNATURES, OK, ", ".join(signatures))]


def check_specs(signatures: Mapping[str, Signature]) -> list[Finding]:
    """Whether batches of any size fit, and how many rows fit a message."""
    fixed = [
        f"{signature.name}.{name} {spec.describe()}"
        for signature in signatures.values()
        for name, spec in signature.inputs.items()
        if spec.shape is not None and (not spec.shape or spec.shape[0] is not None)
    ]
    shapes = Finding(SHAPES, OK, describe_inputs(signatures))
    if fixed:
        shapes = Finding(
            SHAPES,
            WARNING,
            f"no free batch axis in {'; '.join(fixed)}: only this very shape can be sent",
            "export with shape (None, …)",
        )
    rows = [_count_rows(signature) for signature in signatures.values()]
    smallest = min((count for count in rows if count), default=0)
    limit = Finding(
        MESSAGE_LIMIT,
        OK if smallest != 1 else WARNING,
        f"{smallest:,} rows fit into gRPC's default of 4 MiB" if smallest else "depends on strings",
        "" if smallest != 1 else "lift the limit on both sides: PredictionClient does",
    )
    return [shapes, limit]


def describe_inputs(signatures: Mapping[str, Signature]) -> str:
    """Every signature's inputs in one line."""
    return "; ".join(
        f"{signature.name}: "
        + ", ".join(f"{name} {spec.describe()}" for name, spec in signature.inputs.items())
        for signature in signatures.values()
    )


def _count_rows(signature: Signature) -> int:
    row_bytes = 0
    for spec in signature.inputs.values():
        if spec.dtype == "string" or spec.shape is None:
            return 0
        size = spec.numpy_dtype.itemsize
        for axis in spec.shape[1:]:
            size *= axis or 1
        row_bytes += size
    return max(_GRPC_DEFAULT_BYTES // row_bytes, 1) if row_bytes else 0
