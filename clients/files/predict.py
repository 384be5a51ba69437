"""Files in, predictions out: what `predict` and `on-device run` share."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from clients.files.fit import Adjustment, InputReader
from clients.files.read import FileRows, Skipped
from clients.files.table import AUTO, HEADINGS
from clients.files.write import Sink, describe_row, find_free_outputs, open_sink
from clients.interruption import Interrupted
from clients.results import flatten
from contract import layout, statistics
from contract.console.exits import ExitCode
from contract.console.progress import show_progress
from contract.console.terminal import print_json, remark
from contract.errors import ConfigError, ManifestError, RequestError, SignatureNotFoundError
from contract.lite import schema
from contract.manifest import InputStatistics, read_manifest
from contract.parity import Predictor
from contract.pictures import PixelScaling
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Array, Batch, Signature


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """The answers to some rows of one block.

    Attributes:
        rows: The block.
        indices: Which of its rows were answered.
        outputs: Output name to array; axis 0 belongs to `indices`.
        failed: Those that were not.
        whole: Outputs of all of `indices` together: a scalar, or the k best of a batch.
    """

    rows: FileRows
    indices: Sequence[int]
    outputs: Batch
    failed: tuple[Skipped, ...] = ()
    whole: Batch = dataclasses.field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Rows dealt with."""
        return len(self.indices) + len(self.failed)

    def list_records(self) -> tuple[list[str], dict[str, Array]]:
        """What to call each record, and output name to an array with an entry per record.

        A record is a row, with whole outputs repeated; where there are no others, it is all rows.
        """
        names = [self.rows.name_row(index) for index in self.indices]
        if self.whole and not self.outputs:
            names = [names[0] if len(names) == 1 else f"{names[0]}…{self.indices[-1]}"]
        whole = {name: _repeat(array, len(names)) for name, array in self.whole.items()}
        return names, {**self.outputs, **whole}


def _repeat(array: Array, times: int) -> Array:
    """An array of so many entries: values where it is one, else objects, an array each."""
    if array.ndim == 0:
        return np.repeat(array[None], times)
    repeated = np.empty(times, object)
    for index in range(times):
        repeated[index] = array
    return repeated


Answering = Callable[[Iterator[FileRows], str], Iterator[Answer]]
"""Takes blocks of rows and a signature name, gives their answers in order."""


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of what goes in and where predictions go."""
    parser.add_argument(
        "inputs",
        nargs="*",
        type=Path,
        metavar="INPUT",
        help="npz, npy, csv, jsonl, PNG, JPEG, or a folder of images",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        type=_read_assignment,
        dest="given",
        metavar="NAME=VALUE",
        help="the value of an input, as JSON, as text, or @FILE.npy: of one request, or, beside "
        "INPUT files, of all; may be given for several inputs",
    )
    parser.add_argument(
        "--heading",
        choices=HEADINGS,
        default=AUTO,
        help="whether the first line of a csv names its columns (default: as it looks)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="an npz, csv or jsonl file; default: a table of the first rows",
    )
    parser.add_argument(
        "--signature_name", default="", metavar="NAME", help="default: chosen by what is given"
    )
    parser.add_argument(
        "--array_name", default="", metavar="NAME", help="the array to take of an npz"
    )
    add_adjustment_flags(parser)
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="a text file, one class name per line"
    )
    parser.add_argument(
        "--allow_non_finite", action="store_true", help="send NaN and infinity as they are"
    )


def add_adjustment_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds the flags of what is done to numbers before they are sent."""
    parser.add_argument(
        "--invert",
        action="store_true",
        help="turn dark ink on paper into light on dark, in pictures and in arrays of pixels",
    )
    parser.add_argument(
        "--scale",
        type=_read_number,
        default=0.0,
        metavar="N",
        help="divide numbers by N: 255 for pixels where the model takes 0..1; 1/255 the reverse; "
        "default for pictures: what --version_dir says, else 255",
    )
    parser.add_argument(
        "--shift",
        type=_read_number,
        default=0.0,
        metavar="N",
        help="then add N: --scale 127.5 --shift -1 makes -1..1 of pixels",
    )


