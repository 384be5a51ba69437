"""A version is what the holder of a key has signed, or the difference has a name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("model_signing")

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from contract import layout
from contract.errors import ConfigError, ManifestError, UntrustedVersionError
from contract.manifest import read_manifest
from contract.signing import (
    MAKE_KEY,
    MAKE_PUBLIC_KEY,
    check_private_key,
    check_public_key,
    check_state,
    sign_version,
    take_state,
    verify_version,
)
from tests.signing_keys import Keys, make_keys, write_keys
from tests.versions import seal

FILES = {
    layout.SAVED_MODEL: b"graph",
    "variables/variables.index": b"index",
    "variables/variables.data-00000-of-00001": b"weights",
    layout.TFLITE: b"tflite",
    layout.LABELS: b"zero\none\n",
    layout.WARMUP: b"records",
    layout.GOLDEN: b"golden",
    layout.variant_path("int8"): b"int8",
    layout.REPORT: b"<html>",
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return write_version(tmp_path / "mlp" / "3")


@pytest.fixture
def signed(version: Path, keys: Keys) -> Path:
    sign_version(version, keys.private)
    return version


def write_version(version_dir: Path) -> Path:
    for name, content in FILES.items():
        path = version_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    seal(version_dir)
    return version_dir


def refuse(version_dir: Path, keys: Keys) -> str:
    with pytest.raises(UntrustedVersionError) as refused:
        verify_version(version_dir, keys.public)
    return refused.value.message


def test_a_signed_version_is_verified_wherever_it_lies(
    signed: Path, keys: Keys, tmp_path: Path
) -> None:
    copy = shutil.copytree(signed, tmp_path / "elsewhere" / "mlp" / "3")
    found = verify_version(copy, keys.public, version=3, model_names=["mlp"])
    assert found == read_manifest(signed)


@pytest.mark.parametrize("name", [*FILES, layout.MANIFEST])
def test_a_file_that_was_changed_after_signing_is_named(
    signed: Path, keys: Keys, name: str
) -> None:
    (signed / name).write_bytes((signed / name).read_bytes() + b" ")
    assert f"{name} was changed" in refuse(signed, keys)


def test_files_that_were_changed_and_sealed_again_are_named(signed: Path, keys: Keys) -> None:
    (signed / layout.TFLITE).write_bytes(b"other")
    seal(signed)
    message = refuse(signed, keys)
    assert f"{layout.MANIFEST} was changed" in message
    assert f"{layout.TFLITE} was changed" in message


@pytest.mark.parametrize("name", [*FILES, layout.MANIFEST])
def test_a_file_that_was_removed_after_signing_is_named(
    signed: Path, keys: Keys, name: str
) -> None:
    (signed / name).unlink()
    assert f"{name} was removed" in refuse(signed, keys)


@pytest.mark.parametrize(
    "name",
    [
        *("batching_params.pbtxt", "assets.extra/new", "variables/.hidden", ".gitignore"),
        *(".gitattributes", ".git/config", ".github/x", "assets/.model.sig"),
    ],
)
def test_a_file_that_was_added_after_signing_is_named(signed: Path, keys: Keys, name: str) -> None:
    (signed / name).parent.mkdir(exist_ok=True)
    (signed / name).write_bytes(b"")
    assert f"{name} was added" in refuse(signed, keys)


@pytest.mark.parametrize("name", [layout.TFLITE, "variables", layout.SIGNATURE])
def test_a_link_in_place_of_what_was_signed_is_refused_though_it_leads_to_the_same(
    signed: Path, keys: Keys, tmp_path: Path, name: str
) -> None:
    moved = tmp_path / "moved"
    (signed / name).rename(moved)
    (signed / name).symlink_to(moved)
    assert str(signed / name) in refuse(signed, keys)


def test_a_version_may_itself_be_a_link(signed: Path, keys: Keys, tmp_path: Path) -> None:
    link = tmp_path / "3"
    link.symlink_to(signed)
    assert verify_version(link, keys.public, version=3).version == 3


def test_a_pipe_is_refused_and_not_waited_for(signed: Path, keys: Keys) -> None:
    os.mkfifo(signed / "pipe")
    assert "neither file nor folder" in refuse(signed, keys)
    (signed / "pipe").unlink()
    (signed / layout.SIGNATURE).unlink()
    os.mkfifo(signed / layout.SIGNATURE)
    assert "no plain file" in refuse(signed, keys)


def test_a_file_that_its_signer_left_out_is_refused_all_the_same(signed: Path, keys: Keys) -> None:
    from model_signing import hashing, signing

    files = hashing.Config().set_ignored_paths(
        paths=[layout.SIGNATURE, layout.TFLITE], ignore_git_paths=False
    )
    config = signing.Config().use_elliptic_key_signer(private_key=keys.private)
    config.set_hashing_config(files).sign(signed, signed / layout.SIGNATURE)
    assert f"{layout.TFLITE} was added" in refuse(signed, keys)


def test_a_version_without_a_signature_says_how_it_gets_one(version: Path, keys: Keys) -> None:
    assert f"python -m exporter sign {version} --key FILE" in refuse(version, keys)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"{}",
        lambda _: b"[]",
        lambda _: b"null",
        lambda _: b"\xff\xfe",
        lambda _: b"[" * 100_000,
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b'"payload"', b'"paylord"'),
        lambda content: content.replace(b'"signatures":[', b'"signatures":[],"more":['),
        lambda content: content.replace(b"bundle.v0.3", b"bundle.v0.9"),
        lambda content: content.replace(b'"sig":"', b'"sig":"AA'),
        lambda content: content.replace(b'"payload":"', b'"payload":"AA'),
    ],
)
def test_a_damaged_signature_is_one_sentence(
    signed: Path, keys: Keys, damage: Callable[[bytes], bytes]
) -> None:
    path = signed / layout.SIGNATURE
    content = damage(path.read_bytes())
    assert content != path.read_bytes()
    path.write_bytes(content)
    message = refuse(signed, keys)
    assert str(path) in message
    assert "\n" not in message


def test_a_signature_of_another_key_is_refused(signed: Path, keys: Keys, tmp_path: Path) -> None:
    other = make_keys(tmp_path, "other")
    assert "another key made it" in refuse(signed, other)
    # The hint at the key is not signed: an attacker writes what suits them.
    hints = [read_hint(signed, one) for one in (keys, other)]
    path = signed / layout.SIGNATURE
    path.write_bytes(path.read_bytes().replace(hints[0], hints[1]))
    assert "another key made it" in refuse(signed, other)


def read_hint(version_dir: Path, keys: Keys) -> bytes:
    import hashlib

    return hashlib.sha256(keys.public.read_bytes()).hexdigest().encode()


def test_the_place_of_a_version_is_held_against_what_is_signed(
    signed: Path, keys: Keys, tmp_path: Path
) -> None:
    moved = shutil.copytree(signed, tmp_path / "cnn" / "9")
    with pytest.raises(UntrustedVersionError, match=r"version 3 of mlp.*found as version 9"):
        verify_version(moved, keys.public, version=9)
    with pytest.raises(UntrustedVersionError, match=r"a version of mlp.*one of cnn or digits"):
        verify_version(moved, keys.public, model_names=["digits", "cnn"])


def test_signing_again_replaces_the_signature(signed: Path, tmp_path: Path) -> None:
    other = make_keys(tmp_path, "other")
    sign_version(signed, other.private)
    assert verify_version(signed, other.public).version == 3
    assert [path.name for path in signed.parent.iterdir()] == ["3"]


def test_a_damaged_version_is_not_signed(version: Path, keys: Keys) -> None:
    (version / layout.TFLITE).write_bytes(b"damaged")
    with pytest.raises(ManifestError, match=layout.TFLITE):
        sign_version(version, keys.private)
    assert not (version / layout.SIGNATURE).exists()


def test_a_version_with_a_link_is_not_signed(version: Path, keys: Keys) -> None:
    (version / "link").symlink_to(layout.TFLITE)
    seal(version)
    with pytest.raises(ConfigError, match="link is a symbolic link"):
        sign_version(version, keys.private)


def test_keys_of_the_documented_commands_sign_and_verify(version: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not on this machine: apt-get install openssl")
    for command in (MAKE_KEY, MAKE_PUBLIC_KEY):
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    sign_version(version, tmp_path / "signing.key")
    assert verify_version(version, tmp_path / "signing.pub").version == 3


def test_the_command_of_model_signing_verifies_our_signatures(signed: Path, keys: Keys) -> None:
    command = [
        *(sys.executable, "-m", "model_signing", "verify", "key", str(signed)),
        *("--signature", str(signed / layout.SIGNATURE), "--public_key", str(keys.public)),
        "--no-ignore-git-paths",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_key_that_cannot_sign_is_one_sentence(tmp_path: Path, keys: Keys) -> None:
    pem = Encoding.PEM
    key = rsa.generate_private_key(65537, 2048)
    made = {
        "rsa": key.private_bytes(pem, PrivateFormat.PKCS8, NoEncryption()),
        "ed25519": ed25519.Ed25519PrivateKey.generate().private_bytes(
            pem, PrivateFormat.PKCS8, NoEncryption()
        ),
        "secp256k1": ec.generate_private_key(ec.SECP256K1()).private_bytes(
            pem, PrivateFormat.PKCS8, NoEncryption()
        ),
        "text": b"no key\n",
        "empty": b"",
    }
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    locked = Keys(tmp_path / "locked", tmp_path / "locked.pub")
    write_keys(locked, ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"x"))
    pem = keys.private.read_text()
    (tmp_path / "cut").write_text(pem[: len(pem) // 2])
    words = {
        "cut": "is a private key that is damaged",
        "rsa": "RSAPrivateKey",
        "ed25519": "Ed25519PrivateKey",
        "secp256k1": "of the curve secp256k1",
        "text": "no private key",
        "empty": "no private key",
        "locked": "has a passphrase",
        "absent": "No such file",
    }
    for name, word in words.items():
        with pytest.raises(ConfigError, match=word) as refused:
            check_private_key(tmp_path / name)
        assert "PEM file" not in refused.value.message  # that is how the libraries begin
    with pytest.raises(ConfigError, match="is a public key"):
        check_private_key(keys.public)


def test_a_key_that_cannot_verify_is_one_sentence(tmp_path: Path, keys: Keys) -> None:
    key = rsa.generate_private_key(65537, 2048).public_key()
    path = tmp_path / "rsa"
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(ConfigError, match="RSAPublicKey"):
        check_public_key(path)
    with pytest.raises(ConfigError, match=r"is a private key.*openssl ec -in"):
        check_public_key(keys.private)


def test_whatever_is_done_to_a_version_its_state_is_another(signed: Path, tmp_path: Path) -> None:
    def restore_times(path: Path, change: Callable[[], object]) -> None:
        facts = path.stat()
        change()
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    weights = signed / "variables/variables.index"
    content = weights.read_bytes()
    for change in (
        lambda: restore_times(weights, lambda: weights.write_bytes(content[::-1])),
        lambda: (signed / "new").write_bytes(b""),
        lambda: (signed / "new").unlink(),
        lambda: weights.rename(signed / "away"),
        lambda: (signed / "away").rename(weights),
        lambda: (signed / "folder").mkdir(),
    ):
        before = take_state(signed)
        check_state(signed, before)
        change()
        with pytest.raises(UntrustedVersionError, match="changed after its signature"):
            check_state(signed, before)


def test_a_program_that_signs_nothing_does_not_import_what_signs(tmp_path: Path) -> None:
    code = (
        "import sys, exporter.cli, serving.server, serving.engines.loading\n"
        "print(sorted({'cryptography', 'model_signing', 'sigstore', 'OpenSSL'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
