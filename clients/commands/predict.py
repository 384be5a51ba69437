"""`predict`: files to a server, predictions back."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clients.blocking import PredictionClient
from clients.files.fit import InputReader
from clients.files.read import FileRows
from clients.files.write import Sink, describe_row, open_sink
from clients.interruption import Interrupted
from clients.on_device import find_version_dir
from clients.parity import Pinned
from clients.results import Part
from clients.targets import (
    add_server_flags,
    add_version_dir_flag,
    find_labels,
    is_rest,
    open_client,
    open_rest_client,
)
from contract import layout
from contract.console.exits import ExitCode
from contract.console.terminal import print_json, remark, show_progress
from contract.errors import ConfigError, PlumblineError, RequestError, SignatureNotFoundError
from contract.parity import Predictor
from contract.signature import Batch, Signature

# Blocks of rows through whoever answers, and their answers in order.


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """The answers to some rows of one block.

    Attributes:
        rows: The block.
        indices: Which of its rows were answered.
        outputs: Output name to array; axis 0 belongs to `indices`.
        failed: Name and reason of rows that were not.
    """

    rows: FileRows
    indices: Sequence[int]
    outputs: Batch
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows dealt with."""
        return len(self.indices) + len(self.failed)


def answer_one_by_one(
    predictor: Predictor, blocks: Iterable[FileRows], *, signature_name: str
) -> Iterator[Answer]:
    """Asks for one block after the other.

    A block that the model refuses is halved until the rows at fault are found.

    Raises:
        PlumblineError: What the predictor raises, other than for a bad row.
    """
    for rows in blocks:
        yield from _ask(predictor, rows, range(rows.num_rows), signature_name)


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
            yield Answer(rows, (), {}, ((rows.name_row(indices.start), flatten(error)),))
            return
        middle = (indices.start + indices.stop) // 2
        yield from _ask(predictor, rows, range(indices.start, middle), signature_name)
        yield from _ask(predictor, rows, range(middle, indices.stop), signature_name)
        return
    yield Answer(rows, indices, outputs)


def answer_pipelined(
    client: PredictionClient,
    blocks: Iterable[FileRows],
    *,
    signature_name: str,
    version: int | None = None,
    version_label: str | None = None,
) -> Iterator[Answer]:
    """Asks a server for many blocks at once, by `PredictionClient.predict_many`.

    Raises:
        UnansweredRowsError: The server went away; says which rows have no answer.
        PlumblineError: What the server says to the first rows.
    """
    sent: collections.deque[tuple[int, FileRows]] = collections.deque()

    def send() -> Iterator[Batch]:
        start = 0
        for rows in blocks:
            sent.append((start, rows))
            start += rows.num_rows
            yield rows.batch

    parts = client.predict_many(
        send(), signature_name=signature_name, version=version, version_label=version_label
    )
    for part in parts:
        while part.rows.start >= sent[0][0] + sent[0][1].num_rows:
            sent.popleft()
        for start, rows in list(sent):
            if start >= part.rows.stop:
                break
            answer = _cut_answer(part, start, rows)
            if answer.num_rows:
                yield answer


def _cut_answer(part: Part, start: int, rows: FileRows) -> Answer:
    """What `part` says of the rows of one block, which begins at row `start` of all."""
    stop = start + rows.num_rows
    kept = slice(*part.indices.searchsorted([start, stop]))
    return Answer(
        rows,
        (part.indices[kept] - start).tolist(),
        {name: array[kept] for name, array in part.outputs.items()},
        tuple(
            (rows.name_row(failed.index - start), flatten(failed.error))
            for failed in part.failed
            if start <= failed.index < stop
        ),
    )


def flatten(error: PlumblineError) -> str:
    """An error's text in one line."""
    return " ".join(error.message.split())


Answering = Callable[[Iterator[FileRows], str], Iterator[Answer]]


