"""Packages that only some commands need: imported when asked for, missed in one sentence."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from contract.errors import UnimplementedError

_EXTRAS = {
    "cryptography": "signing",
    "httpx": "rest",
    "jinja2": "cli",
    "matplotlib": "cli",
    "model_signing": "signing",
    "PIL": "cli",
    "rich": "cli",
    "shtab": "cli",
    "fsspec": "remote",
    "s3fs": "remote",
    "aiohttp": "remote",
    "pyarrow": "tensorflow",
    "ray": "batch",
}
"""Package to the extra that brings it, for packages that are needed one by one."""

_WHOLE_EXTRAS = {
    "tensorflow": ("tensorflow", "tf_keras", "PIL"),
    "tracing": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
}
"""Extra to what must be there, for work that needs all of it."""

_NAMES = {
    "PIL": "Pillow",
    "ai_edge_litert": "ai-edge-litert",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
    "OpenSSL": "pyOpenSSL",
    "model_signing": "model-signing",
}


def import_extra(module: str, purpose: str) -> ModuleType:
    """A module of an optional dependency.

    Args:
        module: For example `PIL.Image`.
        purpose: What needs it, the beginning of the message: "reading images".

    Raises:
        UnimplementedError: Not installed; names the extra to install.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise make_missing_error(purpose, [package], _EXTRAS[package]) from error


def require_extra(extra: str, purpose: str) -> None:
    """Raises UnimplementedError where something of a whole extra is missing; imports none of it."""
    missing = [name for name in _WHOLE_EXTRAS[extra] if not is_installed(name)]
    if missing:
        raise make_missing_error(purpose, missing, extra)


def require_packages(needs: Mapping[str, str], purpose: str, *, likely: Iterable[str] = ()) -> None:
    """Refuses what packages are missing for, and names at once all that brings them.

    Args:
        needs: Package to the extra that brings it; "" for one that no extra brings.
        purpose: What needs them, the beginning of the message: "scoring".
        likely: Extras that come with the same command where anything is missing, since they would
            be asked for next.

    Raises:
        UnimplementedError: Names the missing packages, and one command that installs them.
    """
    missing = [package for package in needs if not is_installed(package)]
    if missing:
        extras = {needs[package] for package in missing if needs[package]} | set(likely)
        beside = [package for package in missing if not needs[package]]
        raise UnimplementedError(_describe_missing(purpose, missing, sorted(extras), beside))


def is_installed(package: str) -> bool:
    """Whether a package or module can be imported; of a module, its package is."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def make_missing_error(purpose: str, packages: list[str], extra: str) -> UnimplementedError:
    """The one sentence: what needs which packages, and how to install them."""
    return UnimplementedError(_describe_missing(purpose, packages, [extra]))


def _describe_missing(
    purpose: str, packages: Sequence[str], extras: Sequence[str], beside: Sequence[str] = ()
) -> str:
    names = ", ".join(_NAMES.get(package, package) for package in packages)
    are = "are" if len(packages) > 1 else "is"
    advice = advise_extra(",".join(extras), beside=beside)
    return f"{purpose} needs {names}, which {are} not installed: {advice}"


def find_extra(package: str) -> str:
    """The extra that brings a package which is needed by itself; "" where none does."""
    return _EXTRAS.get(package, "")


def advise_package(package: str) -> str:
    """The command that brings a package: by the extra that has it, or by its own name."""
    extra = find_extra(package)
    return advise_extra(extra, beside=() if extra else (package,))


def advise_extra(extra: str, root: Path | None = None, *, beside: Sequence[str] = ()) -> str:
    """The command that brings an extra, from where this Plumbline itself came.

    Args:
        extra: For example `tracing`, or several with commas between; "" for none.
        root: Where our packages lie; default: where they do.
        beside: Packages that no extra brings.
    """
    more = "".join(f" {package}" for package in beside)
    if not extra:
        return f"pip install{more}"
    root = root or Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():
        folder = "." if root == Path.cwd() else root
        setup = "" if more else f" (`make setup` in {root} brings everything)"
        return f"pip install '{folder}[{extra}]'{more}{setup}"
    origin = _find_origin()
    return f"pip install 'plumbline-tf[{extra}]{f' @ {origin}' if origin else ''}'{more}"


def _find_origin() -> str:
    """The wheel that was installed, "" for one of an index: PEP 610's direct_url.json tells."""
    import importlib.metadata  # not for those who miss nothing
    import json

    try:
        text = importlib.metadata.distribution("plumbline-tf").read_text("direct_url.json")
        url = str(json.loads(text or "{}").get("url", ""))
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError, AttributeError):
        return ""
    is_gone = url.startswith("file://") and not Path(url.removeprefix("file://")).exists()
    return "" if is_gone else url
