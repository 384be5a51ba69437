"""What the page is told of a version before anybody draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

import msgspec
import numpy as np

from clients.core.rest_dialect import write_array
from clients.demo.ink import Ink, measure_ink
from clients.on_device import OnDevicePredictor, explain_missing
from contract import layout
from contract.agreement import guess_head
from contract.errors import ConfigError, ManifestError, PlumblineError
from contract.golden import Golden, GoldenExamples, read_golden
from contract.heads import Head
from contract.manifest import Manifest, from_entries, read_manifest
from contract.parity import find_tolerances
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import STRING, UINT8, Batch, Signature, TensorSpec

_MAX_EXAMPLES = 64
_MAX_VALUES = 1_000_000
"""Numbers in all examples together: the page fetches them as JSON, and shows one at a time."""


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output of the signature, of one row.

    Attributes:
        name: As in requests.
        dtype: numpy's name of the dtype, `bfloat16`, or `string`.
        shape: Axis sizes without the batch, null for one that varies; null for unknown rank.
        has_batch: In requests, axis 0 is the batch.
        head: Of an output, what it means; null where nobody knows.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    has_batch: bool
    head: Head | None = None


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """That the only input is a picture of raw pixels, (height, width[, channels]).

    Attributes:
        height: In pixels.
        width: Likewise.
        channels: 1 or 3.
        has_channel_axis: (height, width, channels), where there could be none.
        ink: Where pictures are drawn, how drawings of this version look; else null.
    """

    height: int
    width: int
    channels: int
    has_channel_axis: bool
    ink: Ink | None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything but the examples.

    Attributes:
        model_name: Of the version.
        version: Its number; null for a folder that is named otherwise.
        trained_on: Name of the data, "" where nobody knows.
        metrics: Of the manifest.
        signature_name: What all engines are asked.
        inputs: In the order of the signature.
        outputs: Likewise.
        picture: Null where a form is filled in instead.
        columns: What the values of a vector are, where they have names.
        max_difference: That two engines may differ by, for outputs up to 1; times an output's
            largest magnitude where it is more.
        server_url: What is posted to, and whose `model_version_status` lies before the colon.
        server_shown: Its address as it was given.
        browser_obstacle: Why there is nothing to run in the browser, a sentence; "" where there is.
        python_obstacle: Likewise, in Python.
    """

    model_name: str
    version: int | None
    trained_on: str
    metrics: Mapping[str, float]
    signature_name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    picture: Picture | None
    columns: tuple[str, ...]
    max_difference: float
    server_url: str
    server_shown: str
    browser_obstacle: str
    python_obstacle: str


class Example(msgspec.Struct, frozen=True):
    """A golden row.

    Attributes:
        inputs: Input name to values in nested lists, strings as `{"b64": ...}`.
        outputs: What the model answered when it was exported, likewise.
    """

    inputs: dict[str, object]
    outputs: dict[str, object]


class Version:
    """A version directory as the page sees it.

    Args:
        directory: With a manifest, golden examples and TFLite variants, or without any of them.
        server: Where REST is, `http://host:port`.
        model_name: What it is called there.

    Attributes:
        facts: For the page.
        examples: Golden rows of the signature, the first of each class first.
        predictor: The engine in Python; None where `facts.python_obstacle` says why.
        web_model: The file for the browser; None likewise.

    Raises:
        ConfigError: Nobody knows its signatures.
    """

    def __init__(self, directory: Path, *, server: str, model_name: str) -> None:
        manifest = _read_manifest(directory)
        self.predictor, python_obstacle = _open_predictor(directory)
        signature = _choose_signature(directory, manifest, self.predictor)
        golden = _find_golden(directory, signature.name)
        web_model = directory / layout.variant_path(layout.WEB)
        self.web_model = web_model if web_model.is_file() else None
        browser_obstacle = "" if self.web_model else explain_missing(directory, layout.WEB)
        if self.predictor is not None and signature.name not in self.predictor.signatures:
            python_obstacle = f"{self.predictor.path.name} has no signature {signature.name}"
            self.predictor.close()
            self.predictor = None
        if any(spec.dtype == STRING for spec in signature.inputs.values()):
            # No copy of it would take them, so that none is missing.
            browser_obstacle = python_obstacle = (
                f"{signature.name} takes strings, which TFLite leaves to the server"
            )
        self.examples = _list_examples(golden) if golden is not None else []
        version = layout.parse_version(directory.name)
        heads = _find_heads(manifest, golden)
        self.facts = Facts(
            model_name=model_name,
            version=version,
            trained_on=manifest.data.name if manifest is not None and manifest.data else "",
            metrics=manifest.metrics if manifest is not None else {},
            signature_name=signature.name,
            inputs=tuple(_describe(spec) for spec in signature.inputs.values()),
            outputs=tuple(
                _describe(spec, heads.get(name)) for name, spec in signature.outputs.items()
            ),
            picture=_find_picture(signature, golden),
            columns=manifest.data.columns if manifest is not None and manifest.data else (),
            max_difference=find_tolerances(manifest).of_server.atol,
            server_url=_make_url(server, model_name, version),
            server_shown=urlsplit(server).netloc,
            browser_obstacle=browser_obstacle,
            python_obstacle=python_obstacle,
        )


