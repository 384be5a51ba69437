"""The verdict: rows of what lies in OUT, read again from IN and answered once more here.

Two things are held against each other: what a part says of its rows (which they are, by their
keys, and how many) with IN, and its answers with those of the version in process. An engine is no
judge of itself: what servers answered, LiteRT answers again; what a quantised variant answered, it
answers again, and so does the float32 variant, within what the version allows the other.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clients.on_device import find_variant
from clients.score.arrays import convert_column
from clients.score.columns import ColumnPlan, prepare, read_planned
from clients.score.engines import (
    LITERT,
    SERVER,
    TENSORFLOW,
    Engine,
    EngineChoice,
    LiteEngine,
    OwnServerEngine,
)
from clients.score.output import (
    Destination,
    make_keys,
    name_classes,
    name_columns,
    read_bad_rows,
    read_rows,
    read_summary,
    to_column,
)
from clients.score.sources import Block, Unit
from contract import layout
from contract.console.extras import import_extra
from contract.errors import (
    ConfigError,
    DatasetError,
    PlumblineError,
    ServableUnavailableError,
)
from contract.heads import Head
from contract.parity import FLOAT32, OutputParity, Tolerance, compare, read_tolerances
from contract.signature import Array

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE_UNITS = 4
SAMPLE_ROWS = 512
"""Of all parts together."""

_FURTHEST_ROW = 2**17
"""Where in a part the sample is at most: what lies before is read for it."""

_INTEGER_STEPS = 2 / 256
"""Integers of 8 bits are rounded otherwise on another processor, by a step or two."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """An engine in process that answers again, and how far it may be from what lies in OUT."""

    name: str
    engine: Engine
    tolerance: Tolerance


@dataclasses.dataclass
class Sample:
    """Rows of OUT, and what they were made of.

    Attributes:
        batches: Input name to array (rows, ...), of each part that was looked at.
        outputs: Output name to what OUT holds of the same rows, of each.
        places: What to call each row, over all parts.
        problems: What is wrong with parts, but for numbers.
        unread: Why some could not be looked at: that says nothing of them.
    """

    batches: list[dict[str, Array]] = dataclasses.field(default_factory=list)
    outputs: list[dict[str, Array]] = dataclasses.field(default_factory=list)
    places: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    unread: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the sample came to.

    Attributes:
        num_rows: Rows compared.
        judges: Who answered again; () where nobody here can.
        max_abs_difference: Largest difference to the first of them.
        problems: A clause for each thing that is wrong.
        unread: A clause for each part that could not be looked at.
    """

    num_rows: int = 0
    judges: tuple[str, ...] = ()
    max_abs_difference: float = 0.0
    problems: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Nothing is wrong with what was looked at."""
        return not self.problems

    @property
    def is_proof(self) -> bool:
        """Whether answers were compared at all."""
        return bool(self.judges and self.num_rows and not self.unread)


@contextmanager
def open_judges(
    version_dir: Path, choice: EngineChoice, engine: Engine, signature_name: str
) -> Iterator[list[Judge]]:
    """Who answers again, in process.

    Args:
        version_dir: The version.
        choice: What scored.
        engine: Of this process, by that choice.
        signature_name: What was asked.

    Yields:
        The first one's answers are nearest to what was written. Nobody, where servers scored a
        signature that LiteRT lacks, and TensorFlow is not installed.
    """
    tolerances = read_tolerances(version_dir)
    with ExitStack() as stack:
        judges = []
        if choice.kind == LITERT and choice.variant not in layout.FLOAT_VARIANTS:
            same = dataclasses.replace(FLOAT32, atol=_find_atol(choice.variant))
            judges.append(Judge(f"{choice.variant} in process", engine, same))
            limit = tolerances.of_variant(choice.variant)
        else:
            limit = tolerances.of_server
        if (lite := _open_lite(version_dir, signature_name)) is not None:
            judges.append(Judge("LiteRT float32 in process", stack.enter_context(lite), limit))
        elif choice.kind == TENSORFLOW:
            judges.append(Judge("TensorFlow on this machine", engine, limit))
        elif choice.kind == SERVER and _has_tensorflow():
            own = stack.enter_context(OwnServerEngine(version_dir))
            judges.append(Judge("TensorFlow on this machine", own, limit))
        elif choice.kind == LITERT and not judges:
            judges.append(Judge(f"{choice.variant} in process", engine, engine.tolerance))
        yield judges


def _find_atol(variant: str) -> float:
    return FLOAT32.atol if variant == "float16" else _INTEGER_STEPS


def _open_lite(version_dir: Path, signature_name: str) -> LiteEngine | None:
    """The float32 variant, where there is one that has the signature."""
    with suppress(PlumblineError):
        find_variant(version_dir, layout.FLOAT32)
        engine = LiteEngine(version_dir, layout.FLOAT32)
        if signature_name in engine.signatures:
            return engine
        engine.close()
    return None


def _has_tensorflow() -> bool:
    return all(importlib.util.find_spec(name) for name in ("tensorflow", "serving"))


def choose_units(done: Sequence[Unit], before: Sequence[Unit], seed: str) -> list[Unit]:
    """Units to be looked at: of this run and of earlier ones, half and half as far as they go.

    Args:
        done: What this run scored.
        before: What lay in OUT already.
        seed: Another one chooses others.
    """
    draw = random.Random(seed)
    new, old = (draw.sample(list(one), min(SAMPLE_UNITS, len(one))) for one in (done, before))
    num_old = min(len(old), max(SAMPLE_UNITS // 2, SAMPLE_UNITS - len(new)))
    return [*new[: SAMPLE_UNITS - num_old], *old[:num_old]]


def draw_sample(
    units: Sequence[Unit],
    parts: Mapping[str, str],
    destination: Destination,
    plan: ColumnPlan,
    heads: Mapping[str, Head],
    *,
    outputs: Sequence[str] = (),
) -> Sample:
    """Reads rows of parts, and what they were made of from IN.

    Args:
        units: Those to look at.
        parts: Name to path, of what lies in OUT.
        destination: OUT.
        plan: How rows become batches.
        heads: Output name to what it means.
        outputs: Those that were written; () = all.

    Raises:
        DatasetError: IN cannot be read any more.
    """
    sample = Sample()
    for unit in units:
        name = destination.name_part(unit)
        try:
            if name not in parts:
                raise _Wrong(f"{name}.parquet is not there any more")
            count = SAMPLE_ROWS // len(units)
            _sample_unit(sample, unit, parts[name], destination, plan, heads, outputs, count)
        except _Wrong as problem:
            sample.problems.append(str(problem))
        except (ConfigError, ServableUnavailableError) as error:  # of a store
            sample.unread.append(error.message)
    return sample


class _Wrong(Exception):
    """A part is not what was written."""


def _sample_unit(
    sample: Sample,
    unit: Unit,
    path: str,
    destination: Destination,
    plan: ColumnPlan,
    heads: Mapping[str, Head],
    written: Sequence[str],
    num_wanted: int,
) -> None:
    """Adds rows of one part to the sample.

    Raises:
        _Wrong: What is wrong with it.
    """
    name, start = destination.name_part(unit), max(unit.first_row, 0)
    num_rows, bad = _read_claims(destination, unit, path)
    if not num_rows:
        return
    draw = random.Random(name)
    block = _find_block(unit, plan, start + draw.randrange(min(num_rows, _FURTHEST_ROW)))
    if block is None:
        raise _Wrong(f"{name} has more rows than {unit.describe()}")
    answered = np.setdiff1d(np.arange(block.table.num_rows), bad - block.first_row)
    prepared = prepare(block, plan)
    if spare := len(np.setdiff1d(answered, prepared.rows)):
        raise _Wrong(f"{name} has answers to {spare} rows that cannot be scored")
    if not len(answered):
        return
    chosen = draw.sample(answered.tolist(), min(num_wanted, len(answered)))
    rows = np.sort(chosen).astype(np.int64)
    num_before = block.first_row - start - int((bad < block.first_row).sum())
    try:
        found = read_rows(destination, path, num_before + np.searchsorted(answered, rows))
    except DatasetError as error:
        raise _Wrong(error.message) from error
    keys = make_keys(unit, block, rows, plan.keys)
    names = name_columns(keys, written or plan.signature.outputs)
    there = set(found.column_names)
    lacking = [one for one in (*keys, *names.values()) if one not in there]
    if lacking:
        raise _Wrong(f"{name} has no column {', '.join(lacking)}")
    if found.num_rows != len(rows):
        raise _Wrong(f"{name} has fewer rows than {unit.describe()}")
    _compare_keys(keys, found, f"{name} is of other rows than {unit.describe()}")
    sample.outputs.append(_read_outputs(found, names, heads, name))
    at = np.searchsorted(prepared.rows, rows)
    sample.batches.append({key: array[at] for key, array in prepared.batch.items()})
    sample.places += [f"{unit.name}, row {block.first_row + row}, in {name}" for row in rows]


def _read_claims(destination: Destination, unit: Unit, path: str) -> tuple[int, Array]:
    """How many rows of the file a part and its side file tell of, and int64 (left out,): which of
    them the side file names; 0 where none was answered.
    """
    try:
        summary = read_summary(destination, path)
        bad = read_bad_rows(destination, unit)
    except DatasetError as error:
        raise _Wrong(error.message) from error
    name = destination.name_part(unit)
    if len(bad) != summary.num_bad:
        raise _Wrong(f"{name} left out {summary.num_bad} rows, and its side file has {len(bad)}")
    if summary.num_rows == summary.num_bad:
        return 0, np.empty(0, np.int64)
    numbers = [number for number in bad if number is not None]
    return summary.num_rows - bad.count(None), np.array(numbers, np.int64)


def _read_outputs(
    found: pa.Table, names: Mapping[str, str], heads: Mapping[str, Head], part: str
) -> dict[str, Array]:
    outputs = {output: convert_column(found.column(column)) for output, column in names.items()}
    for output, array in outputs.items():
        head = heads.get(output)
        decided = name_classes(head, array) if head is not None else None
        column = f"{names[output]}_class"
        if decided is None:
            continue
        if column not in found.column_names:
            raise _Wrong(f"{part} has no column {column}")
        if found.column(column).to_pylist() != decided.to_pylist():
            raise _Wrong(f"{part}: {column} is not the class of {names[output]}")
    return outputs


def _compare_keys(keys: Mapping[str, pa.Array], found: pa.Table, what: str) -> None:
    for key, ours in keys.items():
        theirs = found.column(key)
        pairs = zip(ours.cast(theirs.type).to_pylist(), theirs.to_pylist(), strict=True)
        for one, other in pairs:
            if repr(one) != repr(other):  # by their texts: NaN is itself here
                raise _Wrong(f"{what}: {key} is {other!r} in OUT, and {one!r} in IN")


def _find_block(unit: Unit, plan: ColumnPlan, wanted: int) -> Block | None:
    """The block that holds a row of the file."""
    for block in read_planned(unit, plan):
        if wanted < block.first_row + block.table.num_rows:
            return block
    return None


def judge(sample: Sample, judges: Sequence[Judge], signature_name: str) -> Verdict:
    """Holds what OUT has against what each judge answers.

    Args:
        sample: Rows of OUT.
        judges: Who answers again.
        signature_name: What is asked.

    Raises:
        PlumblineError: A judge cannot answer.
    """
    if not sample.batches:
        return Verdict(problems=tuple(sample.problems), unread=tuple(sample.unread))
    got = {
        name: np.concatenate([one[name] for one in sample.outputs]) for name in sample.outputs[0]
    }
    problems, largest = list(sample.problems), []
    for one in judges:
        answers = [
            one.engine.predict(batch, signature_name=signature_name) for batch in sample.batches
        ]
        golden = {
            name: _as_written(np.concatenate([answer[name] for answer in answers])) for name in got
        }
        report = compare(golden, got, one.tolerance, signature_name=signature_name)
        largest.append(max(output.max_abs_difference for output in report.outputs))
        problems += [
            f"not as {one.name}: {output.describe()}{_place(sample, output)}"
            for output in report.outputs
            if not output.passed
        ]
    return Verdict(
        num_rows=len(sample.places),
        judges=tuple(one.name for one in judges),
        max_abs_difference=largest[0] if largest else 0.0,
        problems=tuple(problems),
        unread=tuple(sample.unread),
    )


def _place(sample: Sample, output: OutputParity) -> str:
    """Which row differs most."""
    return "" if output.worst_row is None else f" of the sample: {sample.places[output.worst_row]}"


def _as_written(array: Array) -> Array:
    """An output as a part holds it: texts are UTF-8 there, and bfloat16 is float32."""
    pa = import_extra("pyarrow", "scoring files")
    return convert_column(pa.chunked_array([to_column(array)]))
