"""`export(model, …)`: a verified version of a model that somebody has, from one call."""

from __future__ import annotations

import dataclasses
import html
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec

from contract import layout
from contract.console.progress import Steps
from contract.console.terminal import format_table
from contract.errors import ConfigError, VerificationError
from contract.heads import Head, Task
from contract.manifest import Manifest, read_manifest
from exporter.candidate import borrow_processes, make_candidate
from exporter.card import Origin
from exporter.config import MODEL_NAME, ExportConfig
from exporter.data.examples import Examples, ExportExamples
from exporter.data.given import GivenExamples, check_paths, draw_given, read_given, to_pixels
from exporter.data.pixels import PixelScale
from exporter.models.doubts import warn_of_doubts
from exporter.models.fitting import answer_rows, decide_classes, fit_targets
from exporter.models.load import find_input_shape, load_keras, make_exportable, tell_file_kind
from exporter.publishing.publish import (
    Published,
    PublishOptions,
    check_publishing,
    publish_version,
)
from exporter.publishing.staging import explain_os_errors
from exporter.verification.verdict import (
    Verification,
    describe_requirement,
    list_failures,
    list_headings,
    list_rows,
)

if TYPE_CHECKING:
    from exporter.artifacts.exportable import Exportable
    from exporter.data.given import ExamplesLike, LabelsLike

_LOG = logging.getLogger(__name__)
_DEFAULT_OPTIONS = PublishOptions()
_ASKED_ROWS = 2000
"""Rows that the model answers once, so that golden has every class that it finds among them."""


@dataclasses.dataclass(frozen=True)
class ExportedVersion:
    """A published version, and what was measured on the way.

    Attributes:
        path: `<base_path>/<version>`.
        version: Its number.
        manifest: As published.
        verification: The table: every copy against the model in this process.
        published: What publishing did beside.
    """

    path: Path
    version: int
    manifest: Manifest
    verification: Verification
    published: Published

    @property
    def report(self) -> Path:
        """The page that shows how good it is, and where it errs."""
        return self.path / layout.REPORT

    @property
    def table(self) -> list[tuple[str, ...]]:
        """A row for each copy, the headings first."""
        return [list_headings(self.verification), *list_rows(self.verification)]

    def __str__(self) -> str:
        """The table, what is to be said of it, and where the version is, for a terminal."""
        head, *rows = self.table
        text = format_table(head, rows, title=self.manifest.model_name)
        said = "".join(f"{one}\n" for one in self._list_remarks())
        return f"{text}{said}Published {self.path}"

    def _list_remarks(self) -> list[str]:
        notes = [f"{note}." for note in self.verification.notes]
        return notes + list_failures(self.verification)

    def __repr__(self) -> str:
        return f"ExportedVersion({self.manifest.model_name!r}, {self.version}, '{self.path}')"

    def _repr_html_(self) -> str:
        """The table, for a notebook; its colours are the page's own, light or dark."""
        head, *rows = self.table
        cell = "padding:.3em .8em;border-bottom:1px solid #8884;text-align:"
        cells = "".join(
            f'<th style="{cell}{"right" if at else "left"}">{html.escape(one)}</th>'
            for at, one in enumerate(head)
        )
        body = "".join(
            "<tr>"
            + "".join(
                f'<td style="{cell}{"right" if at else "left"}">{html.escape(one)}</td>'
                for at, one in enumerate(row)
            )
            + "</tr>"
            for row in rows
        )
        notes = "".join(f"<p>{html.escape(one)}</p>" for one in self._list_remarks())
        title = html.escape(f"{self.manifest.model_name} version {self.version}")
        place = html.escape(str(self.path))
        return (
            f"<p><b>{title}</b>, published as <code>{place}</code></p>"
            f"<table><thead><tr>{cells}</tr></thead>"
            f"<tbody>{body}</tbody></table>{notes}"
        )


