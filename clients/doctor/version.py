"""The checks of a version directory: files, names, and whether it answers."""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from clients.doctor.findings import OK, WARNING, Check, Finding
from clients.files.fit import Adjustment, InputReader
from clients.files.predict import find_scaling
from clients.on_device import list_variants
from clients.parity import AGREES, ON_DEVICE, check_hop, make_device_hop
from contract import layout
from contract.errors import ConfigError, ManifestError, PlumblineError, UnimplementedError
from contract.golden import read_golden
from contract.lite.apart import describe_apart
from contract.lite.runtime import hide_delegate_notes
from contract.manifest import Manifest, check_files, from_entries, read_manifest
from contract.signature import Signature
from contract.wire.signatures import read_meta_graph, read_signatures

_GENERATED = re.compile(
    r"(args|conv2d|dense|flatten|functional|input|keras_tensor|output|sequential)(_\d+)+"
)
_GRPC_DEFAULT_BYTES = 4 * 2**20


def _advise_export(version_dir: Path) -> str:
    """The command that makes a version anew, by where this one came from."""
    base = version_dir.parent
    try:
        manifest = read_manifest(version_dir)
    except ManifestError:  # not ours: what lies there is the model
        model = version_dir
        if not (version_dir / layout.SAVED_MODEL).exists():
            model = version_dir / layout.TFLITE
        return f"python -m exporter export --model {model} --examples FILE --base_path {base}"
    made_of = "--config FILE" if "model" in manifest.config else "--model FILE --examples FILE"
    return f"python -m exporter export {made_of} --base_path {base}"


def check_version(path: Path, *, server_tensorflow: str = "") -> list[Finding]:
    """All that can be told without a server."""
    version_dir, finding = _find_leaf(path)
    if version_dir is None:
        return [finding]
    manifest, whole = _check_whole(version_dir)
    export_again = _advise_export(version_dir)
    findings = [finding, whole, _check_warmup(version_dir, export_again)]
    # What is not whole may end the process that opens it: then no more than what servers open.
    copies = list_variants(version_dir) if whole.verdict == OK else [layout.FLOAT32]
    findings.append(_check_golden(version_dir, copies or [layout.FLOAT32], export_again))
    findings.append(_check_tensorflow(version_dir, manifest, server_tensorflow, export_again))
    try:
        if manifest is not None:
            signatures = from_entries(manifest.signatures)
        elif (version_dir / layout.SAVED_MODEL).exists():
            signatures = read_signatures((version_dir / layout.SAVED_MODEL).read_bytes())
        else:
            signatures = describe_apart(version_dir / layout.TFLITE).signatures
    except UnimplementedError as error:
        return [*findings, Check.SIGNATURES.is_not_checked(str(error))]
    except (ManifestError, OSError) as error:
        return [*findings, Check.SIGNATURES.fails(str(error), _describe_copy(version_dir))]
    return [*findings, check_names(signatures), *_check_specs(signatures)]


def check_inputs(
    path: Path, inputs: Sequence[Path], adjustment: Adjustment, flags: Sequence[str] = ()
) -> Finding:
    """Whether files that somebody means to send look like what a version was made with.

    `flags` are those that `adjustment` was read from, for advice that repeats them.
    """
    if not inputs:
        return Check.INPUTS.is_not_checked("")
    try:
        manifest = read_manifest(layout.find_version_dir(path))
        if not manifest.inputs:
            return Check.INPUTS.is_not_checked("the version does not say what its inputs were like")
        signatures = from_entries(manifest.signatures)
        pixels = find_scaling(path, signatures)
        reader = InputReader(
            inputs,
            signatures,
            adjustment=dataclasses.replace(adjustment, pixels=pixels),
            known=manifest.inputs,
        )
    except PlumblineError as error:
        return Check.INPUTS.fails(str(error))
    listed = shlex.join(map(str, inputs))
    if reader.remarks:
        mends = " ".join(dict.fromkeys(one.flag for one in reader.remarks)).split()
        left_out = ["--invert"] if any(not one.flag for one in reader.remarks) else []
        kept = [flag for flag in flags if flag.partition("=")[0] not in [*mends, *left_out]]
        return Check.INPUTS.warns(
            "; ".join(one.text for one in reader.remarks),
            f"python -m clients predict {listed} {' '.join([*kept, *mends])}",
        )
    return Check.INPUTS.passes(f"{listed} look like what the version was made with")


