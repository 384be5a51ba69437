"""`python -m exporter VERB`: train, export, verify, publish, inspect, predict.

TensorFlow is imported by the verbs that need it, and by none to print help.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from contract import layout
from contract.console.exits import EXIT_CODES, ExitCode, exit_code_of
from contract.console.extras import require_extra
from contract.console.terminal import print_json, remark, say, show_progress
from contract.errors import ConfigError, PlumblineError
from contract.lite.runtime import hide_delegate_notes
from exporter import show
from exporter.config import Config, load_config
from exporter.processes import silence_tensorflow
from exporter.publishing.publish import Published, PublishOptions, publish_version
from exporter.publishing.remote import OnBytes
from exporter.publishing.staging import explain_os_errors
from exporter.publishing.transfer import Copied, copy_to_remote, fetch_version

_LOG = logging.getLogger(__name__)

_Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Without the program's name; None for the process's own.

    Returns:
        An `ExitCode`.
    """
    silence_tensorflow()
    arguments = build_parser().parse_args(argv)
    level = logging.DEBUG if arguments.verbose else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("exporter", "contract"):
        logging.getLogger(name).setLevel(level)
    try:
        status: int = arguments.run(arguments)
    except PlumblineError as error:
        remark(error.message)
        _LOG.debug("where it was raised", exc_info=True)
        return exit_code_of(error)
    except KeyboardInterrupt:
        remark("interrupted; nothing was published")
        return ExitCode.INTERRUPTED
    return status


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="python -m exporter",
        description="Train a Keras model, export it, verify every copy, publish it.",
        epilog=EXIT_CODES,
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
    parser.set_defaults(run=train)


def _add_export(subparsers: _Subparsers) -> None:
    parser = _add_verb(subparsers, "export", "Train, export, verify and publish.")
    _add_run_flags(parser)
    _add_publish_flags(parser)
    parser.add_argument(
        "--trained", type=Path, metavar="RUN_DIR", help="export what `train` left there"
    )
    parser.set_defaults(run=export)


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
    parser.set_defaults(run=verify)


def _add_publish(subparsers: _Subparsers) -> None:
    parser = _add_verb(subparsers, "publish", "Publish a candidate as the next version.")
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a candidate, its run directory, or a version"
    )
    _add_publish_flags(parser)
    parser.add_argument("--version", type=int, metavar="N", help="default: the next free number")
    add_publish_flag(parser)
    parser.set_defaults(run=publish)