def export(
    model: object,
    base_path: str | os.PathLike[str],
    *,
    examples: ExamplesLike,
    labels: LabelsLike = None,
    class_names: Sequence[str] = (),
    name: str = "",
    task: Task | Mapping[str, Task] | None = None,
    scale: tuple[float, float] | None = None,
    custom_objects: Mapping[str, object] | None = None,
    allow_lambda: bool = False,
    skip_unreadable: bool = False,
    variants: Sequence[str] = layout.DEFAULT_VARIANTS,
    require: Sequence[str] = (layout.FLOAT32,),
    options: PublishOptions = _DEFAULT_OPTIONS,
) -> ExportedVersion:
    """Publishes a trained model as a verified version, with its TFLite copies.

    Its weights are not touched: the SavedModel answers bit for bit as the model in this process
    does, or nothing is published.

    Args:
        model: A `tf_keras` or Keras 3 model; the path of a `.keras` or `.h5` file, of the folder
            of a SavedModel, or of a `.tflite` file; a `tf.Module` with signatures. Signatures of a
            SavedModel and a `tf.Module` are kept by name.
        base_path: The model's own folder, which holds its versions, as in TensorFlow Serving's
            `--model_base_path`; made when missing.
        examples: Rows as the model takes them, for golden examples, warmup and calibration: an
            array (rows, ...), a mapping of input name to array, a `tf.data.Dataset` (its first
            10,000 rows or 512 MB), a DataFrame of any library, the path of an .npz, .npy, .csv,
            .parquet or .jsonl file, or a folder of pictures, whose own folders are the classes.
            A few hundred say more than a few.
        labels: What the rows should be answered: an array, a mapping of output name to array, the
            name of a column of the examples, or a file. Numbers or names of classes, one-hot rows,
            rows of 0 and 1, masks (rows, height, width), values. Without them there is no
            accuracy; parity is measured all the same.
        class_names: In the order of the outputs.
        name: Model name; the name of `base_path`'s folder where left out.
        task: What the outputs mean, or each by name, where it cannot be told: `multiclass`,
            `binary`, `multilabel`, `regression` or `embedding`.
        scale: What the pixels 0 and 255 become before the model sees them, as (0, 1): then the
            version takes raw pixels and picture files too. uint8 examples without it reach the
            model as the numbers 0 to 255.
        custom_objects: Name to class or function, for a file whose Keras model has its own.
        allow_lambda: Load Lambda layers of a file, which are code.
        skip_unreadable: Leave out pictures of a folder that cannot be read.
        variants: TFLite variants to make; `web` is float32 as LiteRT.js runs it in a browser; there
            is `int8_float_io` too, int8 that takes and gives floats.
        require: Those without which nothing is published; another that does not convert, or that
            does not answer as the model does, is left out, and the version says why.
        options: Of publishing: how many versions stay, whether signatures may change.

    Returns:
        The published version.

    Raises:
        ConfigError: The model or an option is not usable.
        DatasetError: The examples or labels do not fit the model.
        VerificationError: A required copy cannot be made, or disagrees with the model in this
            process.
        SignatureChangedError: It would break the clients of the version before.
        ExportError: The disk is full.

    Example:
        >>> version = export(model, "models/fraud", examples=x, labels=y)  # doctest: +SKIP
        >>> version.path  # doctest: +SKIP
        PosixPath('models/fraud/1')
    """
    base = Path(base_path)
    model_name = name or base.absolute().name
    if not MODEL_NAME.fullmatch(model_name):
        raise ConfigError(
            f"the model name {model_name!r} cannot name a directory; give name= with letters, "
            "digits, '_', '.' or '-'"
        )
    check_publishing(base, options)
    config = _make_config(variants, require, options)
    check_paths(examples, labels)
    run_dir = Path(tempfile.mkdtemp(prefix=f"plumbline-{model_name}-"))
    kept = False
    try:
        with (
            Steps(_LOG.info) as step,
            explain_os_errors(run_dir),
            borrow_processes(run_dir) as processes,
        ):
            step("load")
            loaded = _load(model, custom_objects, allow_lambda=allow_lambda)
            given = read_given(
                examples,
                labels,
                class_names=class_names,
                input_shape=find_input_shape(loaded),
                skip_unreadable=skip_unreadable,
            )
            exportable, drawn = _fit(loaded, _state_tasks(given, task), scale, config)
            _check_tasks(task, exportable)
            candidate = make_candidate(
                exportable,
                drawn,
                config,
                Origin(model_name, {"export": msgspec.to_builtins(config)}),
                run_dir=run_dir,
                processes=processes,
                step=step,
            )
            if not candidate.verification.passed:
                kept = True
                raise VerificationError(_describe_failures(candidate.verification, run_dir))
            step("publish")
            published = publish_version(candidate.path, base, options)
    finally:
        if not kept:
            shutil.rmtree(run_dir, ignore_errors=True)
    return ExportedVersion(
        path=published.path,
        version=published.version,
        manifest=read_manifest(published.path),
        verification=candidate.verification,
        published=published,
    )


