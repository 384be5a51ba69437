"""What lies in OUT, held against the model in this process: rows of some parts, read again."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from clients.score.columns import ColumnPlan, convert_column, prepare
from clients.score.engines import Engine
from clients.score.output import Destination, list_rows
from clients.score.sources import Block, Unit, open_address, read_unit
from contract.errors import DatasetError
from contract.parity import ParityReport, Tolerance, compare
from contract.signature import STRING, Array, TensorSpec

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE_UNITS = 4
SAMPLE_ROWS = 128
"""Of a part."""


def verify_sample(
    units: Sequence[Unit],
    parts: Mapping[str, str],
    destination: Destination,
    plan: ColumnPlan,
    engine: Engine,
    tolerance: Tolerance,
    *,
    outputs: Sequence[str] = (),
) -> ParityReport | None:
    """Reads rows of some units again, asks the model in this process, and compares with OUT.

    Args:
        units: Those that are done.
        parts: Name to path, of what lies in OUT.
        destination: OUT.
        plan: How rows become batches.
        engine: In this process.
        tolerance: How far answers may be apart.
        outputs: Those that were written; () = all.

    Returns:
        None where OUT has no rows.

    Raises:
        DatasetError: A part is not what was written.
    """
    chosen = random.Random(destination.fingerprint).sample(units, min(SAMPLE_UNITS, len(units)))
    golden: dict[str, list[Array]] = {}
    got: dict[str, list[Array]] = {}
    system, _ = open_address(destination.address)
    for unit in chosen:
        block = next(iter(read_unit(unit, plan.columns if unit.kind == "parquet" else None)), None)
        if block is None:
            continue
        block = Block(block.table.slice(0, SAMPLE_ROWS), block.first_row, block.names[:SAMPLE_ROWS])
        prepared = prepare(block, plan)
        if not len(prepared.rows):
            continue
        answers = engine.answer(prepared.batch, plan.signature.name)
        table = list_rows(system, parts[destination.name_part(unit)], SAMPLE_ROWS)
        for name, array in answers.outputs.items():
            if outputs and name not in outputs:
                continue
            column = f"{name}_answer" if name in plan.keys else name
            if column not in table.column_names:
                raise DatasetError(f"{parts[destination.name_part(unit)]} has no column {column!r}")
            kept = min(len(array), table.num_rows)
            spec = plan.signature.outputs.get(name)
            golden.setdefault(name, []).append(array[:kept])
            got.setdefault(name, []).append(_to_array(table.column(column).slice(0, kept), spec))
    if not golden:
        return None
    return compare(
        {name: np.concatenate(arrays) for name, arrays in golden.items()},
        {name: np.concatenate(arrays) for name, arrays in got.items()},
        tolerance,
        signature_name=plan.signature.name,
    )


def _to_array(column: pa.ChunkedArray, spec: TensorSpec | None) -> Array:
    array = convert_column(column)
    if spec is not None and spec.dtype != STRING and array.dtype != spec.numpy_dtype:
        array = array.astype(spec.numpy_dtype)
    return array
