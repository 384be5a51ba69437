"""A models.config that several operators change: locked, edited, replaced by one rename.

The text is edited in place, so that people's comments and layout stay. What was changed is then
read again and compared with the message that it should be; a text written in a way that the
editing does not know is written anew from the message, without its comments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import final

from google.protobuf import text_encoding, text_format

from contract.errors import ConfigError, DeadlineExceededError
from contract.wire.plumbline_wire import config_pb2
from contract.wire.text_format import parse_text_message, read_text
from serving.rollout.audit import append_line

_LOG = logging.getLogger(__name__)
_POLL_S = 0.1

Policy = config_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy
_POLICY, _LABELS = "model_version_policy", "version_labels"
_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)|(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')"""
    r"""|(?P<mark>[{}<>\[\]:;,])|(?P<word>[^\s\#"'{}<>\[\]:;,]+)|(?P<end>\Z)"""
)
_CLOSING = {"{": "}", "<": ">"}


@dataclasses.dataclass(frozen=True, slots=True)
class ModelEdit:
    """What to change about one model.

    Attributes:
        model_name: Of an entry that is there.
        labels: Label to version, or to None to take it away; others stay.
        policy: The version policy; an empty one takes it away, None leaves it.
    """

    model_name: str
    labels: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    policy: Policy | None = None


@final
class ModelConfigFile:
    """A models.config.

    Args:
        path: The file; a symlink is followed, and stays one.

    Raises:
        ConfigError: There is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        if not self.path.is_file():
            raise ConfigError(f"--model_config_file={path}: no such file")

    @contextlib.contextmanager
    def hold(self, *, timeout_s: float) -> Iterator[None]:
        """Keeps other commands of ours from changing the file; waits for one that does."""
        path = self.path.with_name(f"{self.path.name}.lock")
        try:
            # Never removed: whoever waits for it must wait for the same file.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(f"{path}: the lock cannot be made: {error.strerror}") from error
        try:
            _wait_for_lock(descriptor, path, timeout_s)
            yield
        finally:
            os.close(descriptor)

    def read_model(self, model_name: str) -> config_pb2.ModelConfig:
        """A model's entry."""
        return find_model(self.read(), model_name, str(self.path))

    def read_text(self) -> str:
        """The file as it is."""
        return read_text(self.path)

    def read(self) -> config_pb2.ModelServerConfig:
        """The whole file."""
        return parse_config(read_text(self.path), str(self.path))

    def change(self, edit: ModelEdit, *, action: str, original: str = "") -> bool:
        """Edits what the file holds now, replaces it, and writes the audit line.

        Call it while holding the file.
        """
        text = read_text(self.path)
        before = find_model(parse_config(text, str(self.path)), edit.model_name, str(self.path))
        edited = edit_text(text, edit, str(self.path))
        if original and parse_config(original, "") == parse_config(edited, ""):
            edited = original
        after = find_model(parse_config(edited, str(self.path)), edit.model_name, str(self.path))
        if text == edited or (before == after and not original):
            return False
        self._replace(edited)
        labels = {
            label: (before.version_labels.get(label), version)
            for label, version in edit.labels.items()
            if before.version_labels.get(label) != version
        }
        policies = describe_policy(before), describe_policy(after)
        append_line(
            self.path,
            action,
            edit.model_name,
            labels=labels,
            policy=policies if policies[0] != policies[1] else (),
            sha256=hashlib.sha256(edited.encode()).hexdigest(),
        )
        return True

    def _replace(self, text: str) -> None:
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        try:
            with partial.open("w", encoding="utf-8", newline="") as stream:
                stream.write(text)
                stream.flush()
                _keep_owner_and_mode(self.path, stream.fileno())
                os.fsync(stream.fileno())
            partial.replace(self.path)
            _sync_folder(self.path.parent)
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot be replaced ({error.strerror or error}); it is as it was"
            ) from error
        finally:
            partial.unlink(missing_ok=True)


def _wait_for_lock(descriptor: int, path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    told = False
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if not told:
            _LOG.info("waiting: another rollout holds %s", path)
            told = True
        if time.monotonic() > deadline:
            raise DeadlineExceededError(
                f"{path}: another rollout has held it for {timeout_s:g} s; wait for its end, then "
                "run this again"
            )
        time.sleep(_POLL_S)


def _keep_owner_and_mode(path: Path, descriptor: int) -> None:
    status = path.stat()
    os.fchmod(descriptor, status.st_mode & 0o7777)
    if (status.st_uid, status.st_gid) != (os.getuid(), os.getgid()):
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, status.st_uid, status.st_gid)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_policy(model: config_pb2.ModelConfig) -> str:
    """For example `latest 1`, `all` or `specific 1 2`."""
    policy = model.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return "all"
        case "specific":
            return " ".join(["specific", *map(str, policy.specific.versions)])
        case _:
            return f"latest {max(policy.latest.num_versions, 1)}"


def parse_config(text: str, place: str) -> config_pb2.ModelServerConfig:
    """Reads a text-format ModelServerConfig."""
    return parse_text_message(text, config_pb2.ModelServerConfig(), place=place)


def find_model(
    config: config_pb2.ModelServerConfig, model_name: str, place: str
) -> config_pb2.ModelConfig:
    """A model's entry."""
    found = [one for one in config.model_config_list.config if one.name == model_name]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{place}: lists model {model_name!r} {len(found)} times; leave one")
    names = ", ".join(one.name for one in config.model_config_list.config) or "none"
    raise ConfigError(f"{place}: lists no model {model_name!r} (its models: {names})")


