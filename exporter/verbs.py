"""What each verb of the command line does: flags in, result out, exit code back."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from contract.console.exits import ExitCode
from contract.console.extras import require_extra
from contract.console.terminal import print_json
from contract.errors import ConfigError
from contract.lite.runtime import hide_delegate_notes
from exporter import presentation
from exporter.config import Config, load_config
from exporter.durability import explain_os_errors
from exporter.publish import Published, PublishOptions, publish_version


def train(arguments: argparse.Namespace) -> int:
    """`train`: the trained model goes into the run directory."""
    require_extra("tensorflow", "this command")
    from exporter.flow import choose_run_dir, run_train
    from exporter.steps import Steps

    config = _load_config(arguments)
    run_dir = choose_run_dir(config, arguments.run_dir, resume=arguments.resume)
    with explain_os_errors(run_dir), Steps() as steps:
        dataset, result = run_train(config, run_dir=run_dir, resume=arguments.resume, steps=steps)
        from exporter.trained import save_trained

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
    return _print(document, arguments, presentation.show_training)


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
        return _print({"chief": False}, arguments, presentation.show_worker)
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
    _print(document, arguments, presentation.show_export)
    return ExitCode.DONE if verification.passed else ExitCode.FAILED


def publish(arguments: argparse.Namespace) -> int:
    """`publish`: a candidate becomes the next version, or with --to a version is copied away."""
    from exporter.flow import find_candidate
    from exporter.remote_commands import publish_to

    if arguments.to:
        return publish_to(arguments)
    candidate, model_name = find_candidate(arguments.path)
    base_path = _to_local_path(arguments.base_path) or Path("models", model_name)
    published = publish_version(
        candidate, base_path, _read_options(arguments, version=arguments.version)
    )
    return _print(_describe_published(published), arguments, presentation.show_published)


def inspect(arguments: argparse.Namespace) -> int:
    """`inspect`: what the manifest and the files say, without TensorFlow."""
    from exporter.inspection import inspect_version

    with hide_delegate_notes():
        document = inspect_version(arguments.path)
    return _print(document, arguments, presentation.show_inspection)


def verify(arguments: argparse.Namespace) -> int:
    """`verify`: checksums, then golden through every copy that can run here."""
    from exporter.recheck import recheck_version

    with hide_delegate_notes():
        document = recheck_version(arguments.path, skip_tensorflow=arguments.skip_tensorflow)
    _print(document, arguments, presentation.show_recheck)
    return ExitCode.DONE if document["passed"] else ExitCode.FAILED


def predict(arguments: argparse.Namespace) -> int:
    """`predict`: in-process answers for the user's own inputs, as a golden file."""
    require_extra("tensorflow", "this command")
    from exporter.prediction import predict_files

    document = predict_files(
        arguments.path,
        arguments.input,
        arguments.output,
        signature_name=arguments.signature_name,
        batch_size=arguments.batch_size,
    )
    return _print(document, arguments, presentation.show_prediction)


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