def _make_config(
    variants: Sequence[str], require: Sequence[str], options: PublishOptions
) -> ExportConfig:
    required = [name for name in require if name in variants or require != (layout.FLOAT32,)]
    given = {"variants": list(variants), "require": required, "keep": options.keep}
    try:
        return msgspec.convert(given, ExportConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"variants {', '.join(variants) or 'none'}, require {', '.join(require)}: {error}; "
            f"there are {', '.join(layout.VARIANTS)}"
        ) from error


def _load(
    model: object, custom_objects: Mapping[str, object] | None, *, allow_lambda: bool
) -> object:
    if not isinstance(model, str | os.PathLike):
        return model
    path = Path(model)
    if path.suffix == ".keras" and path.is_dir():
        raise ConfigError(f"{path} is a folder, an unpacked .keras file; give the file itself")
    if tell_file_kind(path) != "keras":
        return path
    return load_keras(path, custom_objects=custom_objects, allow_lambda=allow_lambda)


def _fit(
    loaded: object,
    given: GivenExamples,
    scale: tuple[float, float] | None,
    config: ExportConfig,
) -> tuple[Exportable, ExportExamples]:
    """The model, and the rows that it is verified with: of every class that it answers."""
    given, pixels = _find_pixels(given, scale)
    drawn = draw_given(given, num_golden=config.golden_num_examples, pixels=pixels)
    exportable = make_exportable(loaded, drawn)
    answers = answer_rows(exportable, drawn, _ASKED_ROWS)
    given = dataclasses.replace(
        given,
        examples=Examples(given.examples.inputs, fit_targets(exportable, given.examples, answers)),
    )
    classes = decide_classes(exportable, answers)
    fitted = draw_given(
        given, num_golden=config.golden_num_examples, pixels=pixels, classes=classes
    )
    warn_of_doubts(exportable, fitted, answers)
    return exportable, fitted


def _find_pixels(
    given: GivenExamples, scale: tuple[float, float] | None
) -> tuple[GivenExamples, PixelScale | None]:
    """Pictures as raw pixels where their scale is known, else as they were given."""
    pixels = PixelScale(*scale) if scale is not None else None
    inputs = given.examples.inputs
    found = to_pixels(next(iter(inputs.values())), pixels) if len(inputs) == 1 else None
    if found is None:
        if scale is not None:
            held = ", ".join(f"{one.dtype} {one.shape}" for one in inputs.values())
            raise ConfigError(
                "scale is for pictures in one input, (rows, height, width, 1 or 3 channels); the "
                f"examples are {held}"
            )
        return given, None
    examples = Examples({next(iter(inputs)): found[0]}, given.examples.targets)
    return dataclasses.replace(given, examples=examples), found[1]


def _check_tasks(task: Task | Mapping[str, Task] | None, exportable: Exportable) -> None:
    """Refuses a task that there is not, or of an output that there is not."""
    tasks = dict(task) if isinstance(task, Mapping) else {"": task}
    outputs = exportable.main_signature.outputs
    for name, one in tasks.items():
        if one is not None and one not in get_args(Task):
            raise ConfigError(f"task {one!r} is none of {', '.join(get_args(Task))}")
        if name and name not in outputs:
            raise ConfigError(
                f"task names the output {name!r}; the model's outputs are {', '.join(outputs)}"
            )


def _state_tasks(given: GivenExamples, task: Task | Mapping[str, Task] | None) -> GivenExamples:
    """What was given, with the tasks that somebody stated; "" stands for the only output."""
    if task is None:
        return given
    tasks: dict[str, Task] = {"": task} if isinstance(task, str) else dict(task)
    if isinstance(task, str) and len(given.targets) == 1:
        tasks = dict.fromkeys(given.targets, task)
    stated = {
        name: Head(
            task=one, class_names=given.targets[name].class_names if name in given.targets else ()
        )
        for name, one in tasks.items()
    }
    return dataclasses.replace(given, targets={**given.targets, **stated})


def _describe_failures(verification: Verification, run_dir: Path) -> str:
    failed = [
        f"{copy}: {'; '.join(problems)}"
        for copy, problems in verification.failures.items()
        if copy not in verification.left_out
    ]
    requirement = describe_requirement(verification)
    return (
        f"not published: {' | '.join(failed)}. "
        + (f"{requirement}. " if requirement else "")
        + f"The candidate and its report stay in {run_dir}"
    )
