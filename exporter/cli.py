"""`python -m exporter VERB`: train, export, verify, publish, inspect, predict.

TensorFlow is imported by the verbs that need it, and by none to print help.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias, get_args

from contract import layout
from contract.console.completion import add_completion_flag
from contract.console.exits import EXIT_CODES, ExitCode, exit_code_of
from contract.console.extras import require_extra
from contract.console.progress import show_progress
from contract.console.terminal import print_json, remark
from contract.errors import ConfigError, PlumblineError, WorkerLostError
from contract.heads import Task
from contract.lite.runtime import hide_delegate_notes
from contract.signing import MAKE_KEY
from exporter.config import Config, load_config, override_config
from exporter.processes import filter_chatter, silence_tensorflow
from exporter.publishing.publish import (
    PublishOptions,
    describe_interrupted,
    find_candidate,
    publish_version,
    sign_published,
)
from exporter.publishing.transfer import Copied, copy_to_remote, fetch_version
from exporter.show import (
    show_comparison,
    show_copied,
    show_export,
    show_inspection,
    show_own,
    show_prediction,
    show_published,
    show_recheck,
    show_report,
    show_signed,
    show_training,
)
from exporter.training.trained import read_record

if TYPE_CHECKING:
    from exporter.verification.recheck import Check

_LOG = logging.getLogger(__name__)
_SCALE_HELP = "what the pixels 0 and 255 become before the model: raw pixels are then taken too"
_CONFIG = "mlp"
_LOCAL_FLAGS = (
    *("base_path", "keep", "version", "model_config_file", "allow_signature_change", "sign"),
)
"""Of `publish`: they have no meaning at a remote base path."""
_RUN_FLAGS = ("config", "overrides", "run_dir", "resume", "download", "trained")
"""Of training: they have no meaning for a model that is trained already."""

Parser: TypeAlias = argparse.ArgumentParser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command."""
    silence_tensorflow()
    filter_chatter()
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
        if isinstance(error, WorkerLostError):
            _end_at_once(exit_code_of(error))
        return exit_code_of(error)
    except KeyboardInterrupt:
        remark("; ".join(["interrupted", *_describe_interrupted(arguments)]))
        return ExitCode.INTERRUPTED
    return status


