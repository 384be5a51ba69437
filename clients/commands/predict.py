"""`predict`: files to a server, predictions back."""

from __future__ import annotations

import argparse
import collections
import functools
from collections.abc import Iterable, Iterator

from clients.blocking import PredictionClient
from clients.files.fit import has_rows
from clients.files.predict import Answer, add_input_flags, answer_one_by_one, predict_files
from clients.files.read import FileRows, Skipped
from clients.results import Part, flatten
from clients.targets import (
    Pinned,
    add_server_flags,
    add_version_dir_flag,
    is_rest,
    open_client,
    open_rest_client,
)
from contract.console.exits import ExitCode
from contract.signature import Batch


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser("predict", help="send files, get predictions", description=__doc__)
    add_input_flags(parser)
    add_server_flags(parser)
    add_version_dir_flag(parser, "golden inputs where no INPUT is given, and class names")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> ExitCode:
    """Predicts; 1 when something was skipped or failed."""
    version, label = args.version, args.version_label
    if is_rest(args.server):
        with open_rest_client(args, allow_non_finite=args.allow_non_finite) as rest:
            signatures = rest.metadata(version=version, version_label=label).signatures
            answer = functools.partial(answer_one_by_one, Pinned(rest.predict, args))
            return predict_files(args, signatures, answer)
    with open_client(args, allow_non_finite=args.allow_non_finite) as client:
        signatures = client.metadata(version=version, version_label=label).signatures
        pipelined = functools.partial(answer_pipelined, client, args)
        one_by_one = functools.partial(answer_one_by_one, Pinned(client.predict, args))

        def answer_either(blocks: Iterator[FileRows], signature_name: str) -> Iterator[Answer]:
            can_cut = all(map(has_rows, signatures[signature_name].inputs.values()))
            return (pipelined if can_cut else one_by_one)(blocks, signature_name)

        return predict_files(args, signatures, answer_either)


def answer_pipelined(
    client: PredictionClient,
    args: argparse.Namespace,
    blocks: Iterable[FileRows],
    signature_name: str,
) -> Iterator[Answer]:
    """Asks a server for many blocks at once, by `PredictionClient.predict_many`."""
    sent: collections.deque[tuple[int, FileRows]] = collections.deque()

    def send() -> Iterator[Batch]:
        start = 0
        for rows in blocks:
            sent.append((start, rows))
            start += rows.num_rows
            yield rows.batch

    parts = client.predict_many(
        send(),
        signature_name=signature_name,
        version=args.version,
        version_label=args.version_label,
    )
    for part in parts:
        while part.rows.start >= sent[0][0] + sent[0][1].num_rows:
            sent.popleft()
        for start, rows in list(sent):
            if start >= part.rows.stop:
                break
            yield from _cut_answer(part, start, rows)


def _cut_answer(part: Part, start: int, rows: FileRows) -> Iterator[Answer]:
    """What `part` says of the rows of one block, which begins at row `start` of all."""
    stop = start + rows.num_rows
    failed = tuple(
        Skipped(rows.name_row(failed.index - start), flatten(failed.error))
        for failed in part.failed
        if start <= failed.index < stop
    )
    if failed:
        yield Answer(rows, (), {}, failed)
    for indices, whole in [(one.indices, one.outputs) for one in part.whole] or [
        (part.indices, {})
    ]:
        if not part.outputs and not start <= (indices[0] if len(indices) else -1) < stop:
            continue  # told with the block in which its rows begin
        mine = slice(*indices.searchsorted([start, stop]))
        places = part.indices.searchsorted(indices[mine])
        if len(places):
            outputs = {name: array[places] for name, array in part.outputs.items()}
            yield Answer(rows, (indices[mine] - start).tolist(), outputs, whole=whole)
