"""`export(model, …)`: a verified version of a model that somebody has, from one call."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import html
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from contract import layout
from contract.errors import ConfigError, VerificationError
from contract.heads import Head, Task
from contract.manifest import Manifest, read_manifest
from exporter.artifacts.tflite import Conversion, ConversionJob, convert, prepare_converting
from exporter.candidate import make_candidate
from exporter.card import Origin
from exporter.config import MODEL_NAME, ExportConfig
from exporter.data.examples import Examples, ExportExamples
from exporter.data.given import GivenExamples, draw_given, read_given, to_pixels
from exporter.data.pixels import PixelScale
from exporter.flow import Steps
from exporter.models.load import load_keras, make_exportable, tell_file_kind
from exporter.processes import ChildProcess
from exporter.publishing.publish import (
    Published,
    PublishOptions,
    check_base_path,
    publish_version,
)
from exporter.publishing.staging import explain_os_errors
from exporter.verification.measurement import Measurement
from exporter.verification.reload import MeasurementJob, measure_copy, prepare_measuring
from exporter.verification.scale import warn_of_scale
from exporter.verification.verdict import (
    Verification,
    describe_requirement,
    list_failures,
    list_headings,
    list_rows,
)

if TYPE_CHECKING:
    from exporter.data.given import ExamplesLike, LabelsLike

_DEFAULT_OPTIONS = PublishOptions()


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
    def table(self) -> list[tuple[str, ...]]:
        """A row for each copy, the headings first."""
        return [list_headings(self.verification), *list_rows(self.verification)]

    def _repr_html_(self) -> str:
        """The table, for a notebook."""
        head, *rows = self.table
        cells = "".join(f"<th>{html.escape(one)}</th>" for one in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(one)}</td>" for one in row) + "</tr>"
            for row in rows
        )
        said = [f"{note}." for note in self.verification.notes] + list_failures(self.verification)
        notes = "".join(f"<p>{html.escape(one)}</p>" for one in said)
        title = html.escape(f"{self.manifest.model_name} version {self.version}")
        return (
            f"<p><b>{title}</b>, published as <code>{html.escape(str(self.path))}</code></p>"
            f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>{notes}"
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
    variants: Sequence[str] = layout.VARIANTS,
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
            array (rows, ...), a mapping of input name to array, a `tf.data.Dataset`, a DataFrame,
            or the path of an .npz, .npy, .csv or .parquet file, or of a folder of pictures, or of
            such a folder for each class. A few hundred say more than a few.
        labels: What the rows should be answered: an array, a mapping of output name to array, or
            the name of a column of the examples; of pictures in a folder for each class, those.
            Without them there is no accuracy; parity is
            measured all the same.
        class_names: In the order of the outputs.
        name: Model name; the name of `base_path`'s folder where left out.
        task: What the outputs mean, or each by name, where it cannot be told: `multiclass`,
            `binary`, `multilabel`, `regression` or `embedding`.
        scale: What the pixels 0 and 255 become before the model sees them, as (0, 1): then the
            version takes raw pixels and picture files too. uint8 examples without it reach the
            model as the numbers 0 to 255.
        custom_objects: Name to class or function, for a file whose Keras model has its own.
        allow_lambda: Load Lambda layers of a file, which are code.
        variants: TFLite variants to make.
        options: Of publishing: how many versions stay, whether signatures may change.

    Returns:
        The published version.

    Raises:
        ConfigError: The model or an option is not usable.
        DatasetError: The examples or labels do not fit the model.
        VerificationError: A copy disagrees with the model in this process.
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
    check_base_path(base)
    try:
        config = msgspec.convert({"variants": list(variants), "keep": options.keep}, ExportConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"variants {', '.join(variants)}: {error}; there are {', '.join(layout.VARIANTS)}"
        ) from error
    run_dir = Path(tempfile.mkdtemp(prefix=f"plumbline-{model_name}-"))
    with Steps() as step, explain_os_errors(run_dir), _borrow_processes() as processes:
        conversion, verification = processes
        step("load")
        loaded = _load(model, custom_objects, allow_lambda=allow_lambda)
        shape = _find_picture_shape(loaded)
        read = read_given(examples, labels, class_names=class_names, picture_shape=shape)
        given = _state_tasks(read, task)
        drawn = _draw(given, scale, config.golden_num_examples)
        exportable = make_exportable(loaded, drawn)
        warn_of_scale(exportable, drawn)
        candidate = make_candidate(
            exportable,
            drawn,
            config,
            Origin(model_name, {"export": msgspec.to_builtins(config)}),
            run_dir=run_dir,
            conversion=conversion,
            verification=verification,
            step=step,
        )
        if not candidate.verification.passed:
            raise VerificationError(_describe_failures(candidate.verification, run_dir))
        step("publish")
        published = publish_version(candidate.path, base, options)
    shutil.rmtree(run_dir, ignore_errors=True)
    return ExportedVersion(
        path=published.path,
        version=published.version,
        manifest=read_manifest(published.path),
        verification=candidate.verification,
        published=published,
    )


def _load(
    model: object, custom_objects: Mapping[str, object] | None, *, allow_lambda: bool
) -> object:
    if not isinstance(model, str | os.PathLike):
        return model
    path = Path(model)
    if tell_file_kind(path) != "keras":
        return path
    return load_keras(path, custom_objects=custom_objects, allow_lambda=allow_lambda)


def _find_picture_shape(model: object) -> tuple[int, ...]:
    """(height, width, channels) of a Keras model's only input; () where it is none, or open."""
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] not in (1, 3):
        return ()
    return () if None in shape[1:] else tuple(int(size) for size in shape[1:])


def _draw(
    given: GivenExamples, scale: tuple[float, float] | None, num_golden: int
) -> ExportExamples:
    """The rows that verify; pictures as raw pixels where their scale is known."""
    pixels = PixelScale(*scale) if scale is not None else None
    if len(given.examples.inputs) != 1:
        return draw_given(given, num_golden=num_golden)
    ((name, rows),) = given.examples.inputs.items()
    found = to_pixels(rows, pixels)
    if found is None:
        if scale is not None:
            raise ConfigError(
                f"scale is for pictures, (rows, height, width, 1 or 3 channels); the examples are "
                f"{rows.dtype} {rows.shape}"
            )
        return draw_given(given, num_golden=num_golden)
    picture = dataclasses.replace(
        given, examples=Examples({name: found[0]}, given.examples.targets)
    )
    return draw_given(picture, num_golden=num_golden, pixels=found[1])


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


_Processes: TypeAlias = tuple[
    ChildProcess[ConversionJob, Conversion], ChildProcess[MeasurementJob, Measurement]
]

_idle: list[_Processes] = []
"""Processes that have imported TensorFlow and wait for the next export of this one."""


@contextlib.contextmanager
def _borrow_processes() -> Iterator[_Processes]:
    """The two processes of an export: those of the one before, or new ones.

    They start here, so that their imports run while the model is loaded. Those of an export that
    failed are not used again: an answer may be on its way.
    """
    if _idle:
        pair = _idle.pop()
    else:
        logs = Path(tempfile.mkdtemp(prefix="plumbline-logs-"))
        atexit.register(shutil.rmtree, logs, ignore_errors=True)
        pair = (
            ChildProcess(convert, prepare_converting, log=logs / "conversion.log"),
            ChildProcess(measure_copy, prepare_measuring, log=logs / "verification.log"),
        )
        for process in pair:
            atexit.register(process.close)
    try:
        yield pair
    except BaseException:
        for process in pair:
            process.close()
        raise
    _idle.append(pair)
