"""Golden examples through every hop: does each way to ask give the in-process answer?

A hop is a way to ask a model, behind `predict`: gRPC, gRPC in an event loop, REST, both by the
Open Inference Protocol, a TFLite variant on the device, another one in a browser.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from clients.on_device import OnDevicePredictor, list_variants
from clients.results import flatten
from contract import layout
from contract.errors import Code, ConfigError, PlumblineError, UnimplementedError
from contract.golden import Golden, GoldenExamples
from contract.parity import (
    OutputParity,
    ParityReport,
    Predictor,
    Tolerance,
    read_tolerances,
    replay,
)

GRPC, GRPC_AIO, REST = "grpc", "grpc-aio", "rest"
V2_GRPC, V2_REST = "v2-grpc", "v2-rest"
"""By the Open Inference Protocol."""
SERVER_HOPS = (GRPC, GRPC_AIO, REST, V2_GRPC, V2_REST)
ON_DEVICE = "on-device:"
BROWSER = "browser"
HOPS = (*SERVER_HOPS, *(f"{ON_DEVICE}{variant}" for variant in layout.VARIANTS), BROWSER)
ALL = "all"

AGREES, DIFFERS, FAILED = "agrees", "differs", "failed"
UNREACHABLE, IN_PART, SKIPPED = "unreachable", "in part", "skipped"
_UNREACHABLE_CODES = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})


@dataclasses.dataclass(frozen=True, slots=True)
class Hop:
    """One way to ask.

    Attributes:
        name: For example `grpc-aio` or `on-device:int8`.
        tolerance: How far its answers may be from golden.
        open: Connects; a context manager that gives a Predictor.
        signature_names: What it can answer; None when only the server knows.
    """

    name: str
    tolerance: Tolerance
    open: Callable[[], AbstractContextManager[Predictor]]
    signature_names: frozenset[str] | None = None


def list_hops(via: str, version_dir: Path | None) -> list[str]:
    """The names of the hops that `--via` asks for."""
    everything = list(SERVER_HOPS)
    if version_dir is not None:
        everything += [f"{ON_DEVICE}{variant}" for variant in list_variants(version_dir)]
        everything.append(BROWSER)
    names: list[str] = []
    for name in (part.strip() for part in via.split(",")):
        if name not in (ALL, *HOPS):
            raise ConfigError(f"--via {name!r}: give {', '.join(HOPS)} or {ALL}")
        names += everything if name == ALL else [name]
    return list(dict.fromkeys(names))


def make_device_hop(name: str, version_dir: Path | None) -> Hop:
    """The hop `on-device:VARIANT`."""
    if version_dir is None:
        raise ConfigError(f"--via {name} needs --version_dir, where the variant is")
    variant = name.removeprefix(ON_DEVICE)
    predictor = OnDevicePredictor(version_dir, variant=variant)
    tolerance = read_tolerances(version_dir).of_variant(variant)
    return Hop(name, tolerance, lambda: predictor, frozenset(predictor.signatures))


@dataclasses.dataclass(frozen=True, slots=True)
class HopReport:
    """What one hop answered.

    Attributes:
        hop: Its name.
        verdict: `agrees`, `differs`, `failed` (an error), `unreachable`, `in part` (what
            answered agrees, and a signature did not answer), or `skipped` (what it needs is
            missing: an extra, a browser, a variant, a protocol that the server speaks).
        reports: One per signature that answered.
        problems: What else a person should know, one sentence each.
    """

    hop: str
    verdict: str
    reports: tuple[ParityReport, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows over all signatures."""
        return sum(report.num_rows for report in self.reports)

    @property
    def outputs(self) -> list[tuple[str, OutputParity]]:
        """Signature name and comparison of every output."""
        return [(report.signature_name, one) for report in self.reports for one in report.outputs]

    @property
    def max_abs_difference(self) -> float:
        """Largest difference over all outputs."""
        return max((one.max_abs_difference for _, one in self.outputs), default=0.0)

    @property
    def counts_ulp(self) -> bool:
        """Whether representable floats are a measure: not of what has fewer bits than golden."""
        variant = self.hop.removeprefix(ON_DEVICE)
        return variant == self.hop or variant in layout.FLOAT_VARIANTS

    @property
    def max_ulp(self) -> int:
        """Largest difference in representable floats."""
        return max((one.max_ulp for _, one in self.outputs), default=0)

    @property
    def top1_agreement(self) -> float | None:
        """Share of rows whose class agrees, over all outputs that have classes."""
        shares = [
            (one.top1_agreement, one.num_rows)
            for _, one in self.outputs
            if one.top1_agreement is not None
        ]
        rows = sum(count for _, count in shares)
        return sum(share * count for share, count in shares) / rows if rows else None

    @property
    def worst_row(self) -> str:
        """Signature and row of the largest difference, "" when all are equal."""
        name, worst = max(
            self.outputs,
            key=lambda pair: (not pair[1].passed, pair[1].max_abs_difference),
            default=("", None),
        )
        return "" if worst is None or worst.worst_row is None else f"{name}[{worst.worst_row}]"


def check_hop(hop: Hop, golden: Golden) -> HopReport:
    """Replays golden examples through one hop."""
    names = [
        name
        for name in golden.signatures
        if hop.signature_names is None or name in hop.signature_names
    ]
    if not names:
        return HopReport(hop.name, FAILED, problems=("golden has none of its signatures",))
    try:
        with hop.open() as predictor:
            return _judge(hop, [(name, golden.signatures[name]) for name in names], predictor)
    except PlumblineError as error:
        return _blame(hop.name, error, ())


def _judge(
    hop: Hop, examples: Iterable[tuple[str, GoldenExamples]], predictor: Predictor
) -> HopReport:
    reports: list[ParityReport] = []
    problems: list[str] = []
    for name, one in examples:
        try:
            reports.append(replay(one, predictor, hop.tolerance, signature_name=name))
        except UnimplementedError as error:
            problems.append(f"{name} is not served: {flatten(error)}")
        except PlumblineError as error:
            return _blame(hop.name, error, tuple(reports), where=f"{name}: ")
    failed = [
        f"{report.signature_name}: {problem}" for report in reports for problem in report.problems
    ]
    verdict = DIFFERS if failed else IN_PART if problems else AGREES
    return HopReport(hop.name, verdict, tuple(reports), (*failed, *problems))


def _blame(
    hop: str, error: PlumblineError, reports: tuple[ParityReport, ...], *, where: str = ""
) -> HopReport:
    verdict = UNREACHABLE if error.code in _UNREACHABLE_CODES else FAILED
    return HopReport(hop, verdict, reports, (f"{where}{flatten(error)}",))
