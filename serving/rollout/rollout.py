"""What the commands of a rollout share: the file, the servers that read it, and the way back."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path

from contract import layout
from contract.errors import ConfigError, PlumblineError
from contract.servable import ModelSpec
from contract.wire.plumbline_wire import config_pb2
from serving.rollout.audit import RESTORE, append_line
from serving.rollout.config_file import ModelConfigFile, describe_policy
from serving.rollout.config_text import ModelEdit, Policy
from serving.rollout.parity import (
    ServerParity,
    VersionGolden,
    check_parity,
    leave_strings_out,
    read_version_golden,
)
from serving.rollout.servers import Servers

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class RolloutOptions:
    """How to roll out.

    Attributes:
        is_reload_sent: Tell the servers by HandleReloadConfigRequest; they poll otherwise.
        is_parity_skipped: Check no golden examples.
        is_every_signature_checked: Also those that take strings, for which the embedded server
            would load TensorFlow.
        version_dir: Where the version lies on this machine, if not below its base path.
    """

    is_reload_sent: bool = False
    is_parity_skipped: bool = False
    is_every_signature_checked: bool = False
    version_dir: Path | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command did.

    Attributes:
        action: promote, rollback or retire.
        model_name: Whose versions.
        version: Which the command was about.
        label: Which was moved, or "".
        version_before: Where it pointed before, or None.
        policy: The version policy now.
        problem: What failed, or "".
        is_restored: After a failure: whether everything is as it was.
        parity: What golden showed last, server by server.
        seconds: How long all of it took.
    """

    action: str
    model_name: str
    version: int
    label: str = ""
    version_before: int | None = None
    policy: str = ""
    problem: str = ""
    is_restored: bool = False
    parity: tuple[ServerParity, ...] = ()
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """It is in force, and golden agrees as far as it was asked."""
        return not self.problem


class Rollout:
    """One models.config and the servers that read it. Change it only while holding the file.

    Attributes:
        config: The file.
        servers: Those that read it.
        options: How.
    """

    def __init__(
        self, config: ModelConfigFile, servers: Servers, options: RolloutOptions | None = None
    ) -> None:
        self.config = config
        self.servers = servers
        self.options = options or RolloutOptions()

    def change(self, edit: ModelEdit, action: str, *, original: str = "") -> None:
        """Edits the file, and tells the servers unless they poll.

        Raises:
            ConfigError: The file cannot be read or written.
            PlumblineError: A server refuses it.
        """
        if self.config.change(edit, action=action, original=original):
            _LOG.info("%s: %s", self.config.path, _describe_edit(edit))
            if self.options.is_reload_sent:
                self.servers.reload(self.config.read())

    def serve(self, model: config_pb2.ModelConfig, version: int, action: str) -> None:
        """Has every server load a version, beside those that it serves.

        Raises:
            ServableUnavailableError: It fails to load.
            DeadlineExceededError: It is not AVAILABLE in time.
        """
        available = self.servers.list_available(model.name)
        versions = add_version(model, version, available)
        if versions is not None:
            if describe_policy(model).startswith("latest"):
                _LOG.info(
                    "%s followed the newest versions; from now on it serves those promoted",
                    model.name,
                )
            self.change(ModelEdit(model.name, policy=make_policy(versions)), action)
        self.servers.wait_until_available(model.name, version)

    def restore(self, text: str, model: config_pb2.ModelConfig, label: str) -> bool:
        """Puts label and policy back as they were, label first. False when that fails too."""
        before = model.version_labels.get(label)
        is_label_back = True
        try:
            self.change(ModelEdit(model.name, {label: before}), RESTORE)
            self.servers.wait_until_labelled(model.name, label, before)
        except PlumblineError as error:
            _LOG.error("restoring label %s: %s", label, error.message)
            is_label_back = False
        try:
            edit = ModelEdit(model.name, {label: before}, model.model_version_policy)
            self.change(edit, RESTORE, original=text)
        except PlumblineError as error:
            _LOG.error("restoring the version policy: %s", error.message)
        return is_label_back and self.config.read_model(model.name) == model

    def check(
        self, expected: VersionGolden | None, spec: ModelSpec, version: int
    ) -> tuple[ServerParity, ...]:
        """Golden through every server; nothing without golden.

        Raises:
            PlumblineError: A server cannot be reached, or refuses.
        """
        if expected is None:
            return ()
        return tuple(check_parity(self.servers, expected, spec, version=version))

    def read_golden(self, model: config_pb2.ModelConfig, version: int) -> VersionGolden | None:
        """The golden examples to check a version with; None when they are not wanted.

        Raises:
            ConfigError: The version, or its golden examples, cannot be found here.
        """
        if self.options.is_parity_skipped:
            return None
        expected = read_version_golden(
            self.options.version_dir or _find_version_dir(Path(model.base_path), version)
        )
        return expected if self.options.is_every_signature_checked else leave_strings_out(expected)

    def conclude(self, outcome: Outcome, *, seconds: float) -> Outcome:
        """Adds what the file says now, and writes the last line of the audit."""
        policy = describe_policy(self.config.read_model(outcome.model_name))
        end = "passed" if outcome.passed else f"failed: {outcome.problem}"
        if outcome.is_restored:
            end += "; restored"
        append_line(self.config.path, outcome.action, outcome.model_name, outcome=end)
        return dataclasses.replace(outcome, policy=policy, seconds=round(seconds, 3))


def add_version(
    model: config_pb2.ModelConfig, version: int, available: Iterable[int]
) -> list[int] | None:
    """The versions of the specific policy that serves one more; None when no change is needed.

    A policy that follows the newest is replaced too: the version behind a label must stay
    when the next one is published.
    """
    kind = model.model_version_policy.WhichOneof("policy_choice")
    if kind == "all":
        return None
    if kind == "specific":
        versions = list(model.model_version_policy.specific.versions)
        return None if version in versions else sorted({*versions, version})
    return sorted({*available, *model.version_labels.values(), version})


def make_policy(versions: Iterable[int]) -> Policy:
    """A `specific` policy."""
    policy = Policy()
    policy.specific.versions.extend(versions)
    return policy


def find_problem(parity: Iterable[ServerParity]) -> str:
    """What golden found wrong, or ""."""
    failed = [one.describe() for one in parity if not one.passed]
    return f"golden examples differ: {'; '.join(failed)}" if failed else ""


def _find_version_dir(base_path: Path, version: int) -> Path:
    try:
        found = layout.find_versions(base_path)
    except OSError:
        return base_path / str(version)  # of another machine: reading golden says what to do
    if version not in found:
        there = ", ".join(map(str, found)) or "none"
        raise ConfigError(f"{base_path}: there is no version {version} (versions: {there})")
    return found[version]


def _describe_edit(edit: ModelEdit) -> str:
    parts = [
        f"label {label} -> version {version}" if version is not None else f"no label {label}"
        for label, version in edit.labels.items()
    ]
    if edit.policy is not None:
        model = config_pb2.ModelConfig(model_version_policy=edit.policy)
        parts.append(f"policy {describe_policy(model)}")
    return f"{edit.model_name}: {', '.join(parts)}"
