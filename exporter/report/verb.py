"""`report`: where a version's report is, the report made anew, and two versions side by side."""

from __future__ import annotations

import tempfile
import webbrowser
from pathlib import Path

import msgspec

from contract import layout
from contract.console.extras import import_extra
from contract.console.terminal import remark
from contract.errors import ConfigError
from exporter.publishing.publish import CANDIDATE
from exporter.report.compare import Comparison, compare_versions


class MadeReport(msgspec.Struct, frozen=True, kw_only=True):
    """Where a report is.

    Attributes:
        version: The version directory it is of.
        report: The file.
        is_made_now: It was written now; else it is the version's own.
    """

    version: Path
    report: Path
    is_made_now: bool


class MadeComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two versions, and the page that shows them, where one was asked for."""

    comparison: Comparison
    report: Path | None


def make_report(path: Path, *, out: Path | None = None) -> MadeReport:
    """The report of a version: its own, or made anew.

    Args:
        path: A version, a base path (its newest version), or the run directory of an export.
        out: Where to write it anew; a version from before there were reports has it made in a
            temporary folder without.

    Raises:
        ConfigError: There is no version, or `out` cannot be written.
        ManifestError: The version is damaged.
    """
    version_dir = find_version(path)
    own = version_dir / layout.REPORT
    if out is None and own.is_file():
        return MadeReport(version=version_dir, report=own, is_made_now=False)
    import_extra("jinja2", "a report")
    from exporter.report.facts import read_facts
    from exporter.report.page import render

    target = _check_out(out, version_dir)
    content = render(read_facts(version_dir))
    return MadeReport(version=version_dir, report=_write(target, content), is_made_now=True)


def make_comparison(
    path: Path,
    other: Path,
    *,
    out: Path | None = None,
    needs_page: bool = False,
    shadow: Path | None = None,
) -> MadeComparison:
    """Two versions side by side, on a page where `out` or `needs_page` asks for one.

    `shadow` is a file of rows that `promote --shadow_s` kept; they stand for golden examples.

    Raises:
        ConfigError: One is no version, they have no signature in common, or `out` cannot be
            written.
        ManifestError: A version is damaged.
    """
    folders = find_version(path), find_version(other)
    if out is not None:
        for folder in folders:
            _check_out(out, folder)
    if folders[0].resolve() == folders[1].resolve():
        raise ConfigError(
            f"{path} and {other} are the same version, {folders[0]}; give the folders of two "
            "versions"
        )
    comparison = compare_versions(*folders, shadow=shadow)
    if out is None and not needs_page:
        return MadeComparison(comparison=comparison, report=None)
    import_extra("jinja2", "a report")
    from exporter.report.page import render_template, tell_metric

    content = render_template("compare.html", found=comparison, tell=tell_metric)
    return MadeComparison(comparison=comparison, report=_write(_check_out(out), content))


def open_in_browser(report: Path) -> None:
    """Shows a report to whoever sits there."""
    if not webbrowser.open(report.absolute().as_uri()):
        remark(f"no browser was found; open {report} in one")


def find_version(path: Path) -> Path:
    """The version that is meant: a folder itself, its newest version, or a run's candidate."""
    if not path.exists():
        raise ConfigError(f"{path} is not there; give a version, or a base path that holds some")
    if path.is_file() or (path / layout.MANIFEST).exists() or layout.holds_model(path):
        return path  # what is none of ours is refused where its manifest is looked for
    if (path / CANDIDATE / layout.REPORT).is_file():
        return path / CANDIDATE
    versions = layout.find_versions(path)
    if not versions:
        raise ConfigError(
            f"{path} is neither a version nor a base path that holds one; make one with: "
            "python -m exporter export"
        )
    return versions[max(versions)]


def _check_out(out: Path | None, version_dir: Path | None = None) -> Path:
    if out is None:
        return Path(tempfile.mkdtemp(prefix="plumbline-report-")) / "report.html"
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give a file, such as {out / 'report.html'}")
    if version_dir is not None and version_dir.resolve() in out.resolve().parents:
        raise ConfigError(
            f"--out {out} lies in {version_dir}, and a published version never changes; give a "
            "file elsewhere"
        )
    return out


def _write(target: Path, content: bytes) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"--out {target} cannot be written: {error.strerror}") from error
    return target