def _read_assignment(text: str) -> tuple[str, str]:
    """An argparse type: NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text}: give NAME=VALUE")
    return name, value


def _read_number(text: str) -> float:
    """An argparse type: a number, or a fraction of two."""
    above, _, below = text.partition("/")
    try:
        value = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        value = float("inf")
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def find_adjustment(args: argparse.Namespace) -> Adjustment:
    """What the flags of `add_adjustment_flags` ask for."""
    return Adjustment(invert=args.invert, scale=args.scale, shift=args.shift)


def list_adjustment_flags(args: argparse.Namespace) -> tuple[str, ...]:
    """Those of `add_adjustment_flags` that were given, for advice that repeats them."""
    numbers = [f"--{name}={getattr(args, name)!r}" for name in ("scale", "shift")]
    given = [one for one in numbers if not one.endswith("=0.0")]
    return (*(["--invert"] if args.invert else []), *given)


def find_scaling(
    path: Path | None, signatures: Mapping[str, Signature], signature_name: str = ""
) -> PixelScaling | None:
    """What pixels become for a signature that takes floats, as a version or file says.

    Args:
        path: A version directory, a base path, or a `.tflite` file; None where none is known.
        signatures: Of that version.
        signature_name: "" stands for `serving_default`.

    Returns:
        What the manifest says, else the metadata of `model.tflite`; None where neither does.
    """
    name = signature_name or DEFAULT_SIGNATURE_NAME
    if path is None or name not in signatures or len(signatures[name].inputs) != 1:
        return None
    known = list(find_statistics(path).values())
    if len(known) == 1 and (found := statistics.find_scaling(known[0])):
        return found
    try:
        file = path if path.is_file() else layout.find_version_dir(path) / layout.TFLITE
        scalings = schema.find_scalings(file.read_bytes())
    except (OSError, ManifestError, ConfigError):
        return None
    return scalings.get(name) or (scalings.get("") if len(scalings) == 1 else None)


def find_statistics(version_dir: Path | None) -> Mapping[str, InputStatistics]:
    """What the inputs of a version looked like; nothing where its manifest does not say."""
    if version_dir is None:
        return {}
    try:
        return read_manifest(layout.find_version_dir(version_dir)).inputs
    except (ManifestError, ConfigError):
        return {}


def predict_files(
    args: argparse.Namespace, signatures: Mapping[str, Signature], answer: Answering
) -> ExitCode:
    """Reads, asks and writes: what `predict` and `on-device run` share."""
    if not args.inputs and not args.given and args.version_dir is None:
        raise ConfigError(
            "nothing to predict: give INPUT files, --input NAME=VALUE, or --version_dir for golden "
            "ones"
        )
    golden = [] if args.given else [layout.GOLDEN]
    reader = InputReader(
        args.inputs or [layout.find_version_dir(args.version_dir) / name for name in golden],
        signatures,
        signature_name=args.signature_name,
        array_name=args.array_name,
        adjustment=dataclasses.replace(
            find_adjustment(args),
            pixels=find_scaling(args.version_dir, signatures, args.signature_name),
        ),
        known=find_statistics(args.version_dir),
        given=dict(args.given),
        heading=args.heading,
    )
    if not args.signature_name:
        remark(f"signature {reader.signature.name}")
    if args.json:
        return _predict_json(args, reader, answer)
    sink = open_sink(args.output, find_labels(args), find_free_outputs(reader.signature))
    try:
        failed = _fill(sink, reader, answer)
    except KeyboardInterrupt:
        raise Interrupted(f"kept {sink.describe()}" if sink.num_rows else "") from None
    finally:
        sink.close()
    remark(sink.describe())
    return ExitCode.FAILED if failed or reader.skipped else ExitCode.DONE


def _fill(sink: Sink, reader: InputReader, answer: Answering) -> int:
    num_failed = 0
    with show_progress("predict", total=reader.count_rows) as progress:
        for part in answer(iter(reader), reader.signature.name):
            if len(part.indices):
                sink.write(*part.list_records())
            for name, reason in part.failed:
                remark(f"failed {name}: {reason}")
            num_failed += len(part.failed)
            progress.advance(part.num_rows)
    return num_failed


def _predict_json(args: argparse.Namespace, reader: InputReader, answer: Answering) -> ExitCode:
    labels = find_labels(args)
    parts = []
    with show_progress("predict", total=reader.count_rows) as progress:
        for part in answer(iter(reader), reader.signature.name):
            parts.append(part)
            progress.advance(part.num_rows)
    failed = list(itertools.chain.from_iterable(part.failed for part in parts))
    rows = [
        describe_row(name, place, outputs, labels)
        for names, outputs in (part.list_records() for part in parts if len(part.indices))
        for place, name in enumerate(names)
    ]
    print_json(
        {
            "signature_name": reader.signature.name,
            "predictions": rows,
            "failed": [{"row": name, "reason": reason} for name, reason in failed],
            "remarks": [{"text": one.text, "flag": one.flag} for one in reader.remarks],
            "skipped": [{"file": name, "reason": reason} for name, reason in reader.skipped],
        }
    )
    return ExitCode.FAILED if failed or reader.skipped else ExitCode.DONE


def find_labels(args: argparse.Namespace) -> list[str]:
    """Class names: of --labels, else of --version_dir's assets, else none."""
    path: Path | None = args.labels
    if path is None and args.version_dir and args.version_dir.is_dir():
        path = layout.find_version_dir(args.version_dir) / layout.LABELS
        if not path.is_file():
            return []
    if path is None:
        return []
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--labels {path} cannot be read: {error}") from error


