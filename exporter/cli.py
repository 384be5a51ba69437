"""`python -m exporter VERB`: train, export, verify, publish, inspect, predict.

TensorFlow is imported by the verbs that need it, and by none to print help.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from contract.errors import (
    ExportError,
    PlumblineError,
    ServableUnavailableError,
)
from exporter import remote_commands, verbs
from exporter.chatter import hold_back_chatter
from exporter.quiet import silence_tensorflow

_LOG = logging.getLogger(__name__)

_Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DONE, FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Without the program's name; None for the process's own.

    Returns:
        0 done; 1 checked and failed; 2 usage, configuration or bad input; 3 a remote base path
        that cannot be reached; 130 interrupted.
    """
    silence_tensorflow()
    hold_back_chatter()
    arguments = build_parser().parse_args(argv)
    level = logging.DEBUG if arguments.verbose else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("exporter", "contract"):
        logging.getLogger(name).setLevel(level)
    try:
        status: int = arguments.run(arguments)
    except PlumblineError as error:
        _LOG.error("%s", error.message)
        _LOG.debug("where it was raised", exc_info=True)
        return _choose_exit_code(error)
    except KeyboardInterrupt:
        _LOG.error("interrupted; nothing was published")
        return INTERRUPTED
    return status


def _choose_exit_code(error: PlumblineError) -> int:
    """Checked and failed is 1; given something of no use is 2; a remote base path away is 3."""
    if isinstance(error, ServableUnavailableError):
        return UNREACHABLE
    return FAILED if isinstance(error, ExportError) else USAGE


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="python -m exporter",
        description="Train a Keras model, export it, verify every copy, publish it.",
        allow_abbrev=False,
    )
    parser.set_defaults(verbose=False)
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_train(subparsers)
    _add_export(subparsers)
    _add_verify(subparsers)
    _add_publish(subparsers)
    _add_fetch(subparsers)
    _add_inspect(subparsers)
    _add_predict(subparsers)
    return parser


def _add_verb(subparsers: _Subparsers, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=text, description=text, allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--verbose", action="store_true", help="log more, tracebacks included")
    return parser


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=Path("configs/mlp.toml"), metavar="FILE")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="override the configuration; may be repeated",
    )
    parser.add_argument(
        "--run_dir", type=Path, metavar="DIR", help="default: runs/<model name>/<time>"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint of the run"
    )
    parser.add_argument(
        "--download", action="store_true", help="allow fetching MNIST when no copy is found"
    )


def _add_publish_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base_path",
        metavar="DIR",
        help="the model's own folder, as tensorflow_model_server's --model_base_path; "
        "default: models/<model name>",
    )
    parser.add_argument(
        "--keep", type=int, metavar="N", help="retire all but the newest N versions"
    )
    parser.add_argument(
        "--allow_signature_change",
        action="store_true",
        help="publish even what breaks the clients of the version before",
    )
    parser.add_argument(
        "--model_config_file",
        type=Path,
        metavar="FILE",
        help="a models.config, whose labelled versions are never retired",
    )


def _add_train(subparsers: _Subparsers) -> None:
    parser = _add_verb(subparsers, "train", "Train, and keep the trained model in a run directory.")
    _add_run_flags(parser)
    parser.set_defaults(run=verbs.train)


def _add_export(subparsers: _Subparsers) -> None:
    parser = _add_verb(subparsers, "export", "Train, export, verify and publish.")
    _add_run_flags(parser)
    _add_publish_flags(parser)
    parser.add_argument(
        "--trained", type=Path, metavar="RUN_DIR", help="export what `train` left there"
    )
    parser.set_defaults(run=verbs.export)


def _add_verify(subparsers: _Subparsers) -> None:
    parser = _add_verb(
        subparsers, "verify", "Check every file of a version, and replay its golden examples."
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a version directory")
    parser.add_argument(
        "--skip_tensorflow",
        action="store_true",
        help="do not load the SavedModel: files and TFLite variants only",
    )
    parser.set_defaults(run=verbs.verify)


def _add_publish(subparsers: _Subparsers) -> None:
    parser = _add_verb(subparsers, "publish", "Publish a candidate as the next version.")
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a candidate, its run directory, or a version"
    )
    _add_publish_flags(parser)
    parser.add_argument("--version", type=int, metavar="N", help="default: the next free number")
    remote_commands.add_publish_flag(parser)
    parser.set_defaults(run=verbs.publish)


def _add_fetch(subparsers: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    parser = _add_verb(subparsers, "fetch", "Copy a version from a remote base path to this one.")
    remote_commands.add_fetch_flags(parser)


def _add_inspect(subparsers: _Subparsers) -> None:
    parser = _add_verb(
        subparsers, "inspect", "Show a version's signatures, variants and provenance."
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a version directory")
    parser.set_defaults(run=verbs.inspect)


def _add_predict(subparsers: _Subparsers) -> None:
    parser = _add_verb(
        subparsers,
        "predict",
        "Answer your own inputs in this process, as a golden file to check any client with.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a version directory")
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="one .npy (the only input), one .npz (an array per input), or PNG and JPEG files",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="golden file")
    parser.add_argument("--signature_name", default="", metavar="NAME")
    parser.add_argument("--batch_size", type=int, default=32, metavar="ROWS")
    parser.set_defaults(run=verbs.predict)
