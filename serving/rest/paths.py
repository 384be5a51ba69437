"""Which model, version or label, and what of it, a REST path asks for.

The patterns are TensorFlow Serving's (`model_servers/http_rest_api_util.cc`).
"""

from __future__ import annotations

import dataclasses
import re
import urllib.parse

from contract.errors import RequestError
from contract.servable import ModelSpec

_MODEL = r"(?:(?:/versions/([0-9]+))|(?:/labels/([^/:]+)))?"
_PREDICTION = re.compile(rf"(?i)/v1/models/([^/:]+){_MODEL}:(classify|regress|predict)")
_STATUS = re.compile(rf"(?i)/v1/models(?:/([^/:]+))?{_MODEL}(?:/(metadata))?")
_API = re.compile(r"(?is)/v1/.*")
_CHARS = r"[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2}"
_VALID = re.compile(rf"(?:{_CHARS})*(?:\?(?:{_CHARS}|\?)*)?(?:#(?:{_CHARS}|\?)*)?")


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What a path asks for.

    Attributes:
        spec: Model, version or label.
        verb: What is written after the colon or the last slash, as written; or "".
        is_of_more: Whether another API than TensorFlow Serving's is asked: see `MoreMethods` of
            `serving.rest.server`.
    """

    spec: ModelSpec
    verb: str
    is_of_more: bool = False


class EmptyAnswer(RequestError):
    """A path that TensorFlow Serving answers with a status and without a body."""


def is_valid_path(path: str) -> bool:
    """Whether libevent's `evhttp_uri_parse` takes a path, with its query and fragment."""
    return _VALID.fullmatch(path) is not None


def is_api_path(path: str) -> bool:
    """Whether a path, with its query, belongs to the API at all."""
    return _API.fullmatch(path) is not None


def parse_path(method: str, path: str) -> Target | None:
    """What a request asks for, or None if the path is malformed."""
    pattern = {"POST": _PREDICTION, "GET": _STATUS}.get(method)
    found = pattern.fullmatch(path) if pattern is not None else None
    if found is None:
        return None
    name, digits, label, verb = found.groups()
    version = None
    if digits:
        version = int(digits) if len(digits.lstrip("0")) < 20 else 2**63
        if version >= 2**63:
            raise EmptyAnswer(f"Failed to convert version: {digits} to numeric.")
    spec = ModelSpec(
        decode_name(name or ""),
        version=version,
        version_label=decode_name(label) if label else None,
    )
    return Target(spec, verb or "")


def decode_name(name: str) -> str:
    """A name with its percent signs decoded; wrong ones are left as they are."""
    return urllib.parse.unquote(name, errors="surrogateescape") if "%" in name else name