def answer_one_by_one(
    predictor: Predictor, blocks: Iterable[FileRows], signature_name: str
) -> Iterator[Answer]:
    """Asks for one block after the other.

    A block that the model refuses is halved until the rows at fault are found.
    """
    for rows in blocks:
        if rows.request_rows is None:
            yield from _ask(predictor, rows, range(rows.num_rows), signature_name)
        else:
            yield _ask_whole(predictor, rows, rows.request_rows, signature_name)


def _ask_whole(
    predictor: Predictor, rows: FileRows, request_rows: int, signature_name: str
) -> Answer:
    """The answer to a request that cannot be cut."""
    indices = range(rows.num_rows)
    try:
        outputs = predictor.predict(rows.batch, signature_name=signature_name)
    except SignatureNotFoundError:
        raise
    except RequestError as error:
        failed = tuple(Skipped(rows.name_row(index), flatten(error)) for index in indices)
        return Answer(rows, (), {}, failed)
    return _split_outputs(rows, indices, outputs, request_rows)


def _split_outputs(rows: FileRows, indices: Sequence[int], outputs: Batch, num_rows: int) -> Answer:
    """An answer whose outputs have an entry per row, or have not."""
    per_row = {
        name: array for name, array in outputs.items() if array.ndim and len(array) == num_rows
    }
    whole = {name: array for name, array in outputs.items() if name not in per_row}
    return Answer(rows, indices, per_row, whole=whole)


def _ask(
    predictor: Predictor, rows: FileRows, indices: range, signature_name: str
) -> Iterator[Answer]:
    batch = {name: array[indices.start : indices.stop] for name, array in rows.batch.items()}
    try:
        outputs = predictor.predict(batch, signature_name=signature_name)
    except SignatureNotFoundError:
        raise
    except RequestError as error:
        if len(indices) == 1:
            yield Answer(rows, (), {}, (Skipped(rows.name_row(indices.start), flatten(error)),))
            return
        middle = (indices.start + indices.stop) // 2
        yield from _ask(predictor, rows, range(indices.start, middle), signature_name)
        yield from _ask(predictor, rows, range(middle, indices.stop), signature_name)
        return
    yield _split_outputs(rows, indices, outputs, len(indices))
