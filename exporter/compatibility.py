"""What a new version may not change: the signatures of the version before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from contract.signature import Signature, TensorSpec


def list_breaks(before: Mapping[str, Signature], after: Mapping[str, Signature]) -> list[str]:
    """Every way in which a client of `before` would fail on `after`, as short sentences.

    New signatures and new outputs break nobody. A new input does: old requests lack it.

    Example:
        >>> list_breaks({}, {"serving_default": Signature("serving_default", {}, {})})
        []
    """
    return [text for name, old in before.items() for text in _compare(old, after.get(name))]


def _compare(old: Signature, new: Signature | None) -> Iterator[str]:
    if new is None:
        yield f"signature {old.name!r} is gone or renamed"
        return
    yield from _compare_tensors(f"{old.name!r} input", old.inputs, new.inputs)
    yield from _compare_tensors(f"{old.name!r} output", old.outputs, new.outputs)
    for name in sorted(new.inputs.keys() - old.inputs.keys()):
        yield f"{old.name!r} input {name!r} is new, and requests of today lack it"
    if old.method_name != new.method_name:
        yield f"{old.name!r} was {old.method_name} and is {new.method_name}"


def _compare_tensors(
    where: str, old: Mapping[str, TensorSpec], new: Mapping[str, TensorSpec]
) -> Iterator[str]:
    for name, spec in old.items():
        if name not in new:
            yield f"{where} {name!r} is gone or renamed"
        elif (spec.dtype, spec.shape) != (new[name].dtype, new[name].shape):
            yield f"{where} {name!r} was {spec.describe()} and is {new[name].describe()}"
