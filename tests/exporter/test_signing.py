"""publish --sign, sign, verify --key; what goes to remote base paths is in test_remote.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("model_signing")

from contract import layout
from contract.errors import ConfigError
from contract.manifest import read_manifest
from contract.signing import sign_version, verify_version
from exporter.cli import main
from exporter.publishing.publish import (
    PublishOptions,
    check_publishing,
    publish_version,
    sign_published,
)
from exporter.verification.recheck import recheck_version
from tests.exporter.candidates import make_candidate
from tests.exporter.file_limit import small_disk
from tests.exporter.remote_versions import write_version
from tests.signing_keys import Keys, make_keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    return make_candidate(tmp_path / "candidate")


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return write_version(tmp_path / "published" / "mlp" / "3")


def test_a_version_is_signed_before_anybody_sees_it(
    candidate: Path, tmp_path: Path, keys: Keys
) -> None:
    base = tmp_path / "mlp"
    published = publish_version(candidate, base, PublishOptions(signing_key=keys.private))
    verify_version(published.path, keys.public, version=1, model_names=["mlp"])
    assert {path.name for path in base.iterdir()} == {"1", layout.LOCK}
    assert published.signed_with == keys.private


def test_nothing_writes_into_a_version_that_is_signed(
    candidate: Path, tmp_path: Path, keys: Keys
) -> None:
    base = tmp_path / "mlp"
    options = PublishOptions(signing_key=keys.private, keep=2)
    first = publish_version(candidate, base, options).path
    for arguments in (["verify", "--skip_tensorflow"], ["inspect"], ["report"]):
        main([*arguments, str(first)])
    publish_version(candidate, base, options)
    verify_version(first, keys.public)


def test_a_key_that_cannot_sign_is_found_out_before_anything_is_done(
    candidate: Path, tmp_path: Path, keys: Keys
) -> None:
    options = PublishOptions(signing_key=keys.public)
    with pytest.raises(ConfigError, match="is a public key"):
        check_publishing(tmp_path / "mlp", options)
    with pytest.raises(ConfigError, match="is a public key"):
        publish_version(candidate, tmp_path / "mlp", options)
    assert not (tmp_path / "mlp").exists()


def test_the_copy_of_a_signed_version_is_another_version_and_says_that_it_is_not_signed(
    candidate: Path, tmp_path: Path, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "mlp"
    first = publish_version(candidate, base, PublishOptions(signing_key=keys.private)).path
    second = publish_version(first, base, PublishOptions()).path
    assert "sign the new one too" in caplog.text
    assert not (second / layout.SIGNATURE).exists()


def test_the_commands_sign_and_verify(
    candidate: Path, tmp_path: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "mlp"
    assert main(["publish", str(candidate), "--base_path", str(base)]) == 0
    verify = ["verify", str(base / "1"), "--skip_tensorflow", "--key", str(keys.public), "--json"]
    assert main(verify) == 1
    capsys.readouterr()
    assert main(["sign", str(base), "--key", str(keys.private)]) == 0
    assert "3 files of mlp version 1" in capsys.readouterr().out
    main(verify)
    assert f"{keys.public} vouches for 3 files of mlp version 1" in capsys.readouterr().out
    assert main(["sign", str(base), "--key", str(keys.public)]) == 2


def test_verify_reads_nothing_of_a_version_that_is_not_signed(
    candidate: Path, tmp_path: Path, keys: Keys
) -> None:
    published = publish_version(candidate, tmp_path / "mlp", PublishOptions())
    (checked,) = recheck_version(published.path, key=keys.public).checks
    assert (checked.name, checked.result) == ("signature", "FAILED")


def test_verify_holds_the_number_of_the_folder_against_what_is_signed(
    version: Path, tmp_path: Path, keys: Keys
) -> None:
    sign_version(version, keys.private)
    moved = shutil.copytree(version, tmp_path / "4")
    (checked,) = recheck_version(moved, key=keys.public).checks
    assert "found as version 4" in checked.detail


def test_a_version_under_another_number_is_not_signed(version: Path, keys: Keys) -> None:
    moved = version.rename(version.with_name("4"))
    assert main(["sign", str(moved), "--key", str(keys.private)]) == 2
    assert not (moved / layout.SIGNATURE).exists()


def test_a_full_disk_leaves_a_version_as_it_was_and_one_sentence_says_so(
    tmp_path: Path, keys: Keys
) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        version = write_version(disk / "mlp" / "3")
        with pytest.raises(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(b"x" * 512)
        with pytest.raises(ConfigError, match=r"cannot be signed \(No space left"):
            sign_published(version, keys.private)
        assert not (version / layout.SIGNATURE).exists()
        assert [path.name for path in version.parent.iterdir()] == ["3"]


def test_what_is_signed_is_the_manifest_as_well(version: Path, keys: Keys) -> None:
    signed = sign_version(version, keys.private)
    assert verify_version(version, keys.public) == read_manifest(version) == signed
