"""What is asked of every row, and how two questions differ, in the words of the flags."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from clients.score.columns import ColumnPlan

_MOST_CHARACTERS = 64
_DIGITS = 12

_NAMES = {
    "digest": "the manifest",
    "signature": "the signature",
    "variant": "--variant",
    "outputs": "--outputs",
    "inputs": "the choice of input columns (--map)",
    "keys": "the choice of keys (--keys)",
    "invert": "--invert",
    "scale": "--scale",
    "shift": "--shift",
    "allow_non_finite": "--allow_non_finite",
}
"""Fields of a question as people know them."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer hangs on, besides its row.

    Attributes:
        digest: The manifest's.
        outputs: Those that are written; () = all.
        variant: The TFLite variant.
        signature: Its name.
        inputs: Of each input its name, columns, encodings and fillings.
        keys: Name and type of each column that is carried through.
        invert: As `clients.files.fit.Adjustment`, and so the next two.
        scale: What numbers are divided by; 0 leaves them.
        shift: What is added to them then.
        allow_non_finite: Whether NaN and infinity are scored.
    """

    digest: str
    outputs: tuple[str, ...]
    variant: str
    signature: str
    inputs: tuple[tuple[str, tuple[str, ...], tuple[str, ...], tuple[float, ...]], ...]
    keys: tuple[tuple[str, str], ...]
    invert: bool
    scale: float
    shift: float
    allow_non_finite: bool

    @classmethod
    def of(cls, plan: ColumnPlan, *, digest: str, outputs: Sequence[str], variant: str) -> Question:
        """Of how rows become batches, and of what answers."""
        return cls(
            digest=digest,
            outputs=tuple(outputs),
            variant=variant,
            signature=plan.signature.name,
            inputs=tuple(dataclasses.astuple(one) for one in plan.inputs),
            keys=tuple((name, str(plan.types[name])) for name in plan.keys),
            invert=plan.adjustment.invert,
            scale=plan.adjustment.scale,
            shift=plan.adjustment.shift,
            allow_non_finite=plan.allow_non_finite,
        )

    @property
    def fingerprint(self) -> str:
        """A hash of all of it: names of parts are made of it, and must not change."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    def describe(self) -> dict[str, str]:
        """Field to a short text, which `name_differences` compares: what is long is hashed."""
        texts = {
            "digest": shorten_digest(self.digest),
            "signature": self.signature,
            "variant": self.variant,
            "outputs": ",".join(self.outputs) or "all",
            "inputs": " ".join(
                f"{name}={','.join(columns)}" if name else ",".join(columns)
                for name, columns, *_ in self.inputs
            ),
            "keys": ",".join(f"{name} ({kind})" for name, kind in self.keys) or "none",
            "invert": "on" if self.invert else "off",
            "scale": f"{self.scale:g}",
            "shift": f"{self.shift:g}",
            "allow_non_finite": "on" if self.allow_non_finite else "off",
        }
        return {
            name: text if len(text) <= _MOST_CHARACTERS else f"#{_hash(text)}"
            for name, text in texts.items()
        }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def shorten_digest(digest: str) -> str:
    """As much of a manifest's digest as tells it from others."""
    return digest[:_DIGITS]


def name_differences(other: Mapping[str, str], ours: Mapping[str, str], words: str) -> list[str]:
    """A clause for each field that both tell, and tell otherwise.

    Args:
        other: As `Question.describe` made it, perhaps of another release: with other fields.
        ours: Likewise.
        words: With `{other}` and `{ours}`, for example `was {other} and is {ours} now`.
    """
    clauses = []
    for field, name in _NAMES.items():
        if field not in other or field not in ours or other[field] == ours[field]:
            continue
        if other[field].startswith("#") or ours[field].startswith("#"):
            clauses.append(f"{name} differs")
        else:
            clauses.append(f"{name} {words.format(other=other[field], ours=ours[field])}")
    return clauses
