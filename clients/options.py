"""How a client is set up: small frozen values, each with defaults that hold for most."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, cast

from contract.errors import ConfigError

DEFAULT_MODEL_NAME = "default"
"""TensorFlow Serving's own default of --model_name."""


@dataclasses.dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines in seconds; every call has one.

    Attributes:
        predict_s: For `predict`, `classify`, `regress` and each batch of `predict_many`,
            retries and a first look at the signatures included.
        control_s: For `status` and `metadata`.

    Raises:
        ConfigError: One of them is not above 0.
    """

    predict_s: float = 30.0
    control_s: float = 10.0

    def __post_init__(self) -> None:
        if self.predict_s <= 0 or self.control_s <= 0:
            raise ConfigError(f"{self}: timeouts are seconds above 0")


@dataclasses.dataclass(frozen=True, slots=True)
class Checks:
    """What the client looks at before it sends and before it answers.

    Attributes:
        batch: Names, dtypes and shapes of a batch against the signature. Without it no
            signature is fetched, and a batch must be a mapping.
        reply: That an answer has the signature's outputs, dtypes and shapes.
        rows: That every output of a free first axis has an entry per row of the batch. Most
            models' have, and no signature says so: the k best of a batch, or what is left of it,
            have not.
        allow_non_finite: Let NaN and infinities through, in both directions. They are
            refused otherwise: a NaN put into a classifier gives plausible probabilities.
    """

    batch: bool = True
    reply: bool = True
    rows: bool = False
    allow_non_finite: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class TlsOptions:
    """Whom to trust and who we are. PEM files; all of them are optional.

    Attributes:
        ca_file: Certificates that may sign the server's; the system's otherwise.
        cert_file: Our own certificate, for mutual TLS; needs `key_file`.
        key_file: Its private key.
        server_name: The name to expect in the server's certificate, where it is not the
            address's.

    Raises:
        ConfigError: `cert_file` without `key_file`, or the other way round.
    """

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigError("TlsOptions: give both cert_file and key_file, or neither")

    def read(self, file: str | Path | None) -> bytes | None:
        """The bytes of one of the files.

        Raises:
            ConfigError: It cannot be read.
        """
        try:
            return None if file is None else Path(file).read_bytes()
        except OSError as error:
            raise ConfigError(f"TlsOptions: {file} cannot be read: {error.strerror}") from error


Token = str | Callable[[], str]
"""A bearer token, or a function that gives one that is valid now (asked for every call)."""


MetadataLike = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]
"""What goes with a call beside its message: gRPC's metadata, headers over HTTP. Keys are in lower
case; the value of a key that ends in `-bin` is bytes, any other printable ASCII."""

Metadata = tuple[tuple[str, str | bytes], ...]
"""The same, looked through."""

_KEY = re.compile(r"[0-9a-z_.-]+")
_OF_THE_TRANSPORT = frozenset(
    {
        *("accept-encoding", "connection", "content-encoding", "content-length", "content-type"),
        *("host", "te", "trailer", "transfer-encoding", "upgrade", "user-agent"),
    }
)


def read_metadata(given: MetadataLike) -> Metadata:
    """Metadata as it is sent.

    Raises:
        ConfigError: A key or value that cannot be; values are not shown, which may be secrets.
    """
    found = []
    for key, value in given.items() if isinstance(given, Mapping) else given:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            better = key.lower() if isinstance(key, str) and _KEY.fullmatch(key.lower()) else ""
            fix = f"give {better!r}" if better else "give letters, digits and _ . - alone"
            raise ConfigError(f"metadata: the key {key!r} is not in lower case; {fix}")
        if key in _OF_THE_TRANSPORT or key.startswith("grpc-"):
            raise ConfigError(f"metadata: the key {key!r} belongs to the transport; leave it out")
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise ConfigError(f"metadata: the value of {key!r} must be bytes, as of every -bin")
        elif not isinstance(value, str) or not value.isascii() or not (value or "-").isprintable():
            raise ConfigError(
                f"metadata: the value of {key!r} must be one line of printable ASCII; anything "
                f"else goes as bytes below {key + '-bin'!r}"
            )
        found.append((key, value))
    return tuple(found)


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """How the server is reached.

    Attributes:
        tls: Encrypt with these; None is plain text.
        token: Sent as `authorization: Bearer ...`, if given.
        keepalive_s: Ping a silent connection after so many seconds, so that a dead one is
            noticed.
        compression: Of requests. Floats hardly shrink; it pays for images kept as text.
        max_answer_bytes: The largest answer that is read, inflated; a larger one is a
            ResourceExhaustedError, and `predict_many` asks for fewer rows at a time.
        metadata: Sent with every call; what a call has of its own under the same key wins.
        tracing: Whether each call is a span of OpenTelemetry, made by the tracer provider that the
            application has set, and the server is told of it. None stands for yes in an
            application that has imported `opentelemetry.trace`.

    Raises:
        ConfigError: `max_answer_bytes` is below 1 or above 2^31 - 1, or metadata that cannot be.
    """

    tls: TlsOptions | None = None
    token: Token | None = dataclasses.field(default=None, repr=False)
    keepalive_s: float = 60.0
    compression: Literal["none", "gzip", "deflate"] = "none"
    max_answer_bytes: int = 256 * 2**20
    metadata: MetadataLike = dataclasses.field(default=(), repr=False)
    tracing: bool | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_answer_bytes < 2**31:
            raise ConfigError(
                f"max_answer_bytes={self.max_answer_bytes}: give 1 to {2**31 - 1} bytes"
            )
        object.__setattr__(self, "metadata", read_metadata(self.metadata))

    @property
    def wants_spans(self) -> bool:
        """Whether calls are traced from now on."""
        return "opentelemetry.trace" in sys.modules if self.tracing is None else self.tracing

    def headers(self, own: Metadata = ()) -> Metadata:
        """What goes with a call: its own metadata, and what goes with every one.

        Raises:
            ConfigError: The token is empty or holds more than one line.
        """
        if self.token is None and not self.metadata:
            return own
        always = cast("Metadata", self.metadata)
        if self.token is not None:
            always = (("authorization", self._read_token()), *always)
        if not own or not always:
            return own or always
        keys = {key for key, _ in own}
        return (*(pair for pair in always if pair[0] not in keys), *own)

    def _read_token(self) -> str:
        token = self.token() if callable(self.token) else self.token
        if not token or not token.isascii() or not token.isprintable():
            raise ConfigError("the bearer token must be one line of printable ASCII")
        return f"Bearer {token}"


LARGER_ANSWERS = "send fewer rows at a time, or give ConnectionOptions a larger max_answer_bytes"
"""What to do about an answer that is too large."""

DEFAULT_TIMEOUTS = Timeouts()
DEFAULT_CHECKS = Checks()
DEFAULT_CONNECTION = ConnectionOptions()