def _add_fetch(subparsers: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    parser = _add_verb(subparsers, "fetch", "Copy a version from a remote base path to this one.")
    add_fetch_flags(parser)


def _add_inspect(subparsers: _Subparsers) -> None:
    parser = _add_verb(
        subparsers, "inspect", "Show a version's signatures, variants and provenance."
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a version directory")
    parser.set_defaults(run=inspect)


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
    parser.set_defaults(run=predict)


# What each verb of the command line does: flags in, result out, exit code back.


def train(arguments: argparse.Namespace) -> int:
    """`train`: the trained model goes into the run directory."""
    require_extra("tensorflow", "this command")
    from exporter.flow import Steps, choose_run_dir, run_train

    config = _load_config(arguments)
    run_dir = choose_run_dir(config, arguments.run_dir, resume=arguments.resume)
    with explain_os_errors(run_dir), Steps() as steps:
        dataset, result = run_train(config, run_dir=run_dir, resume=arguments.resume, steps=steps)
        from exporter.training.trained import save_trained

        save_trained(run_dir, result, dataset, config)
    document = {
        "run_dir": str(run_dir),
        "model_name": config.model.name,
        "dummy": dataset.dummy,
        "epochs_run": result.epochs_run,
        "best_epoch": result.best_epoch,
        "resumed_from": result.resumed_from,
        "seconds": result.seconds,
        "history": result.history,
    }
    return _print(document, arguments, show.show_training)


def export(arguments: argparse.Namespace) -> int:
    """`export`: the whole flow."""
    require_extra("tensorflow", "this command")
    from exporter.flow import choose_base_path, choose_run_dir, run_export

    config = _load_config(arguments)
    exported = run_export(
        config,
        base_path=_to_local_path(arguments.base_path) or choose_base_path(config, None),
        options=_read_options(arguments, keep=config.export.keep),
        run_dir=choose_run_dir(config, arguments.run_dir, resume=arguments.resume),
        resume=arguments.resume,
        trained=arguments.trained,
    )
    if exported.candidate is None:
        return _print({"chief": False}, arguments, show.show_worker)
    verification = exported.candidate.verification
    published = exported.published
    document = {
        "model_name": exported.candidate.manifest.model_name,
        "dummy": bool(exported.candidate.manifest.data.dummy),
        "passed": verification.passed,
        "verification": msgspec.to_builtins(verification),
        "published": None if published is None else _describe_published(published),
        "run_dir": str(exported.run_dir),
        "seconds": exported.seconds,
    }
    _print(document, arguments, show.show_export)
    return ExitCode.DONE if verification.passed else ExitCode.FAILED


def publish(arguments: argparse.Namespace) -> int:
    """`publish`: a candidate becomes the next version, or with --to a version is copied away."""
    from exporter.flow import find_candidate

    if arguments.to:
        return publish_to(arguments)
    candidate, model_name = find_candidate(arguments.path)
    base_path = _to_local_path(arguments.base_path) or Path("models", model_name)
    published = publish_version(
        candidate, base_path, _read_options(arguments, version=arguments.version)
    )
    return _print(_describe_published(published), arguments, show.show_published)


def inspect(arguments: argparse.Namespace) -> int:
    """`inspect`: what the manifest and the files say, without TensorFlow."""
    from exporter.inspect import inspect_version

    with hide_delegate_notes():
        document = inspect_version(arguments.path)
    return _print(document, arguments, show.show_inspection)


def verify(arguments: argparse.Namespace) -> int:
    """`verify`: checksums, then golden through every copy that can run here."""
    from exporter.verification.recheck import recheck_version

    with hide_delegate_notes():
        document = recheck_version(arguments.path, skip_tensorflow=arguments.skip_tensorflow)
    _print(document, arguments, show.show_recheck)
    return ExitCode.DONE if document["passed"] else ExitCode.FAILED


def predict(arguments: argparse.Namespace) -> int:
    """`predict`: in-process answers for the user's own inputs, as a golden file."""
    require_extra("tensorflow", "this command")
    from exporter.predict import predict_files

    document = predict_files(
        arguments.path,
        arguments.input,
        arguments.output,
        signature_name=arguments.signature_name,
        batch_size=arguments.batch_size,
    )
    return _print(document, arguments, show.show_prediction)


def _load_config(arguments: argparse.Namespace) -> Config:
    overrides = list(arguments.overrides)
    if arguments.download:
        overrides.append("data.download=true")
    return load_config(arguments.config, overrides)


def _read_options(
    arguments: argparse.Namespace, *, keep: int = 0, version: int | None = None
) -> PublishOptions:
    if arguments.keep is not None and arguments.keep < 1:
        raise ConfigError(f"--keep {arguments.keep}: give 1 or more; leave it out to keep all")
    return PublishOptions(
        keep=arguments.keep or keep,
        allow_signature_change=arguments.allow_signature_change,
        model_config_file=arguments.model_config_file,
        version=version,
    )


def _to_local_path(text: str | None) -> Path | None:
    if text and "://" in text:
        raise ConfigError(f"--base_path {text}: give a folder of this machine")
    return Path(text) if text else None


def _describe_published(published: Published) -> dict[str, Any]:
    return {
        "path": str(published.path),
        "version": published.version,
        "retired": list(published.retired),
        "changes": list(published.changes),
    }


def _print(
    document: dict[str, Any],
    arguments: argparse.Namespace,
    show: Callable[[dict[str, Any]], None],
) -> int:
    if arguments.json:
        print_json(document)
    else:
        show(document)
    return ExitCode.DONE


# `publish --to URL` and `fetch URL`: versions to and from remote base paths.


_LOCAL_FLAGS = ("base_path", "keep", "version", "model_config_file", "allow_signature_change")


def add_publish_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --to."""
    parser.add_argument(
        "--to",
        metavar="URL",
        help="copy the published version PATH to this remote base path instead, an fsspec "
        "address such as s3://bucket/models/mlp",
    )


def add_fetch_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `fetch`."""
    parser.add_argument(
        "url", metavar="URL", help="a remote base path, such as s3://bucket/models/mlp"
    )
    parser.add_argument(
        "--base_path", type=Path, required=True, metavar="DIR", help="the model's own folder here"
    )
    parser.add_argument(
        "--version", type=int, metavar="N", help="default: the highest that is complete there"
    )
    parser.set_defaults(run=fetch)


def publish_to(arguments: argparse.Namespace) -> int:
    """`publish PATH --to URL`."""
    given = [name for name in _LOCAL_FLAGS if getattr(arguments, name, None)]
    if given:
        raise ConfigError(
            f"--to copies a version as it is, so --{given[0]} has no place beside it; publish to a "
            "folder of this machine first, then copy that version with --to"
        )
    version_dir = _find_version_dir(arguments.path)
    return _run(
        arguments,
        f"copy to {arguments.to}",
        lambda on_bytes: copy_to_remote(version_dir, arguments.to, on_bytes=on_bytes),
    )


def fetch(arguments: argparse.Namespace) -> int:
    """`fetch URL --base_path DIR`."""
    return _run(
        arguments,
        "fetch",
        lambda on_bytes: fetch_version(
            arguments.url, arguments.base_path, version=arguments.version, on_bytes=on_bytes
        ),
    )


def _find_version_dir(path: Path) -> Path:
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder; give a published version")
    if (path / layout.MANIFEST).exists():
        return path
    versions = layout.find_versions(path)
    if not versions:
        raise ConfigError(f"{path}: neither a published version nor a base path that holds one")
    return versions[max(versions)]


def _run(arguments: argparse.Namespace, title: str, copy: Callable[[OnBytes], Copied]) -> int:
    start = time.perf_counter()
    with show_progress(title, unit="bytes") as progress:
        copied = copy(progress.advance)
    seconds = time.perf_counter() - start
    document: dict[str, Any] = dataclasses.asdict(copied) | {"seconds": round(seconds, 3)}
    if arguments.json:
        print_json(document)
    else:
        already = f", {copied.num_present} of them there already" if copied.num_present else ""
        say(
            f"{copied.model_name} version {copied.version}: {copied.num_files} files{already}, "
            f"{copied.num_bytes / 1e6:.1f} MB, every sha256 checked, {seconds:.1f} s\n"
            f"{copied.source} -> {copied.target}"
        )
    return ExitCode.DONE
