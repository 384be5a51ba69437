"""Moving a label to a version, forwards with a way back, or back at all costs; and retiring.

    promote: serve the version → AVAILABLE everywhere → golden by number → label → golden by label
    └─ fails ──── label and policy as they were, label first ─────┘

A label may point only at a version that is AVAILABLE (TensorFlow Serving refuses the whole
configuration otherwise), so a version comes before its label and goes after it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from contract import layout
from contract.errors import (
    ConfigError,
    InternalError,
    ManifestError,
    PlumblineError,
    UnimplementedError,
)
from contract.golden import Golden, read_golden
from contract.parity import ParityReport, Tolerance, read_tolerances, replay
from contract.servable import MAX_VERSION, ModelSpec
from contract.signature import Batch
from contract.wire.plumbline_wire import config_pb2
from serving.rollout.audit import (
    PROMOTE,
    RESTORE,
    RETIRE,
    ROLLBACK,
    append_line,
    find_last_label,
    find_previous,
    read_lines,
)
from serving.rollout.config_file import ModelConfigFile, ModelEdit, Policy, describe_policy
from serving.rollout.servers import Server, Servers
from serving.rollout.shadow import (
    ShadowOptions,
    ShadowReport,
    check_shadow,
    find_rows_folder,
    run_shadow,
)

_LOG = logging.getLogger(__name__)
_POLL_S = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class RolloutOptions:
    """How to roll out.

    Attributes:
        is_reload_sent: Tell the servers by HandleReloadConfigRequest; they poll otherwise.
        is_parity_skipped: Check no golden examples.
        is_every_signature_checked: Also those that take strings, for which the embedded server
            would load TensorFlow.
        version_dir: Where the version lies on this machine, if not below its base path.
        shadow: How a version answers real calls before its label moves; None for not at all.
    """

    is_reload_sent: bool = False
    is_parity_skipped: bool = False
    is_every_signature_checked: bool = False
    version_dir: Path | None = None
    shadow: ShadowOptions | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class VersionGolden:
    """What servers of a version are asked.

    Attributes:
        golden: Inputs, and what the in-process model answered.
        tolerance: How far a server's answers may be from that.
    """

    golden: Golden
    tolerance: Tolerance


@dataclasses.dataclass(frozen=True, slots=True)
class ServerParity:
    """One server against golden.

    Attributes:
        address: Of the server.
        reports: One per signature that it could be asked.
        untested: Signatures that this server cannot run, with its reason.
    """

    address: str
    reports: tuple[ParityReport, ...]
    untested: tuple[str, ...] = ()

    @property
    def untested_names(self) -> tuple[str, ...]:
        """The signatures of `untested`, without their reasons."""
        return tuple(one.partition(" (")[0] for one in self.untested)

    @property
    def passed(self) -> bool:
        """All signatures agree (and there is at least one)."""
        return bool(self.reports) and all(report.passed for report in self.reports)

    def describe(self) -> str:
        """For example `10.0.0.1:8500: serving_default passed, max abs difference 1.2e-07`."""
        parts = []
        for report in self.reports:
            part = f"{report.signature_name} {'passed' if report.passed else 'FAILED'}"
            if report.outputs:
                worst = report.worst
                near = f"max abs difference {worst.max_abs_difference:.1e}"
                part += f", {near if worst.passed else worst.describe()}"
            parts.append(part)
        parts += [f"{name} untested" for name in self.untested]
        return f"{self.address}: {'; '.join(parts) or 'no signature could be asked'}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command did.

    Attributes:
        action: promote, rollback or retire.
        model_name: Whose versions.
        version: Which the command was about.
        label: Which was moved, or "".
        version_before: Where it pointed before; None if nowhere.
        policy: The version policy now.
        problem: What failed, or "".
        is_restored: After a failure: whether everything is as it was.
        parity: What golden showed last, server by server.
        shadow: What real calls showed; None where they were not asked, or nothing got that far.
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
    shadow: ShadowReport | None = None
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """It is in force, and golden agrees as far as it was asked."""
        return not self.problem


@dataclasses.dataclass(frozen=True, slots=True)
class Rollout:
    """One models.config and the servers that read it. Change it only while holding the file."""

    config: ModelConfigFile
    servers: Servers
    options: RolloutOptions = RolloutOptions()

    def change(self, edit: ModelEdit, action: str, *, original: str = "") -> None:
        """Edits the file, and tells the servers unless they poll."""
        if self.config.change(edit, action=action, original=original):
            _LOG.info("%s: %s", self.config.path, _describe_edit(edit))
            if self.options.is_reload_sent:
                self.servers.reload(self.config.read())

    def serve(self, model: config_pb2.ModelConfig, version: int, action: str) -> None:
        """Has every server load a version, beside those that it serves."""
        versions = add_version(model, version, self.servers.list_available(model.name))
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
        moved: dict[str, int | None] = {}
        try:
            if self.config.read_model(model.name).version_labels.get(label) != before:
                moved = {label: before}
                self.change(ModelEdit(model.name, moved), RESTORE)
            self.servers.wait_until_labelled(model.name, label, before)
        except PlumblineError as error:
            _LOG.error("restoring label %s: %s", label, error.message)
            is_label_back = False
        try:
            edit = ModelEdit(model.name, moved, model.model_version_policy)
            self.change(edit, RESTORE, original=text)
        except PlumblineError as error:
            _LOG.error("restoring the version policy: %s", error.message)
        return is_label_back and self.config.read_model(model.name) == model

    def read_golden(self, model: config_pb2.ModelConfig, version: int) -> VersionGolden | None:
        """The golden examples to check a version with; None when they are not wanted."""
        if self.options.is_parity_skipped:
            return None
        expected = read_version_golden(
            self.options.version_dir or _find_version_dir(Path(model.base_path), version)
        )
        return expected if self.options.is_every_signature_checked else leave_strings_out(expected)

    def shadow(
        self,
        options: ShadowOptions,
        model: config_pb2.ModelConfig,
        version: int,
        before: int | None,
    ) -> ShadowReport:
        """Has a version answer real calls; nothing has moved yet."""
        version_dir = self.options.version_dir or Path(model.base_path) / str(version)
        return run_shadow(
            self.servers,
            model.name,
            version=version,
            before=before,
            tolerance=read_tolerances(version_dir).of_server,
            options=options,
            folder=find_rows_folder(self.config.path),
        )

    def conclude(self, outcome: Outcome, start: float) -> Outcome:
        """Adds what the file says now, and writes the last line of the audit."""
        policy = describe_policy(self.config.read_model(outcome.model_name))
        end = "passed" if outcome.passed else f"failed: {outcome.problem}"
        if outcome.is_restored:
            end += "; restored"
        append_line(self.config.path, outcome.action, outcome.model_name, outcome=end)
        seconds = round(time.monotonic() - start, 3)
        return dataclasses.replace(outcome, policy=policy, seconds=seconds)


def promote(rollout: Rollout, model_name: str, *, version: int, label: str) -> Outcome:
    """Serves a version and points a label at it, or leaves everything as it was."""
    start = time.monotonic()
    if not label or not label.isprintable():
        raise ConfigError(f"--label {label!r}: give a name, such as stable or canary")
    if not 0 <= version <= MAX_VERSION:
        raise ConfigError(f"--version {version}: a version is 0 to {MAX_VERSION}")
    servers = rollout.servers
    with rollout.config.hold(timeout_s=servers.timeout_s):
        model = rollout.config.read_model(model_name)
        expected = rollout.read_golden(model, version)
        available = servers.list_available(model_name)  # all of them answer
        if rollout.options.shadow is not None:
            check_shadow(servers, rollout.options.shadow)
        text = rollout.config.read_text()
        shadow: ShadowReport | None = None
        parity: tuple[ServerParity, ...] = ()
        try:
            rollout.serve(model, version, PROMOTE)
            # By number first, so that a wrong version never answers to the label.
            by_number = ModelSpec(model_name, version)
            parity = check_parity(servers, expected, by_number, version=version)
            problem = find_problem(parity)
            if not problem and rollout.options.shadow is not None:
                before = _find_version_before(model, label, version, available)
                shadow = rollout.shadow(rollout.options.shadow, model, version, before)
                problem = shadow.problem
            if not problem:
                rollout.change(ModelEdit(model_name, {label: version}), PROMOTE)
                servers.wait_until_labelled(model_name, label, version)
                by_label = ModelSpec(model_name, version_label=label)
                parity = check_parity(servers, expected, by_label, version=version)
                problem = find_problem(parity)
        except PlumblineError as error:
            problem = error.message
        except BaseException:
            _LOG.warning("interrupted: restoring what was before")
            rollout.restore(text, model, label)
            raise
        if problem:
            _LOG.error("%s; restoring what was before", problem)
        outcome = Outcome(
            action=PROMOTE,
            model_name=model_name,
            version=version,
            label=label,
            version_before=model.version_labels.get(label),
            problem=problem,
            is_restored=bool(problem) and rollout.restore(text, model, label),
            parity=parity,
            shadow=shadow,
        )
        return rollout.conclude(outcome, start)


def _find_version_before(
    model: config_pb2.ModelConfig, label: str, version: int, available: Iterable[int]
) -> int | None:
    """With which version recorded calls are compared: the label's, else the highest served."""
    others = [one for one in available if one != version]
    before = model.version_labels.get(label)
    return before if before in others else max(others, default=None)