def _end_at_once(status: int) -> NoReturn:
    """Leaves out TensorFlow's own end, which waits for machines that are gone, and complains."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _describe_interrupted(arguments: argparse.Namespace) -> list[str]:
    if arguments.verb == "fetch" or getattr(arguments, "to", None):
        return ["run the same command again to go on"]
    return [describe_interrupted()] if arguments.verb in ("train", "export", "publish") else []


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="python -m exporter",
        description="Train a Keras model, export it, verify every copy, publish it.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    parser.set_defaults(verbose=False)
    add_completion_flag(parser)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(run: Callable[[argparse.Namespace], int], text: str, path: str = "") -> Parser:
        verb = verbs.add_parser(run.__name__, help=text, description=text, allow_abbrev=False)
        verb.add_argument("--json", action="store_true", help="print the result as JSON")
        verb.add_argument("--verbose", action="store_true", help="log more, tracebacks included")
        if path:
            verb.add_argument("path", type=Path, metavar="PATH", help=path)
        verb.set_defaults(run=run)
        return verb

    verb = add(train, "Train, and keep the trained model in a run directory.")
    _add_run_flags(verb)

    verb = add(export, "Train, export, verify and publish; or export a model that is trained.")
    verb.usage = (
        "%(prog)s [--config FILE] [flags]\n"
        "       %(prog)s --trained RUN_DIR [flags]\n"
        "       %(prog)s --model FILE --examples FILE [flags]"
    )
    _add_run_flags(verb)
    _add_publish_flags(verb)
    verb.add_argument(
        "--trained",
        type=Path,
        metavar="RUN_DIR",
        help="export what `train`, or an export that failed, left there",
    )
    _add_own_model_flags(verb)

    text = "Check every file of a version, and replay its golden examples."
    verb = add(verify, text, "a version, a SavedModel or a .tflite file")
    verb.add_argument(
        "--skip_tensorflow",
        action="store_true",
        help="do not load the SavedModel: files and TFLite variants only",
    )
    verb.add_argument(
        "--key",
        type=Path,
        metavar="PUBLIC_KEY",
        help="check that the holder of this key has signed every file, and load nothing that is "
        "not signed",
    )

    text = "Publish a candidate as the next version."
    verb = add(publish, text, "a candidate, its run directory, a version, or another tool's model")
    _add_publish_flags(verb)
    verb.add_argument("--version", type=int, metavar="N", help="default: the next free number")
    verb.add_argument(
        "--to",
        metavar="URL",
        help="copy the published version PATH to this remote base path instead, an fsspec "
        "address such as s3://bucket/models/NAME",
    )

    text = "Sign a version that is published, or sign it anew."
    verb = add(sign, text, "a version, or a base path for its newest one")
    verb.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help=f"private EC key: {MAKE_KEY}"
    )

    verb = add(fetch, "Copy a version from a remote base path to this one.")
    verb.add_argument(
        "url", metavar="URL", help="a remote base path, such as s3://bucket/models/NAME"
    )
    verb.add_argument(
        "--base_path", type=Path, required=True, metavar="DIR", help="the model's own folder here"
    )
    verb.add_argument(
        "--version", type=int, metavar="N", help="default: the highest that is complete there"
    )
    verb.add_argument(
        "--key",
        type=Path,
        metavar="PUBLIC_KEY",
        help="fetch a version only if the holder of this key has signed every file of it",
    )

    add(
        inspect,
        "Show a version's signatures, variants and provenance.",
        "a version, a SavedModel or a .tflite file",
    )

    text = "Show where a version's report is, or hold one version against another."
    verb = add(report, text, "a version, or a base path for its newest one")
    verb.add_argument(
        "--compare", type=Path, metavar="OTHER", help="the version that is held against PATH"
    )
    verb.add_argument(
        "--shadow",
        type=Path,
        metavar="FILE",
        help="with --compare: the rows that `serving promote --shadow_s` kept, instead of golden "
        "examples",
    )
    verb.add_argument("--out", type=Path, metavar="FILE", help="write the page anew, to this file")
    verb.add_argument("--open", action="store_true", help="open the page in a browser")

    text = "Answer your own inputs in this process, as a golden file to check any client with."
    verb = add(predict, text, "a version or a .tflite file")
    verb.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="one .npy (the only input), one .npz (an array per input), or PNG and JPEG files",
    )
    verb.add_argument("--output", type=Path, required=True, metavar="FILE", help="golden file")
    verb.add_argument("--signature_name", default="", metavar="NAME")
    verb.add_argument("--batch_size", type=int, default=32, metavar="ROWS")
    return parser


def _add_run_flags(parser: Parser) -> None:
    group = parser.add_argument_group("training", "from a configuration; see docs/training.md")
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a TOML file, or the name of one that comes with Plumbline; default: "
        f"{_CONFIG}, or the trained run's own",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="override the configuration; may be repeated",
    )
    group.add_argument(
        "--run_dir", type=Path, metavar="DIR", help="default: runs/<model name>/<time>"
    )
    group.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint of the run"
    )
    group.add_argument(
        "--download", action="store_true", help="allow fetching MNIST when no copy is found"
    )


def _add_own_model_flags(parser: Parser) -> None:
    group = parser.add_argument_group(
        "a model that is trained already", "instead of a configuration; see docs/own-model.md"
    )
    add = group.add_argument
    add(
        "--model",
        type=Path,
        metavar="FILE",
        help="a .keras, .h5 or .tflite file, or the folder of a SavedModel",
    )
    add(
        "--examples",
        type=Path,
        metavar="FILE",
        help="rows as the model takes them: .npz (an array per input), .npy, .csv, .parquet, "
        ".jsonl, or a folder of pictures (whose own folders are the classes)",
    )
    add("--labels", metavar="FILE", help="what they should be answered, or a column of theirs")
    add("--class_names", metavar="NAME,NAME", help="in order; or a file with a name a line")
    add(
        "--task", metavar="TASK", choices=get_args(Task), help=f"one of {', '.join(get_args(Task))}"
    )
    add("--scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help=_SCALE_HELP)
    add(
        "--custom_objects",
        action="append",
        default=[],
        metavar="PACKAGE.MODULE:NAME",
        help="a class or function of the model's own; may be repeated",
    )
    add("--allow_lambda", action="store_true", help="load Lambda layers, which are code that runs")
    add(
        "--skip_unreadable",
        action="store_true",
        help="leave out pictures that cannot be read",
    )
    add("--name", default="", metavar="NAME", help="model name; default: the name of the file")
    add(
        "--variants",
        metavar="NAME,NAME",
        help=f"TFLite copies; default {','.join(layout.DEFAULT_VARIANTS)}; there is "
        f"{layout.INT8_FLOAT_IO} too",
    )
    add(
        "--require",
        metavar="NAME,NAME",
        help="copies without which nothing is published, others are left out when they fail; "
        f"default {layout.FLOAT32}; '' for none",
    )


def _add_publish_flags(parser: Parser) -> None:
    group = parser.add_argument_group("publishing")
    group.add_argument(
        "--base_path",
        metavar="DIR",
        help="the model's own folder, as tensorflow_model_server's --model_base_path; "
        "default: models/<model name>",
    )
    group.add_argument("--keep", type=int, metavar="N", help="retire all but the newest N versions")
    group.add_argument(
        "--allow_signature_change",
        action="store_true",
        help="publish even what breaks the clients of the version before",
    )
    group.add_argument(
        "--model_config_file",
        type=Path,
        metavar="FILE",
        help="a models.config, whose labelled versions are never retired",
    )
    group.add_argument(
        "--sign",
        type=Path,
        metavar="KEY",
        help="sign the version with this private EC key; see docs/signing.md",
    )


def train(arguments: argparse.Namespace) -> int:
    """`train`: the trained model goes into the run directory."""
    require_extra("tensorflow", "this command")
    from exporter.flow import choose_run_dir, run_train

    config = _load_config(arguments)
    run_dir = choose_run_dir(config, arguments.run_dir, resume=arguments.resume)
    trained = run_train(config, run_dir=run_dir, resume=arguments.resume)
    return _tell(arguments, trained, lambda: show_training(trained))


def export(arguments: argparse.Namespace) -> int:
    """`export`: the whole flow, or that of a model which is trained already."""
    require_extra("tensorflow", "this command")
    if arguments.model is not None:
        return _export_own(arguments)
    _refuse_own_flags(arguments)
    from exporter.flow import choose_run_dir, run_export

    config = _load_config(arguments)
    default = config.export.base_path or f"models/{config.model.name}"
    exported = run_export(
        config,
        base_path=_to_local_path(arguments.base_path) or Path(default),
        options=_read_options(arguments, keep=config.export.keep),
        run_dir=choose_run_dir(config, arguments.run_dir, resume=arguments.resume),
        resume=arguments.resume,
        trained=arguments.trained,
    )
    is_whole = True
    document: dict[str, object] = {"chief": False}
    if exported.candidate is not None:
        verification = exported.candidate.verification
        is_whole = verification.is_whole and verification.passed
        document = {
            "model_name": exported.candidate.manifest.model_name,
            "dummy": exported.dummy,
            "passed": verification.passed,
            "verification": verification,
            "published": exported.published,
            "run_dir": exported.run_dir,
            "seconds": exported.seconds,
        }
    return _tell(arguments, document, lambda: show_export(exported), passed=is_whole)


def _export_own(arguments: argparse.Namespace) -> int:
    """`export --model FILE`."""
    from exporter.models.load import read_keras_version, tell_file_kind
    from exporter.own_model import export as export_model

    given = [name for name in _RUN_FLAGS if getattr(arguments, name, None)]
    if given:
        raise ConfigError(
            "--model exports a model that is trained already, so "
            f"--{given[0].replace('overrides', 'set')} has no place beside it"
        )
    kind = tell_file_kind(arguments.model)
    if arguments.examples is None:
        raise ConfigError(
            f"--model {arguments.model} needs --examples FILE: rows that the copies are verified "
            "with, as .npz, .npy, .csv, .parquet or .jsonl, or a folder of pictures"
        )
    os.environ["KERAS_BACKEND"] = "tensorflow"  # of which a SavedModel is made
    if (
        kind == "keras"
        and arguments.custom_objects
        and read_keras_version(arguments.model).startswith("3")
    ):
        os.environ["TF_USE_LEGACY_KERAS"] = "0"  # theirs may say tf.keras, and mean Keras 3
    name = arguments.name or arguments.model.absolute().name.partition(".")[0]
    exported = export_model(
        arguments.model,
        _to_local_path(arguments.base_path) or Path("models", name),
        examples=arguments.examples,
        labels=arguments.labels,
        class_names=_read_class_names(arguments.class_names),
        name=name,
        task=arguments.task,
        scale=tuple(arguments.scale) if arguments.scale else None,
        custom_objects=_import_objects(arguments.custom_objects),
        allow_lambda=arguments.allow_lambda,
        skip_unreadable=arguments.skip_unreadable,
        options=_read_options(arguments),
        variants=_split(arguments.variants, layout.DEFAULT_VARIANTS),
        require=_split(arguments.require, (layout.FLOAT32,)),
    )
    document = {
        "model_name": exported.manifest.model_name,
        "passed": True,
        "verification": exported.verification,
        "published": exported.published,
    }
    is_whole = exported.verification.is_whole
    return _tell(arguments, document, lambda: show_own(exported), passed=is_whole)


def _refuse_own_flags(arguments: argparse.Namespace) -> None:
    names = (
        *("examples", "labels", "class_names", "task", "scale", "custom_objects", "allow_lambda"),
        *("skip_unreadable", "name", "variants", "require"),
    )
    given = [name for name in names if getattr(arguments, name)]
    if given:
        raise ConfigError(
            f"--{given[0]} is for a model that is trained already; name it with --model FILE"
        )


def _split(text: str | None, default: tuple[str, ...]) -> list[str]:
    if text is None:
        return list(default)
    return [part.strip() for part in text.split(",") if part.strip()]


def _read_class_names(text: str | None) -> list[str]:
    """Names given as `fine,fraud`, or in a file with a name a line."""
    if not text:
        return []
    path = Path(text)
    if not path.is_file():
        return _split(text, ())
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--class_names {path} cannot be read as text: {error}") from error


def _import_objects(references: list[str]) -> dict[str, object]:
    """Name to class or function of each `package.module:name`."""
    from exporter.config import import_function

    return {
        reference.rpartition(":")[2]: import_function(reference, key="--custom_objects")
        for reference in references
    }


def verify(arguments: argparse.Namespace) -> int:
    """`verify`: checksums, then golden through every copy that can run here."""
    from exporter.verification.recheck import recheck_version

    with (
        hide_delegate_notes() as shown,
        show_progress("verify", unit="", is_kept=False, stream=shown) as progress,
    ):
        recheck = recheck_version(
            arguments.path,
            skip_tensorflow=arguments.skip_tensorflow,
            on_check=progress.name,
            key=arguments.key,
        )
    checks = [_encode_check(one) for one in recheck.checks]
    document: dict[str, object] = {"path": recheck.path, "checks": checks}
    if recheck.manifest is not None:
        document["model_name"] = recheck.manifest.model_name
        document["version"] = recheck.manifest.version
    document["passed"] = recheck.passed
    return _tell(arguments, document, lambda: show_recheck(recheck), passed=recheck.passed)


def publish(arguments: argparse.Namespace) -> int:
    """`publish`: a candidate becomes the next version, or with --to a version is copied away."""
    if arguments.to:
        return _publish_to(arguments)
    candidate, model_name = find_candidate(arguments.path)
    base_path = _to_local_path(arguments.base_path) or Path("models", model_name)
    options = _read_options(arguments, version=arguments.version)
    with show_progress("publish", unit="", is_kept=False):
        published = publish_version(candidate, base_path, options)
    return _tell(arguments, published, lambda: show_published(published))


def sign(arguments: argparse.Namespace) -> int:
    """`sign VERSION --key KEY`."""
    signed = sign_published(layout.find_version_dir(arguments.path), arguments.key)
    return _tell(arguments, signed, lambda: show_signed(signed))


def fetch(arguments: argparse.Namespace) -> int:
    """`fetch URL --base_path DIR`."""
    fetch_here = functools.partial(
        fetch_version,
        arguments.url,
        arguments.base_path,
        version=arguments.version,
        key=arguments.key,
    )
    return _copy(arguments, "fetch", fetch_here)


def inspect(arguments: argparse.Namespace) -> int:
    """`inspect`: what the manifest and the files say, without TensorFlow."""
    from exporter.inspect import inspect_version

    with hide_delegate_notes():
        inspection = inspect_version(arguments.path)
    return _tell(arguments, inspection, lambda: show_inspection(inspection))


def report(arguments: argparse.Namespace) -> int:
    """`report`: a version's page, or two versions side by side."""
    from exporter.report.verb import make_comparison, make_report, open_in_browser

    if arguments.compare is None and arguments.shadow is not None:
        raise ConfigError("--shadow shows rows of two versions: give the new one with --compare")
    if arguments.compare is None:
        made = make_report(arguments.path, out=arguments.out)
        status = _tell(arguments, made, lambda: show_report(made))
    else:
        with hide_delegate_notes():
            compared = make_comparison(
                *(arguments.path, arguments.compare),
                out=arguments.out,
                needs_page=arguments.open,
                shadow=arguments.shadow,
            )
        status = _tell(arguments, compared, lambda: show_comparison(compared))
    page = made.report if arguments.compare is None else compared.report
    if arguments.open and page is not None:
        open_in_browser(page)
    return status