def _find_leaf(path: Path) -> tuple[Path | None, Finding]:
    """The version directory meant by `path`, and whether its place and name are right."""
    if not path.is_dir():
        return None, Check.VERSION_NUMBER.fails(f"{path} is no directory", _find_meant(path))
    if layout.holds_model(path):
        if layout.parse_version(path.name) is not None:
            return path, Check.VERSION_NUMBER.passes(f"{path} is version {path.name}")
        return path, Check.VERSION_NUMBER.fails(
            f"{path} holds a model itself: servers look for numbered folders below a base path, "
            "and ignore everything else",
            f"mv {path} {path}.tmp && mkdir {path} && mv {path}.tmp {path / '1'}",
        )
    versions = layout.find_versions(path)
    if versions:
        newest = versions[max(versions)]
        return newest, Check.VERSION_NUMBER.passes(f"newest of {len(versions)}: {newest}")
    unnumbered = [child for child in sorted(path.iterdir()) if layout.holds_model(child)]
    if unnumbered:
        names = ", ".join(child.name for child in unnumbered)
        return None, Check.VERSION_NUMBER.fails(
            f"{path} holds models in folders that are no numbers ({names}), which servers ignore",
            f"mv {unnumbered[0]} {path / '1'}",
        )
    folders = [child for child in sorted(path.iterdir()) if child.is_dir()]
    bases = [child for child in folders if layout.find_versions(child)]
    if bases:
        names = ", ".join(child.name for child in bases)
        return None, Check.VERSION_NUMBER.fails(
            f"{path} holds no version itself, but base paths of models that do ({names}): servers "
            "take it as --models_base_path, and not as --model_base_path",
            f"python -m clients doctor {shlex.quote(str(bases[0]))}",
        )
    return None, Check.VERSION_NUMBER.fails(
        f"{path} holds no version: no numbered folder with a model in it",
        f"put your model there: cp -r SAVED_MODEL {path / '1'}; or, verified, python -m "
        f"exporter export --model FILE --examples FILE --base_path {path}",
    )


def _find_meant(path: Path) -> str:
    """What to give in place of a folder that is not there."""
    folder = path.parent
    if folder.is_dir():
        names = [child.name for child in folder.iterdir() if child.is_dir()]
        near = difflib.get_close_matches(path.name, names, n=1)
        if near:
            return f"python -m clients doctor {shlex.quote(str(folder / near[0]))}"
    return "give a version directory, a base path that holds some, or a server as HOST:PORT"


def _check_whole(version_dir: Path) -> tuple[Manifest | None, Finding]:
    try:
        manifest = read_manifest(version_dir)
        check_files(version_dir, manifest)
    except ManifestError as error:
        if (version_dir / layout.MANIFEST).exists():
            return None, Check.WHOLE_VERSION.fails(str(error), _describe_copy(version_dir))
        return None, _check_files_alone(version_dir)
    text = f"all {len(manifest.files)} files are what the manifest says"
    if str(manifest.version) != version_dir.name.lstrip("0"):
        text = f"published as version {manifest.version}, but lies in {version_dir.name}"
        return manifest, Check.WHOLE_VERSION.warns(text, "publish it instead of renaming it")
    return manifest, Check.WHOLE_VERSION.passes(text)


def _check_files_alone(version_dir: Path) -> Finding:
    variables = version_dir / layout.VARIABLES
    shards = list(variables.glob("variables.data-*"))
    wanted = {int(path.name.rpartition("-of-")[2]) for path in shards if "-of-" in path.name}
    is_whole = (variables / "variables.index").is_file() and wanted == {len(shards)}
    if (version_dir / layout.SAVED_MODEL).is_file() and variables.is_dir() and not is_whole:
        return Check.WHOLE_VERSION.fails(
            f"{variables} is incomplete: a copy ended early, or is still going on",
            _describe_copy(version_dir),
        )
    return Check.WHOLE_VERSION.warns(
        "the files are there, but no manifest tells whether they are whole",
        _advise_export(version_dir),
    )


def _describe_copy(version_dir: Path) -> str:
    return (
        f"copy beside, then rename: cp -r SOURCE {version_dir.parent}/.copy && "
        f"mv {version_dir} {version_dir.parent}/.broken && "
        f"mv {version_dir.parent}/.copy {version_dir}"
    )


def _check_warmup(version_dir: Path, export_again: str) -> Finding:
    if (version_dir / layout.WARMUP).is_file():
        return Check.WARMUP.passes(layout.WARMUP)
    return Check.WARMUP.warns(
        f"no {layout.WARMUP}: the first requests after a load will be slow",
        export_again,
    )


def _check_golden(version_dir: Path, copies: Sequence[str], export_again: str) -> Finding:
    try:
        golden = read_golden(version_dir / layout.GOLDEN)
        with hide_delegate_notes():
            hops = (make_device_hop(f"{ON_DEVICE}{copy}", version_dir) for copy in copies)
            reports = [check_hop(hop, golden) for hop in hops]
    except (UnimplementedError, ConfigError) as error:
        return Check.HEALTHY.is_not_checked(str(error))
    except PlumblineError as error:
        return Check.HEALTHY.warns(str(error), export_again)
    problems = [
        f"{report.hop.removeprefix(ON_DEVICE)}: {problem}"
        for report in reports
        if report.verdict != AGREES
        for problem in report.problems
    ]
    if not problems:
        count = sum(report.num_rows for report in reports)
        through = f"all {len(copies)} copies" if len(copies) > 1 else "model.tflite"
        return Check.HEALTHY.passes(f"{count:,} golden rows agree through {through}")
    return Check.HEALTHY.fails("; ".join(problems), f"python -m exporter verify {version_dir}")


