"""Golden examples through every hop: does each way to ask give the in-process answer?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from clients.hops import Hop
from contract.errors import Code, PlumblineError, UnimplementedError
from contract.golden import Golden, GoldenExamples
from contract.parity import OutputParity, ParityReport, Predictor, replay

AGREES, DIFFERS, UNREACHABLE, FAILED, IN_PART = (
    "agrees",
    "differs",
    "unreachable",
    "failed",
    "in part",
)
_UNREACHABLE_CODES = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})


@dataclasses.dataclass(frozen=True, slots=True)
class HopReport:
    """What one hop answered.

    Attributes:
        hop: Its name.
        verdict: `agrees`, `differs`, `failed` (an error), `unreachable`, or `in part` (what
            answered agrees, and a signature did not answer).
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
    """Replays golden examples through one hop.

    Args:
        hop: How to ask.
        golden: Inputs and in-process outputs; signatures that the hop cannot have (strings
            on a device) are left out.
    """
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
            problems.append(f"{name} is not served: {_flatten(error)}")
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
    return HopReport(hop, verdict, reports, (f"{where}{_flatten(error)}",))


def _flatten(error: PlumblineError) -> str:
    return " ".join(error.message.split())
