"""The checks of a version directory's files: place, name, and whether all are there."""

from __future__ import annotations

from pathlib import Path

from clients.doctor.findings import FAILS, OK, VERSION_NUMBER, WARNING, WHOLE_VERSION, Finding
from contract import layout
from contract.errors import ManifestError
from contract.manifest import Manifest, check_files, read_manifest

EXPORT_AGAIN = "python -m exporter export --config configs/mlp.toml --base_path {base}"


def find_leaf(path: Path) -> tuple[Path | None, Finding]:
    """The version directory meant by `path`, and whether its place and name are right."""
    if not path.is_dir():
        return None, Finding(VERSION_NUMBER, FAILS, f"{path} is no directory", f"ls {path.parent}")
    if _is_saved_model(path):
        if layout.parse_version(path.name) is not None:
            return path, Finding(VERSION_NUMBER, OK, f"{path} is version {path.name}")
        return path, Finding(
            VERSION_NUMBER,
            FAILS,
            f"{path} holds a model itself: servers look for numbered folders below a base path, "
            "and ignore everything else",
            f"mv {path} {path}.tmp && mkdir {path} && mv {path}.tmp {path / '1'}",
        )
    versions = layout.find_versions(path)
    if versions:
        newest = versions[max(versions)]
        return newest, Finding(VERSION_NUMBER, OK, f"newest of {len(versions)}: {newest}")
    unnumbered = [child for child in sorted(path.iterdir()) if _is_saved_model(child)]
    if unnumbered:
        names = ", ".join(child.name for child in unnumbered)
        return None, Finding(
            VERSION_NUMBER,
            FAILS,
            f"{path} holds models in folders that are no numbers ({names}), which servers ignore",
            f"mv {unnumbered[0]} {path / '1'}",
        )
    return None, Finding(
        VERSION_NUMBER,
        FAILS,
        f"{path} holds no version: no numbered folder with a model in it",
        EXPORT_AGAIN.format(base=path),
    )


def _is_saved_model(path: Path) -> bool:
    return any((path / name).is_file() for name in (layout.SAVED_MODEL, "model.tflite"))


def check_whole(version_dir: Path) -> tuple[Manifest | None, Finding]:
    try:
        manifest = read_manifest(version_dir)
        check_files(version_dir, manifest)
    except ManifestError as error:
        if (version_dir / layout.MANIFEST).exists():
            return None, Finding(WHOLE_VERSION, FAILS, str(error), describe_copy(version_dir))
        return None, _check_files_alone(version_dir)
    text = f"all {len(manifest.files)} files are what the manifest says"
    if str(manifest.version) != version_dir.name.lstrip("0"):
        text = f"published as version {manifest.version}, but lies in {version_dir.name}"
        return manifest, Finding(WHOLE_VERSION, WARNING, text, "publish it instead of renaming it")
    return manifest, Finding(WHOLE_VERSION, OK, text)


def _check_files_alone(version_dir: Path) -> Finding:
    variables = version_dir / layout.VARIABLES
    is_saved_model = (version_dir / layout.SAVED_MODEL).is_file()
    shards = list(variables.glob("variables.data-*"))
    wanted = {int(path.name.rpartition("-of-")[2]) for path in shards if "-of-" in path.name}
    if is_saved_model and variables.is_dir():
        is_whole = (variables / "variables.index").is_file() and wanted == {len(shards)}
        if not is_whole:
            return Finding(
                WHOLE_VERSION,
                FAILS,
                f"{variables} is incomplete: a copy ended early, or is still going on",
                describe_copy(version_dir),
            )
    return Finding(
        WHOLE_VERSION,
        WARNING,
        "the files are there, but no manifest tells whether they are whole",
        EXPORT_AGAIN.format(base=version_dir.parent),
    )


def describe_copy(version_dir: Path) -> str:
    return (
        f"copy beside, then rename: cp -r SOURCE {version_dir.parent}/.copy && "
        f"mv {version_dir} {version_dir.parent}/.broken && "
        f"mv {version_dir.parent}/.copy {version_dir}"
    )
