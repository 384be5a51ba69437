"""What a client remembers of the signatures it was told, by version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from clients.checking import SignatureChecker
from clients.options import Checks
from clients.results import ModelMetadata
from contract.servable import DEFAULT_SIGNATURE_NAME, ModelSpec
from contract.signature import Signature, find_signature

_MOST_VERSIONS = 16
_OLD_AFTER_S = 1.0


class Known(NamedTuple):
    """The signatures of a version, each with its checker, and when they were fetched."""

    version: int
    signatures: Mapping[str, Signature]
    checkers: Mapping[str, SignatureChecker]
    fetched_at: float

    def find(self, signature_name: str) -> SignatureChecker:
        """The checker of a signature; "" stands for `serving_default`.

        Raises:
            SignatureNotFoundError: The version has no such signature.
        """
        found = self.checkers.get(signature_name or DEFAULT_SIGNATURE_NAME)
        return found or self.checkers[find_signature(self.signatures, signature_name).name]


class SignatureMemory:
    """Signatures per version, and which version each way of asking stands for.

    "The latest" and a label move. The server says with every prediction which version
    answered, so that a move is noticed at once and costs one fetch.

    Args:
        clock: Seconds, monotonic.
        checks: What the checkers look at.
    """

    def __init__(self, clock: Callable[[], float], checks: Checks) -> None:
        self._clock = clock
        self._checks = checks
        self._versions: dict[int, Known] = {}
        self._current: dict[tuple[int | None, str | None], int] = {}

    def recall(self, spec: ModelSpec) -> Known | None:
        """What is known of the version that `spec` stood for when last heard of."""
        version = self._current.get((spec.version, spec.version_label))
        return None if version is None else self._versions.get(version)

    def learn(self, spec: ModelSpec, metadata: ModelMetadata) -> Known:
        """Takes in what the server said."""
        known = Known(
            version=metadata.version,
            signatures=metadata.signatures,
            checkers={
                name: SignatureChecker(signature, self._checks)
                for name, signature in metadata.signatures.items()
            },
            fetched_at=self._clock(),
        )
        if len(self._versions) >= _MOST_VERSIONS:
            self._versions.clear()
        self._versions[known.version] = known
        self._current[spec.version, spec.version_label] = known.version
        return known

    def follow(self, spec: ModelSpec, version: int) -> Known | None:
        """Notes that `spec` now stands for `version`; what is known of that one."""
        self._current[spec.version, spec.version_label] = version
        return self._versions.get(version)

    def is_old(self, known: Known) -> bool:
        """Whether a batch that does not fit is worth another look at the signatures."""
        return self._clock() - known.fetched_at > _OLD_AFTER_S
