"""Golden examples through the servers of a rollout: does each give the answers of the model?"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import final

from contract import layout
from contract.errors import ConfigError, InternalError, ManifestError, UnimplementedError
from contract.golden import Golden, read_golden
from contract.parity import ParityReport, Tolerance, read_tolerances, replay
from contract.servable import ModelSpec
from contract.signature import Batch
from serving.rollout.server import Server
from serving.rollout.servers import Servers

_LOG = logging.getLogger(__name__)


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
    def passed(self) -> bool:
        """All signatures agree (and there is at least one)."""
        return bool(self.reports) and all(report.passed for report in self.reports)

    def describe(self) -> str:
        """For example `10.0.0.1:8500: serving_default passed, max abs difference 1.2e-07`."""
        parts = [_describe_report(report) for report in self.reports]
        parts += [f"{name} untested" for name in self.untested]
        return f"{self.address}: {'; '.join(parts) or 'no signature could be asked'}"


def read_version_golden(version_dir: Path) -> VersionGolden:
    """The golden examples of a version, for a rollout that has to find them here.

    Raises:
        ConfigError: They are not here; says what to give.
    """
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
    servers: Servers, expected: VersionGolden, spec: ModelSpec, *, version: int
) -> list[ServerParity]:
    """Asks every server all golden examples.

    Args:
        servers: Whom.
        expected: What the in-process model answered.
        spec: By which version or label to ask.
        version: Which version has to answer.

    Raises:
        PlumblineError: A server cannot be reached, or refuses.
    """
    found = []
    for server in servers.all:
        one = _check_server(server, expected, spec, version)
        _LOG.info("parity %s", one.describe())
        found.append(one)
    return found


def _check_server(
    server: Server, expected: VersionGolden, spec: ModelSpec, version: int
) -> ServerParity:
    reports, untested = [], []
    predictor = _Predictor(server, spec, version)
    for name, examples in expected.golden.signatures.items():
        try:
            reports.append(replay(examples, predictor, expected.tolerance, signature_name=name))
        except UnimplementedError as error:
            untested.append(f"{name} ({error.message})")
    return ServerParity(server.address, tuple(reports), tuple(untested))


def _describe_report(report: ParityReport) -> str:
    verdict = "passed" if report.passed else "FAILED"
    worst = report.worst if report.outputs else None
    if worst is None:
        return f"{report.signature_name} {verdict}"
    detail = worst.problem or f"max abs difference {worst.max_abs_difference:.1e}"
    return f"{report.signature_name} {verdict}, {detail}"


@final
class _Predictor:
    def __init__(self, server: Server, spec: ModelSpec, version: int) -> None:
        self._server = server
        self._spec = spec
        self._version = version

    def predict(self, batch: Batch, *, signature_name: str) -> Batch:
        spec = dataclasses.replace(self._spec, signature_name=signature_name)
        answered, outputs = self._server.predict(spec, batch)
        if answered != self._version:
            raise InternalError(
                f"{self._server.address}: version {answered} answered, not {self._version}"
            )
        return outputs