def predict(arguments: argparse.Namespace) -> int:
    """`predict`: in-process answers for the user's own inputs, as a golden file."""
    from exporter.predict import predict_files

    with show_progress("predict", unit="", is_kept=False):
        prediction = predict_files(
            arguments.path,
            arguments.input,
            arguments.output,
            signature_name=arguments.signature_name,
            batch_size=arguments.batch_size,
        )
    return _tell(arguments, prediction, lambda: show_prediction(prediction))


def _tell(
    arguments: argparse.Namespace,
    result: object,
    show: Callable[[], None],
    *,
    passed: bool = True,
) -> int:
    if arguments.json:
        print_json(result)
    else:
        show()
    return ExitCode.DONE if passed else ExitCode.FAILED


def _load_config(arguments: argparse.Namespace) -> Config:
    overrides = list(arguments.overrides)
    if arguments.download:
        overrides.append("data.download=true")
    trained = getattr(arguments, "trained", None)
    if trained is not None and arguments.resume:
        raise ConfigError(
            f"--trained {trained} is a model whose training has ended, so --resume has no place "
            "beside it"
        )
    if trained is not None and arguments.config is None:
        return override_config(read_record(trained).config, overrides)
    return load_config(arguments.config or _CONFIG, overrides)


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
        signing_key=arguments.sign,
    )


