"""Every error that Plumbline raises on purpose.

    PlumblineError                    code
    ├── ConfigError                   INVALID_ARGUMENT     unknown key, wrong type, bad flag
    ├── DatasetError                  INVALID_ARGUMENT     missing, unreadable, wrong shape, NaN, labels out of range
    ├── ManifestError                 DATA_LOSS            missing, unreadable, newer schema, checksum differs
    ├── UntrustedVersionError         PERMISSION_DENIED    not signed, or not by the key that is asked for
    ├── ExportError                   FAILED_PRECONDITION
    │   ├── VerificationError         FAILED_PRECONDITION  a candidate disagrees with the in-process model
    │   ├── SignatureChangedError     FAILED_PRECONDITION  breaks the contract of the version it follows
    │   └── VersionExistsError        ALREADY_EXISTS       publish never overwrites
    ├── RequestError                  INVALID_ARGUMENT
    │   ├── SignatureNotFoundError    FAILED_PRECONDITION
    │   └── TensorMismatchError       INVALID_ARGUMENT     name, dtype or shape
    ├── ServableNotFoundError         NOT_FOUND
    ├── ServableUnavailableError      UNAVAILABLE          loading, unloading, queue full, server unreachable
    ├── WorkerLostError               UNAVAILABLE          a machine that trains with this one is gone
    ├── ResourceExhaustedError        RESOURCE_EXHAUSTED   message, queue or concurrency limit
    ├── UnauthenticatedError          UNAUTHENTICATED
    ├── PermissionDeniedError         PERMISSION_DENIED
    ├── UnimplementedError            UNIMPLEMENTED        method, or a signature that needs an extra that is absent
    ├── CancelledError                CANCELLED
    ├── DeadlineExceededError         DEADLINE_EXCEEDED
    └── InternalError                 INTERNAL             a bug of ours: logged with its traceback, answered without

No class names a transport: `contract.wire.status_codes` maps the canonical code to gRPC and HTTP.
A message says what was given, what was expected, and what to do.
"""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """Canonical status codes, numbered as in google/rpc/code.proto."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class PlumblineError(Exception):
    """The root of the tree.

    Args:
        message: One or more sentences for a person.
        code: A canonical code that differs from the class's own, where TensorFlow
            Serving answers one kind of fault with different codes on different methods.
        retry_after_s: When the same call may succeed, in seconds from now; infinity for never,
            None where nobody knows.
    """

    default_code: Code = Code.UNKNOWN

    def __init__(
        self, message: str, *, code: Code | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = self.default_code if code is None else code
        self.retry_after_s = retry_after_s


class ConfigError(PlumblineError):
    """A configuration file, key or flag that cannot be used."""

    default_code = Code.INVALID_ARGUMENT


class DatasetError(PlumblineError):
    """Data that cannot be read or trained on."""

    default_code = Code.INVALID_ARGUMENT


class ManifestError(PlumblineError):
    """A version whose manifest is missing, unreadable, newer than this program, or untrue."""

    default_code = Code.DATA_LOSS


class UntrustedVersionError(PlumblineError):
    """A version that is not, file for file, what the holder of a trusted key has signed."""

    default_code = Code.PERMISSION_DENIED


class ExportError(PlumblineError):
    """A model that cannot be exported or published."""

    default_code = Code.FAILED_PRECONDITION


class VerificationError(ExportError):
    """A candidate that disagrees with the in-process model."""


class SignatureChangedError(ExportError):
    """A candidate that breaks the signatures of the version it would follow."""


class VersionExistsError(ExportError):
    """A version number that is taken: a published version is never overwritten."""

    default_code = Code.ALREADY_EXISTS


class RequestError(PlumblineError):
    """A request that no server could answer."""

    default_code = Code.INVALID_ARGUMENT


class SignatureNotFoundError(RequestError):
    """A signature name that the version does not have."""

    default_code = Code.FAILED_PRECONDITION


class TensorMismatchError(RequestError):
    """A tensor whose name, dtype or shape is not the signature's."""


class ServableNotFoundError(PlumblineError):
    """A model, version or label that is not served."""

    default_code = Code.NOT_FOUND


class ServableUnavailableError(PlumblineError):
    """A servable or server that cannot answer now and may later."""

    default_code = Code.UNAVAILABLE


class WorkerLostError(PlumblineError):
    """A training on several machines that has lost one of them; it can be resumed."""

    default_code = Code.UNAVAILABLE


class ResourceExhaustedError(PlumblineError):
    """A message, queue or concurrency limit that was reached."""

    default_code = Code.RESOURCE_EXHAUSTED


class UnauthenticatedError(PlumblineError):
    """A call without the credentials that the server wants."""

    default_code = Code.UNAUTHENTICATED


class PermissionDeniedError(PlumblineError):
    """A call that its credentials do not allow, or that the server's flags turn off."""

    default_code = Code.PERMISSION_DENIED


class UnimplementedError(PlumblineError):
    """A method the server lacks, or a signature that needs an extra that is not installed."""

    default_code = Code.UNIMPLEMENTED


class CancelledError(PlumblineError):
    """A call that its caller gave up."""

    default_code = Code.CANCELLED


class DeadlineExceededError(PlumblineError):
    """A call whose time ran out."""

    default_code = Code.DEADLINE_EXCEEDED


class InternalError(PlumblineError):
    """A bug of ours; its traceback is in the log."""

    default_code = Code.INTERNAL


ERRORS_BY_NAME: dict[str, type[PlumblineError]] = {
    name: kind
    for name, kind in dict(globals()).items()
    if isinstance(kind, type) and issubclass(kind, PlumblineError)
}
"""Class name to class: how the wire names an error, so that a client raises the same one."""