def rollback(rollout: Rollout, model_name: str, *, label: str = "") -> Outcome:
    """Points a label back at the version before its last promotion, loading it if need be.

    Golden is checked afterwards and reported; the label stays where it was asked to go.
    """
    start = time.monotonic()
    with rollout.config.hold(timeout_s=rollout.servers.timeout_s):
        model = rollout.config.read_model(model_name)
        label, version = _find_way_back(rollout, model, label)
        text = rollout.config.read_text()
        try:
            rollout.serve(model, version, ROLLBACK)
        except PlumblineError:
            rollout.restore(text, model, label)
            raise
        rollout.change(ModelEdit(model_name, {label: version}), ROLLBACK)
        rollout.servers.wait_until_labelled(model_name, label, version)
        try:
            expected = rollout.read_golden(model, version)
        except ConfigError as error:
            _LOG.warning("parity is not checked: %s", error.message)
            expected = None
        by_label = ModelSpec(model_name, version_label=label)
        parity = check_parity(rollout.servers, expected, by_label, version=version)
        outcome = Outcome(
            action=ROLLBACK,
            model_name=model_name,
            version=version,
            label=label,
            version_before=model.version_labels.get(label),
            problem=find_problem(parity),
            parity=parity,
        )
        return rollout.conclude(outcome, start)


