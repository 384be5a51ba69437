"""Files to score, and jobs over them, for tests of `clients score`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from clients import OnDevicePredictor
from clients.cli import main
from clients.files.fit import Adjustment
from clients.score.columns import ColumnPlan
from clients.score.engines import EngineChoice, open_engine
from clients.score.plan import plan_columns
from clients.score.sources import Block, Unit, list_folders, list_units, read_unit
from clients.score.worker import Scorer, Task, make_task
from contract import layout
from contract.errors import ServableUnavailableError
from contract.manifest import (
    DataEntry,
    Manifest,
    hash_files,
    read_manifest,
    to_entries,
    write_manifest,
)
from contract.signature import Array, Batch
from contract.statistics import describe_columns
from contract.wire.plumbline_wire import example_pb2
from contract.wire.tfrecord import write_records
from tests.clients.grpc_servers import ModelServer
from tests.terminals import Seen, run_in_terminal

ROOT = Path(__file__).resolve().parents[2]
PIXELS = 784
LITE = EngineChoice()

Score: TypeAlias = Callable[..., int]
"""The command from the rows of a test to its `out`, given more arguments."""


def make_images(num_rows: int, *, seed: int = 0) -> Array:
    """uint8 (rows, 784)."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num_rows, PIXELS), dtype=np.uint8)


def to_binary(images: Array) -> pa.Array:
    """Rows of bytes as a fixed-size binary column."""
    rows = np.ascontiguousarray(images).reshape(len(images), -1).view(np.uint8)
    width = rows.shape[1]
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(rows), [None, pa.py_buffer(rows)]
    )


def write_images(path: Path, num_rows: int, *, group: int = 100, seed: int = 0) -> Array:
    """A Parquet file of `id` and `image`; returns the images."""
    images = make_images(num_rows, seed=seed)
    table = pa.table({"id": pa.array(range(num_rows)), "image": to_binary(images)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=group)
    return images


def score(source: object, out: object, version: object, *arguments: str) -> int:
    """Runs the command in this process; its exit code."""
    where = [str(source), str(out), "--version_dir", str(version)]
    return main(["score", *where, "--workers=1", *arguments])


def read_ids(out: Path) -> list[int]:
    """The keys of what lies in OUT, in order."""
    ids: list[int] = parquet.read_table(out / "version=1")["id"].to_pylist()
    return sorted(ids)


def count_parts(out: Path) -> int:
    """Parts that lie in OUT."""
    return len(list(out.glob("version=*/part-*.parquet")))


def wait_for_parts(out: Path, count: int, job: subprocess.Popen[str]) -> None:
    """Waits until a job at work has written so many."""
    while count_parts(out) < count:
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)


@dataclasses.dataclass
class Job:
    """A job without Ray, in this process."""

    units: list[Unit]
    plan: ColumnPlan
    task: Task
    version_dir: Path

    def run(self, units: list[Unit] | None = None) -> int:
        """Scores units; how many rows were bad."""
        scorer = Scorer(self.task, self.plan, self.version_dir)
        try:
            done = [scorer.score(unit) for unit in units or self.units]
        finally:
            scorer.close()
        return sum(one.num_bad for one in done)

    def read(self) -> pa.Table:
        """What lies in OUT, in the order of the files' names."""
        return parquet.read_table(Path(self.task.destination.address, self.task.destination.folder))


@contextmanager
def first_block(address: str) -> Iterator[Block]:
    """The first rows of the files at an address."""
    yield next(block for unit in list_units(address) for block in read_unit(unit))


def make_job(
    source: Path | str,
    out: Path | str,
    version_dir: Path,
    *,
    choice: EngineChoice = LITE,
    signature_name: str = "",
    mapped: dict[str, tuple[str, ...]] | None = None,
    keys: list[str] | None = None,
    allow_non_finite: bool = False,
) -> Job:
    """A job that scores `source` into `out`."""
    manifest = read_manifest(version_dir)
    units = list_units(str(source))
    with open_engine(version_dir, choice) as engine, first_block(str(source)) as block:
        plan = plan_columns(
            block,
            engine.signatures,
            signature_name=signature_name,
            mapped=mapped,
            keys=keys,
            data=manifest.data,
            folders={name for unit in units for name in list_folders(unit)},
            adjustment=Adjustment(),
            allow_non_finite=allow_non_finite,
        )
    task = make_task(version_dir, manifest, choice, plan, str(out))
    return Job(units, plan, task, version_dir)