class _Unusual(Exception):
    """A text that the editing does not know."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    name: str
    start: int
    end: int
    inner: tuple[int, int] | None = None
    children: tuple[_Field, ...] = ()


def edit_text(text: str, edit: ModelEdit, place: str) -> str:
    """The text with one model changed."""
    wanted = parse_config(text, place)
    _change_message(find_model(wanted, edit.model_name, place), edit)
    try:
        edited = _edit_in_place(text, edit)
        if parse_config(edited, place) == wanted:
            return edited
    except (_Unusual, ConfigError, text_format.ParseError):
        pass
    _LOG.warning("%s: written in a way that cannot be edited; its comments are lost", place)
    return str(text_format.MessageToString(wanted))


def _change_message(model: config_pb2.ModelConfig, edit: ModelEdit) -> None:
    for label, version in edit.labels.items():
        if version is None:
            model.version_labels.pop(label, None)
        else:
            model.version_labels[label] = version
    if edit.policy is not None:
        model.ClearField("model_version_policy")
        if edit.policy.WhichOneof("policy_choice"):
            model.model_version_policy.CopyFrom(edit.policy)


def _edit_in_place(text: str, edit: ModelEdit) -> str:
    model = _find_block(text, edit.model_name)
    wanted: list[tuple[list[_Field], str]] = []
    for label, version in edit.labels.items():
        spans = [one for one in model.children if _read_label(text, one) == label]
        wanted.append((spans, "" if version is None else _write_label(label, version)))
    if edit.policy is not None:
        spans = [one for one in model.children if one.name == _POLICY]
        wanted.append((spans, _write_policy(edit.policy)))
    changes = []
    for spans, line in wanted:
        changes += [(one.start, one.end, "") for one in spans[1:]]
        changes += [(one.start, one.end, line) for one in spans[:1]]
    lines = [line for spans, line in wanted if line and not spans]
    if lines:
        changes.append(_append(text, model, lines))
    for start, end, replacement in sorted(changes, reverse=True):
        text = _replace(text, start, end, replacement)
    return text


def _append(text: str, model: _Field, lines: list[str]) -> tuple[int, int, str]:
    """New fields after the last one, each on a line of its own."""
    assert model.inner is not None
    start, end = model.inner
    at = max((one.end for one in model.children), default=start)
    line_end = text.find("\n", at, end)
    if line_end < 0:  # the block, or its last field and its end, share a line
        return at, at, "".join(f" {line}" for line in lines)
    first = min((one.start for one in model.children), default=start)
    indent = re.search(r"[ \t]*$", text[:first])
    return line_end, line_end, "".join(f"\n{indent[0] if indent else ''}{one}" for one in lines)


def _replace(text: str, start: int, end: int, replacement: str) -> str:
    if not replacement:  # with the field goes its line, if it had one to itself
        line = text.rfind("\n", 0, start) + 1
        if not text[line:start].strip() and text[end : end + 1] == "\n":
            start, end = line, end + 1
    return text[:start] + replacement + text[end:]


def _write_label(label: str, version: int) -> str:
    escaped = text_encoding.CEscape(label.encode(), as_utf8=True)
    return f'{_LABELS} {{ key: "{escaped}" value: {version} }}'


def _write_policy(policy: Policy) -> str:
    if not policy.WhichOneof("policy_choice"):
        return ""
    return f"{_POLICY} {{ {text_format.MessageToString(policy, as_one_line=True)} }}"


def _read_label(text: str, field: _Field) -> str | None:
    if field.name != _LABELS or field.inner is None:
        return None
    parsed = text_format.Parse(text[field.start : field.end], config_pb2.ModelConfig())
    return next(iter(parsed.version_labels), None)


def _find_block(text: str, model_name: str) -> _Field:
    fields, _ = _read_fields(text, 0, "")
    for listing in fields:
        for field in listing.children if listing.name == "model_config_list" else ():
            if field.name == "config" and field.inner is not None:
                inner = text[slice(*field.inner)]
                if text_format.Parse(inner, config_pb2.ModelConfig()).name == model_name:
                    return field
    raise _Unusual


def _next(text: str, position: int) -> re.Match[str]:
    """The next token; `lastgroup` is its kind."""
    while (match := _TOKEN.match(text, position)) and match.lastgroup == "skip":
        position = match.end()
    if match is None:
        raise _Unusual
    return match


def _read_fields(text: str, position: int, closing: str) -> tuple[tuple[_Field, ...], int]:
    """The fields up to `closing`, and where it starts."""
    fields: list[_Field] = []
    while True:
        token = _next(text, position)
        if token[0] == closing:
            return tuple(fields), token.start()
        if token.lastgroup != "word":
            raise _Unusual  # an extension, a list, or nothing that we know
        field = _read_value(text, token)
        separator = _next(text, field.end)
        position = separator.end() if separator[0] in (",", ";") else field.end
        fields.append(dataclasses.replace(field, end=position))


def _read_value(text: str, name: re.Match[str]) -> _Field:
    token = _next(text, name.end())
    if token[0] == ":":
        token = _next(text, token.end())
    if token[0] in _CLOSING:
        children, close = _read_fields(text, token.end(), _CLOSING[token[0]])
        return _Field(name[0], name.start(), close + 1, (token.end(), close), children)
    if token.lastgroup not in ("word", "text"):
        raise _Unusual
    end = token.end()
    while token.lastgroup == "text":  # adjacent strings are one value
        end = token.end()
        token = _next(text, end)
    return _Field(name[0], name.start(), end)