def _to_local_path(text: str | None) -> Path | None:
    if text and "://" in text:
        raise ConfigError(f"--base_path {text}: give a folder of this machine")
    return Path(text) if text else None


def _encode_check(check: Check) -> dict[str, object]:
    document: dict[str, object] = {
        "name": check.name,
        "result": check.result,
        "detail": check.detail,
    }
    if (found := check.measurement) is not None:
        document |= {
            "num_examples": check.num_examples,
            "max_abs_difference": found.max_abs_difference,
            "max_ulp": found.max_ulp,
            "top1_agreement": found.top1_agreement,
            "us_per_row": found.us_per_row,
        }
    if check.signatures:
        document["signatures"] = check.signatures
    return document


def _publish_to(arguments: argparse.Namespace) -> int:
    """`publish PATH --to URL`."""
    given = [name for name in _LOCAL_FLAGS if getattr(arguments, name, None)]
    if given:
        raise ConfigError(
            f"--to copies a version as it is, so --{given[0]} has no place beside it; publish to a "
            "folder of this machine first, then copy that version with --to"
        )
    version_dir = layout.find_version_dir(arguments.path)
    copy = functools.partial(copy_to_remote, version_dir, arguments.to)
    return _copy(arguments, f"copy to {arguments.to}", copy)


def _copy(arguments: argparse.Namespace, title: str, copy: functools.partial[Copied]) -> int:
    start = time.perf_counter()
    with show_progress(title, unit="bytes") as progress:
        copied = copy(on_bytes=progress.advance, on_total=progress.expect)
    seconds = time.perf_counter() - start
    document = dataclasses.asdict(copied) | {"seconds": round(seconds, 3)}
    return _tell(arguments, document, lambda: show_copied(copied, seconds))