def write_rows(folder: Path, kind: str) -> Path:
    """Rows of which some are bad, in several units where the kind has any."""
    path = folder / f"x.{kind}"
    if kind == "csv":
        lines = [f"{n},{n},red" if n % 7 else f"{n},{n}" for n in range(100)]
        path.write_text("\n".join(["id,age,color", *lines]))
    elif kind == "jsonl":
        rows = [json.dumps({"id": n, "age": n, "color": "red"}) for n in range(100)]
        path.write_text("\n".join(row if n % 7 else row[:-3] for n, row in enumerate(rows)))
    else:
        records = []
        for number in range(100):
            example = example_pb2.Example()
            example.features.feature["id"].int64_list.value.append(number)
            example.features.feature["x"].float_list.value.extend(
                [number] * (3 if number % 7 else 2)
            )
            records.append(example.SerializeToString())
        write_records(path, records)
    return path


COLUMNS = ("age", "color=blue", "color=red")
FILLED_AGE = 30.0


def make_training_rows(num_rows: int = 2000, *, seed: int = 0) -> Array:
    """float32 (rows, 3): what a table version was trained on, as `COLUMNS`."""
    rng = np.random.default_rng(seed)
    age = rng.normal(40, 10, num_rows)
    age[rng.random(num_rows) < MISSING_AGE] = FILLED_AGE
    red = rng.random(num_rows) < 0.5
    return np.stack([age, ~red, red], axis=1).astype(np.float32)


MISSING_AGE = 0.1


def make_table_version(base_path: Path, *, fills: bool = True) -> Path:
    """A version that answers with the three numbers that it is given: an age, and one of two
    colors.
    """
    version_dir = base_path / "1"
    (version_dir / layout.EXTRA).mkdir(parents=True)
    shutil.copy(
        ROOT / "tests" / "recorded" / "lite" / "counter.tflite", version_dir / "model.tflite"
    )
    spread = describe_columns(make_training_rows(), names=COLUMNS)
    spread["age"] = msgspec.structs.replace(spread["age"], missing=MISSING_AGE)
    with OnDevicePredictor(version_dir) as predictor:
        signatures = predictor.signatures
    manifest = Manifest(
        model_name="people",
        version=1,
        created="2026-01-01T00:00:00Z",
        signatures=to_entries(signatures),
        files=hash_files(version_dir),
        data=DataEntry(
            "people",
            "",
            columns=COLUMNS,
            fillings={"": (FILLED_AGE, 0.0, 0.0)} if fills else {},
        ),
        distributions={"": spread},
    )
    write_manifest(version_dir, manifest)
    return version_dir


def is_noise(inputs: Batch) -> bool:
    """Whether a server is asked for rows of `make_images`, and not for golden examples."""
    (array,) = inputs.values()
    return array.dtype == np.uint8 and bool(array.mean() > 100)


@contextmanager
def serve_answers(version: Path) -> Iterator[ModelServer]:
    """A server that answers as a version of digits does, and can be told to do otherwise."""
    with OnDevicePredictor(version) as predictor, ModelServer() as server:
        server.signatures = dict(predictor.signatures)

        def answer(inputs: Batch) -> Batch:
            (array,) = inputs.values()
            name = "serving_uint8" if array.dtype == np.uint8 else "serving_default"
            return predictor.predict(inputs, signature_name=name)

        server.answer = answer
        yield server


class Absence:
    """Of a server that is asked for rows of `make_images`: it stops, and answers none meanwhile.

    Args:
        server: Which.
        after_rows: How many it answers before.

    Attributes:
        has_begun: Once it stops.
    """

    def __init__(self, server: ModelServer, *, after_rows: int = 0) -> None:
        self.has_begun = threading.Event()
        self._server, self._right, self._num_left = server, server.answer, after_rows
        self._stopping = threading.Thread(target=server.stop)
        self._is_over = False
        self._guard = threading.Lock()
        server.answer = self._answer

    def _answer(self, inputs: Batch) -> Batch:
        if is_noise(inputs):
            with self._guard:
                self._num_left -= len(next(iter(inputs.values())))
                if self._num_left < 0 and not self._is_over:
                    if not self.has_begun.is_set():
                        self._stopping.start()
                        self.has_begun.set()
                    raise ServableUnavailableError("the server stops")
        outputs: Batch = self._right(inputs)
        return outputs

    def end(self) -> None:
        """It comes back, on its port."""
        assert self.has_begun.wait(60)
        self._stopping.join()
        self._is_over = True
        self._server.start()


def score_by_absent(
    server: ModelServer, source: Path, out: Path, version: Path, *, timeout_s: float = 120
) -> Seen:
    """Scores in a terminal by a server that stops at once, and comes back when the terminal says
    that it is waited for.
    """
    absence = Absence(server)
    arguments = [str(source), str(out), "--workers=1", "--version_dir", str(version)]
    return run_in_terminal(
        [sys.executable, "-m", "clients", "score", *arguments, "--server", server.address],
        cwd=ROOT,
        timeout_s=timeout_s,
        until=f"waits for {server.address}, ",
        then=lambda _: absence.end(),
    )