def _check_tensorflow(
    version_dir: Path, manifest: Manifest | None, server_tensorflow: str, export_again: str
) -> Finding:
    written = _find_writer(version_dir, manifest)
    if not written:
        return Check.TENSORFLOW.is_not_checked("the version does not say what wrote it")
    serving = server_tensorflow or _find_installed_tensorflow()
    if not serving:
        text = f"written by TensorFlow {written}; a server of that or a later release reads it"
        return Check.TENSORFLOW.passes(text)
    ours, theirs = _parse_release(written), _parse_release(serving)
    if ours > theirs:
        return Check.TENSORFLOW.fails(
            f"written by TensorFlow {written}, to be served by the older {serving}: it may use "
            "operators that the server lacks (`Op type not registered`)",
            f"docker pull tensorflow/serving:{written}",
        )
    if ours[:1] != theirs[:1]:
        return Check.TENSORFLOW.warns(
            f"written by TensorFlow {written}, to be served by {serving}: promises end with "
            "the major version",
            export_again,
        )
    return Check.TENSORFLOW.passes(f"written by {written}, to be served by {serving}")


def _find_writer(version_dir: Path, manifest: Manifest | None) -> str:
    if manifest is not None and "tensorflow" in manifest.tool_versions:
        return manifest.tool_versions["tensorflow"]
    try:
        graph = read_meta_graph((version_dir / layout.SAVED_MODEL).read_bytes())
    except (OSError, ManifestError):
        return ""
    return str(graph.meta_info_def.tensorflow_version)


def _find_installed_tensorflow() -> str:
    try:
        return metadata.version("tensorflow")
    except metadata.PackageNotFoundError:
        return ""


def _parse_release(text: str) -> tuple[int, ...]:
    numbers = re.findall(r"\d+", text.split("-")[0])
    return tuple(int(number) for number in numbers[:2])


def check_names(signatures: Mapping[str, Signature]) -> Finding:
    """Whether signatures and tensors are called what people will ask for."""
    if "serving_default" not in signatures:
        return Check.SIGNATURES.fails(
            f"no `serving_default`, only {', '.join(signatures) or 'nothing'}: a request "
            "without a signature name fails",
            "name the signature in each request (--signature_name), or export with "
            "signatures={'serving_default': …}",
        )
    generated = sorted(
        f"{signature.name}.{name}"
        for signature in signatures.values()
        for name in (*signature.inputs, *signature.outputs)
        if _GENERATED.fullmatch(name)
    )
    if generated:
        return Check.SIGNATURES.warns(
            f"Keras made up the names {', '.join(generated)}; they change with every export",
            "export with explicit names: tf.saved_model.save(model, path, signatures={…})",
        )
    return Check.SIGNATURES.passes(", ".join(signatures))


def _check_specs(signatures: Mapping[str, Signature]) -> list[Finding]:
    """Whether batches of any size fit, and how many rows fit a message."""
    fixed = [
        f"{signature.name}.{name} {spec.describe()}"
        for signature in signatures.values()
        for name, spec in signature.inputs.items()
        if spec.shape and spec.shape[0] is not None  # a single value is meant to be one
    ]
    shapes = Check.SHAPES.passes(describe_inputs(signatures))
    if fixed:
        shapes = Check.SHAPES.warns(
            f"no free batch axis in {'; '.join(fixed)}: only this very shape can be sent",
            "export with shape (None, …)",
        )
    rows = [_count_rows(signature) for signature in signatures.values()]
    smallest = min((count for count in rows if count), default=0)
    limit = Finding(
        Check.MESSAGE_LIMIT,
        OK if smallest != 1 else WARNING,
        f"{smallest:,} rows fit into gRPC's default of 4 MiB" if smallest else "depends on strings",
        "" if smallest != 1 else "lift the limit on both sides: PredictionClient does",
    )
    return [shapes, limit]


def describe_inputs(signatures: Mapping[str, Signature]) -> str:
    """Every signature's inputs in one line."""
    return "; ".join(
        f"{signature.name}: "
        + ", ".join(f"{name} {spec.describe()}" for name, spec in signature.inputs.items())
        for signature in signatures.values()
    )


def _count_rows(signature: Signature) -> int:
    row_bytes = 0
    for spec in signature.inputs.values():
        if spec.dtype == "string" or spec.shape is None:
            return 0
        size = spec.numpy_dtype.itemsize
        for axis in spec.shape[1:]:
            size *= axis or 1
        row_bytes += size
    return max(_GRPC_DEFAULT_BYTES // row_bytes, 1) if row_bytes else 0