def _find_way_back(rollout: Rollout, model: config_pb2.ModelConfig, label: str) -> tuple[str, int]:
    lines = read_lines(rollout.config.path)
    label = label or find_last_label(lines, model.name) or ""
    current = model.version_labels.get(label)
    version = find_previous(lines, model.name, label, current=current)
    if version is None:
        what = f"label {label!r}" if label else "a label"
        raise ConfigError(
            f"{rollout.config.path}: its audit knows no version that {what} of model "
            f"{model.name!r} could go back to; name one with promote --version"
        )
    return label, version


def retire(rollout: Rollout, model_name: str, *, version: int) -> Outcome:
    """Takes a version out of the policy, and waits until every server has unloaded it."""
    start = time.monotonic()
    with rollout.config.hold(timeout_s=rollout.servers.timeout_s):
        model = rollout.config.read_model(model_name)
        available = rollout.servers.list_available(model_name)
        versions = _list_remaining(model, version, available)
        rollout.change(ModelEdit(model_name, policy=make_policy(versions)), RETIRE)
        rollout.servers.wait_until_gone(model_name, version)
        outcome = Outcome(action=RETIRE, model_name=model_name, version=version)
        return rollout.conclude(outcome, start)


def _list_remaining(
    model: config_pb2.ModelConfig, version: int, available: frozenset[int]
) -> list[int]:
    labels = sorted(label for label, number in model.version_labels.items() if number == version)
    if labels:
        raise ConfigError(
            f"version {version} of {model.name} bears the label {', '.join(labels)}; promote "
            "another version to it first"
        )
    served = {*available, *model.version_labels.values()}
    if model.model_version_policy.WhichOneof("policy_choice") == "specific":
        served = set(model.model_version_policy.specific.versions)
    if version not in served:
        raise ConfigError(
            f"version {version} of {model.name} is not served (policy {describe_policy(model)}; "
            f"served: {', '.join(map(str, sorted(served))) or 'none'})"
        )
    if served == {version}:
        raise ConfigError(f"version {version} is the only one of {model.name}; promote another")
    return sorted(served - {version})


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
        f"label {label} to version {version}" if version is not None else f"no label {label}"
        for label, version in edit.labels.items()
    ]
    if edit.policy is not None:
        model = config_pb2.ModelConfig(model_version_policy=edit.policy)
        parts.append(f"policy {describe_policy(model)}")
    return f"{edit.model_name}: {', '.join(parts)}"