def _read_manifest(directory: Path) -> Manifest | None:
    try:
        return read_manifest(directory)
    except ManifestError:
        return None


def _open_predictor(directory: Path) -> tuple[OnDevicePredictor | None, str]:
    try:
        return OnDevicePredictor(directory), ""
    except PlumblineError as error:
        return None, error.message


def _choose_signature(
    directory: Path, manifest: Manifest | None, predictor: OnDevicePredictor | None
) -> Signature:
    """Raw pixels where the version takes them: then nobody but the model scales them."""
    signatures: Mapping[str, Signature] = from_entries(manifest.signatures) if manifest else {}
    if not signatures and predictor is not None:
        signatures = predictor.signatures
    if not signatures:
        raise ConfigError(
            f"{directory} has neither a manifest nor a TFLite file to read signatures from; make a "
            f"version of it: python -m exporter export --model {directory} --examples FILE"
        )
    for name in (UINT8, DEFAULT_SIGNATURE_NAME):
        if name in signatures:
            return signatures[name]
    return next(iter(signatures.values()))


def _find_golden(directory: Path, signature_name: str) -> GoldenExamples | None:
    try:
        golden: Golden = read_golden(directory / layout.GOLDEN)
    except ManifestError:
        return None
    return golden.signatures.get(signature_name)


def _find_heads(manifest: Manifest | None, golden: GoldenExamples | None) -> dict[str, Head]:
    """What outputs mean; in versions that do not say, it is guessed as parity does."""
    heads = dict(manifest.heads) if manifest is not None else {}
    for name, array in (golden.outputs if golden is not None else {}).items():
        guessed = guess_head(array)
        if name not in heads and guessed is not None:
            names = manifest.data.class_names if manifest is not None and manifest.data else ()
            fits = guessed.has_classes and len(names) == array.shape[-1]
            heads[name] = msgspec.structs.replace(guessed, class_names=names if fits else ())
    return heads


def _describe(spec: TensorSpec, head: Head | None = None) -> Tensor:
    shape = spec.shape
    has_batch = shape is None or shape[:1] == (None,)
    row = shape[1:] if shape is not None and has_batch else shape
    return Tensor(name=spec.name, dtype=spec.dtype, shape=row, has_batch=has_batch, head=head)


def _find_picture(signature: Signature, golden: GoldenExamples | None) -> Picture | None:
    if len(signature.inputs) != 1:
        return None
    spec = next(iter(signature.inputs.values()))
    sizes = spec.shape[1:] if spec.shape is not None else ()
    if spec.dtype != "uint8" or len(sizes) not in (2, 3):
        return None
    height, width, channels = (*sizes, 1)[:3]
    if not height or not width or channels not in (1, 3):
        return None
    ink = None
    if channels == 1 and golden is not None and golden.num_examples:
        pixels = golden.inputs[spec.name]
        ink = measure_ink(pixels.reshape(-1, height, width))
    return Picture(
        height=height, width=width, channels=channels, has_channel_axis=len(sizes) == 3, ink=ink
    )


def _list_examples(golden: GoldenExamples) -> list[Example]:
    if not golden.batch_sizes:
        rows = [Example(_write(golden.inputs), _write(golden.outputs))]
        return rows if _count(golden.inputs) <= _MAX_VALUES else []
    per_row = max(_count(golden.inputs) // max(golden.num_examples, 1), 1)
    count = min(golden.num_examples, _MAX_EXAMPLES, _MAX_VALUES // per_row)
    return [
        Example(
            _write({name: array[row] for name, array in golden.inputs.items()}),
            _write({name: array[row] for name, array in golden.outputs.items()}),
        )
        for row in _order_rows(golden)[:count]
    ]


def _order_rows(golden: GoldenExamples) -> list[int]:
    """The first row of each class first, so that few of them show as much as they can."""
    rows = list(range(golden.num_examples))
    scores = [array for array in golden.outputs.values() if guess_head(array) is not None]
    if len(scores) != 1 or scores[0].ndim != 2:
        return rows
    _, firsts = np.unique(scores[0].argmax(axis=1), return_index=True)
    first = set(firsts.tolist())
    return sorted(rows, key=lambda row: row not in first)


def _write(batch: Batch) -> dict[str, object]:
    return {name: write_array(name, np.asarray(array)) for name, array in batch.items()}


def _count(batch: Batch) -> int:
    return sum(array.size for array in batch.values())


def _make_url(server: str, model_name: str, version: int | None) -> str:
    path = f"{server}/v1/models/{quote(model_name, safe='')}"
    # Another version may answer otherwise.
    return path if version is None else f"{path}/versions/{version}"