def add_parser(verbs: Any) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser("predict", help="send files, get predictions", description=__doc__)
    add_input_flags(parser)
    add_server_flags(parser)
    add_version_dir_flag(parser, "golden inputs where no INPUT is given, and class names")
    parser.set_defaults(run=run)


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of what goes in and where predictions go."""
    parser.add_argument(
        "inputs",
        nargs="*",
        type=Path,
        metavar="INPUT",
        help="npz, npy, csv, jsonl, PNG, JPEG, or a folder of images (light ink on dark)",
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
    parser.add_argument("--invert", action="store_true", help="images have dark ink on paper")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="a text file, one class name per line"
    )
    parser.add_argument(
        "--allow_non_finite", action="store_true", help="send NaN and infinity as they are"
    )


def run(args: argparse.Namespace) -> int:
    """Predicts; 1 when something was skipped or failed."""
    pin = {"version": args.version, "version_label": args.version_label}
    if is_rest(args.server):
        with open_rest_client(args, allow_non_finite=args.allow_non_finite) as rest:
            pinned = Pinned(rest, **pin)
            return predict_files(
                args,
                rest.metadata(**pin).signatures,
                lambda blocks, name: answer_one_by_one(pinned, blocks, signature_name=name),
            )
    with open_client(args, allow_non_finite=args.allow_non_finite) as client:
        return predict_files(
            args,
            client.metadata(**pin).signatures,
            lambda blocks, name: answer_pipelined(client, blocks, signature_name=name, **pin),
        )


def predict_files(
    args: argparse.Namespace, signatures: Mapping[str, Signature], answer: Answering
) -> int:
    """Reads, asks and writes: what `predict` and `on-device run` share.

    Args:
        args: The flags of `add_input_flags`.
        signatures: What can be asked.
        answer: Blocks of rows and a signature name to answers, in order.

    Returns:
        0, or 1 when something was skipped or failed.

    Raises:
        Interrupted: Ctrl-C; says what was kept.
        PlumblineError: Nothing could be read, nothing fits, or the predictor failed.
    """
    reader = InputReader(
        choose_inputs(args),
        signatures,
        signature_name=args.signature_name,
        array_name=args.array_name,
        invert=args.invert,
    )
    if not args.signature_name:
        remark(f"signature {reader.signature.name}")
    if args.json:
        return _predict_json(args, reader, answer)
    sink = open_sink(args.output, find_labels(args))
    try:
        failed = _fill(sink, reader, answer)
    except KeyboardInterrupt:
        raise Interrupted(f"kept {sink.describe()}" if sink.num_rows else "") from None
    finally:
        sink.close()
    remark(sink.describe())
    return ExitCode.FAILED if failed or reader.skipped else ExitCode.DONE


def choose_inputs(args: argparse.Namespace) -> list[Path]:
    """The files given, else the golden inputs of --version_dir.

    Raises:
        ConfigError: Neither is given.
    """
    if args.inputs:
        return list(args.inputs)
    if args.version_dir is None:
        raise ConfigError("nothing to predict: give INPUT files, or --version_dir for golden ones")
    return [find_version_dir(args.version_dir) / layout.GOLDEN]


def _fill(sink: Sink, reader: InputReader, answer: Answering) -> int:
    num_failed = 0
    with show_progress("predict") as progress:
        for part in answer(iter(reader), reader.signature.name):
            if len(part.indices):
                sink.write(part.rows, part.indices, part.outputs)
            for name, reason in part.failed:
                remark(f"failed {name}: {reason}")
            num_failed += len(part.failed)
            progress.advance(part.num_rows)
    return num_failed


def _predict_json(args: argparse.Namespace, reader: InputReader, answer: Answering) -> int:
    labels = find_labels(args)
    parts = list(answer(iter(reader), reader.signature.name))
    failed = list(itertools.chain.from_iterable(part.failed for part in parts))
    rows = [
        describe_row(part.rows.name_row(index), place, part.outputs, labels)
        for part in parts
        for place, index in enumerate(part.indices)
    ]
    print_json(
        {
            "signature_name": reader.signature.name,
            "predictions": rows,
            "failed": [{"row": name, "reason": reason} for name, reason in failed],
            "skipped": [{"file": name, "reason": reason} for name, reason in reader.skipped],
        }
    )
    return ExitCode.FAILED if failed or reader.skipped else ExitCode.DONE