@dataclasses.dataclass(frozen=True, slots=True)
class LabelReport:
    """Where one label leads.

    Attributes:
        label: Its name.
        version: Where the file points it.
        servers: Address to the version that answers to it there, or None.
    """

    label: str
    version: int
    servers: dict[str, int | None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabelsReport:
    """What a models.config says of a model, and what the servers that read it do.

    Attributes:
        model_name: Which model.
        policy: Its version policy, as text.
        labels: Every label of the file.
        versions: Address to version to what the server says of it.
        unreachable: Address to why it does not answer.
        agrees: Whether every server answers, and every label leads where it points.
    """

    model_name: str
    policy: str
    labels: tuple[LabelReport, ...]
    versions: dict[str, dict[int, str]]
    unreachable: dict[str, str]
    agrees: bool


def read_labels(config: ModelConfigFile, servers: Servers, model_name: str) -> LabelsReport:
    """What the file says of a model's labels and versions, and what each server does."""
    model = config.read_model(model_name)
    wanted = dict(sorted(model.version_labels.items()))
    states: dict[str, dict[int, str]] = {}
    found: dict[str, dict[str, int | None]] = {}
    unreachable: dict[str, str] = {}
    for server in servers.all:
        try:
            versions = server.list_versions(model_name)
            found[server.address] = {one: server.find_label(model_name, one) for one in wanted}
        except PlumblineError as error:
            unreachable[server.address] = error.message
            continue
        states[server.address] = {one: str(report) for one, report in versions.items()}
    return LabelsReport(
        model_name=model_name,
        policy=describe_policy(model),
        labels=tuple(
            LabelReport(label, version, {server: there[label] for server, there in found.items()})
            for label, version in wanted.items()
        ),
        versions=states,
        unreachable=unreachable,
        agrees=not unreachable and all(there == wanted for there in found.values()),
    )


def read_version_golden(version_dir: Path) -> VersionGolden:
    """The golden examples of a version, for a rollout that has to find them here."""
    try:
        golden = read_golden(version_dir / layout.GOLDEN)
    except ManifestError as error:
        raise ConfigError(
            f"{error.message} (parity is checked with the golden examples of the version; where "
            "the server's base path is not a path of this machine, give --version_dir; to go "
            "without, --skip_parity)"
        ) from error
    return VersionGolden(golden, read_tolerances(version_dir).of_server)


def leave_strings_out(expected: VersionGolden) -> VersionGolden:
    """Golden without the signatures that take strings, unless there are no others."""
    signatures = expected.golden.signatures
    numeric = {
        name: examples
        for name, examples in signatures.items()
        if all(array.dtype.kind != "O" for array in examples.inputs.values())
    }
    left_out = sorted(signatures.keys() - numeric.keys())
    if not numeric or not left_out:
        return expected
    _LOG.info("not checked without --every_signature: %s", ", ".join(left_out))
    return dataclasses.replace(expected, golden=Golden(numeric))


def check_parity(
    servers: Servers, expected: VersionGolden | None, spec: ModelSpec, *, version: int
) -> tuple[ServerParity, ...]:
    """Asks every server all golden examples; nothing without golden."""
    if expected is None:
        return ()
    found = []
    for server in servers.all:
        reports, untested = [], []
        deadline = time.monotonic() + (servers.timeout_s if spec.version_label else 0.0)
        predictor = _Predictor(server, spec, version, deadline)
        for name, examples in expected.golden.signatures.items():
            try:
                reports.append(replay(examples, predictor, expected.tolerance, signature_name=name))
            except UnimplementedError as error:
                untested.append(f"{name} ({error.message})")
        found.append(ServerParity(server.address, tuple(reports), tuple(untested)))
        how = f"label {spec.version_label}" if spec.version_label else f"version {version}"
        verdict = "agree" if found[-1].passed else "DIFFER"
        _LOG.info("%s: golden examples by %s %s", server.address, how, verdict)
    return tuple(found)


@dataclasses.dataclass(frozen=True, slots=True)
class _Predictor:
    server: Server
    spec: ModelSpec
    version: int
    deadline: float

    def predict(self, batch: Batch, *, signature_name: str) -> Batch:
        spec = dataclasses.replace(self.spec, signature_name=signature_name)
        while True:
            answered, outputs = self.server.predict(spec, batch)
            if answered == self.version:
                return outputs
            # One of several workers moves a label a moment after another one has.
            if time.monotonic() > self.deadline:
                raise InternalError(
                    f"{self.server.address}: version {answered} answered, not {self.version}"
                )
            time.sleep(_POLL_S)
