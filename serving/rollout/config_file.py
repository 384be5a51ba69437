"""A models.config that several operators change: locked, edited, replaced by one rename."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import final

from contract.errors import ConfigError, DeadlineExceededError
from contract.wire.plumbline_wire import config_pb2
from contract.wire.text_format import read_text
from serving.rollout.audit import append_line
from serving.rollout.config_text import ModelEdit, edit_text, find_model, parse_config

_LOG = logging.getLogger(__name__)
_POLL_S = 0.1


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
        """Keeps other commands of ours from changing the file; waits for one that does.

        Raises:
            DeadlineExceededError: It is still held after `timeout_s`.
            ConfigError: The lock cannot be made.
        """
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
        """A model's entry.

        Raises:
            ConfigError: The file cannot be read, or does not list the model.
        """
        return find_model(self.read(), model_name, str(self.path))

    def read_text(self) -> str:
        """The file as it is.

        Raises:
            ConfigError: It cannot be read.
        """
        return read_text(self.path)

    def read(self) -> config_pb2.ModelServerConfig:
        """The whole file.

        Raises:
            ConfigError: It cannot be read or does not parse.
        """
        return parse_config(read_text(self.path), str(self.path))

    def change(self, edit: ModelEdit, *, action: str, original: str = "") -> bool:
        """Edits what the file holds now, replaces it, and writes the audit line.

        Call it while holding the file.

        Args:
            edit: What to change.
            action: For the audit.
            original: A text to write instead if it means the same as the edited one.

        Returns:
            False when there was nothing to change.

        Raises:
            ConfigError: It cannot be read or written, or does not list the model.
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
            label: (_find_label(before, label), version)
            for label, version in edit.labels.items()
            if _find_label(before, label) != version
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


def _find_label(model: config_pb2.ModelConfig, label: str) -> int | None:
    return model.version_labels.get(label)


def _wait_for_lock(descriptor: int, path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
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
