"""Who made a version: a signature over all of its files, by a key that the reader trusts.

The format is OpenSSF's Model Signing: a Sigstore bundle around an in-toto statement that lists the
sha256 of every file. `model-signing` writes and reads it, so that its own command does as well. It
brings 800 modules, which cost 0.4 s and 60 MB: it is imported where a signature is made or checked,
and a server leaves the checking to processes that end. https://github.com/ossf/model-signing-spec

The statement does not say where the files lie. What does is the manifest, which is signed with
them: its model name and version are held against the place that a version was found in.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from contract import layout
from contract.console.extras import import_extra, make_missing_error
from contract.errors import Code, ConfigError, UntrustedVersionError
from contract.manifest import MAX_BYTES, Manifest, check_files, read_manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
    from model_signing import manifest as signed

MAKE_KEY = "openssl ecparam -genkey -name prime256v1 -noout -out signing.key"
"""How the private key is made."""
MAKE_PUBLIC_KEY = "openssl ec -in signing.key -pubout -out signing.pub"
"""And its public half."""

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_PURPOSE = "signing versions"


def check_private_key(path: Path) -> None:
    """Finds out early, before anybody trains for hours, that a key cannot sign.

    Args:
        path: PEM file of an EC key without a passphrase.

    Raises:
        ConfigError: It cannot; says why, and how a key is made.
        UnimplementedError: The extra `signing` is not installed.
    """
    from_pem = import_extra("cryptography.hazmat.primitives.serialization", _PURPOSE)
    content = _read_key(path)
    try:
        key: PrivateKeyTypes = from_pem.load_pem_private_key(content, None)
    except TypeError:
        raise ConfigError(
            f"{path} has a passphrase, for which nobody would be asked; take one without: openssl "
            f"ec -in {path} -out FILE, or make one: {MAKE_KEY}"
        ) from None
    except Exception:  # several libraries read keys, each with errors that tell nobody anything
        kind = "a public key" if b"PUBLIC KEY" in content else "no private key"
        if b"PRIVATE KEY" in content:
            kind = "a private key that is damaged, or of another kind"
        raise ConfigError(
            f"{path} is {kind}; a version is signed with a private EC key of PEM format: {MAKE_KEY}"
        ) from None
    _check_curve(path, key)
    _check_library()


def check_public_key(path: Path) -> None:
    """Finds out early that signatures cannot be checked with a key.

    Args:
        path: PEM file of an EC key's public half.

    Raises:
        ConfigError: They cannot; says why, and how the file is made.
        UnimplementedError: The extra `signing` is not installed.
    """
    from_pem = import_extra("cryptography.hazmat.primitives.serialization", "checking signatures")
    content = _read_key(path)
    try:
        key: PublicKeyTypes = from_pem.load_pem_public_key(content)
    except Exception:  # see above
        kind = "a private key" if b"PRIVATE KEY" in content else "no public key"
        if b"PUBLIC KEY" in content:
            kind = "a public key that is damaged, or of another kind"
        raise ConfigError(
            f"{path} is {kind}; signatures are checked with the public half of "
            f"the key that signed: {MAKE_PUBLIC_KEY}"
        ) from None
    _check_curve(path, key)
    _check_library()


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the key {path} cannot be read: {error.strerror or error}") from None


def _check_curve(path: Path, key: PrivateKeyTypes | PublicKeyTypes) -> None:
    curve = getattr(getattr(key, "curve", None), "name", "")
    if curve not in _CURVES:
        kind = f"of the curve {curve}" if curve else f"of another kind ({type(key).__name__})"
        raise ConfigError(
            f"{path} holds a key {kind}; signatures of versions want an EC key of P-256 (or P-384, "
            f"P-521): {MAKE_KEY}"
        )


def _check_library() -> None:
    """What `model-signing` needs, without importing it."""
    from importlib.util import find_spec

    missing = [name for name in ("model_signing", "OpenSSL") if find_spec(name) is None]
    if missing:
        raise make_missing_error(_PURPOSE, missing, "signing")


def sign_version(version_dir: Path, key: Path) -> Manifest:
    """Signs every file of a version; a signature that it has is replaced.

    Args:
        version_dir: A published version, or one that is about to be renamed to its number.
        key: PEM file of a private EC key.

    Returns:
        The manifest, whose model name and version are signed.

    Raises:
        ManifestError: The version is damaged, or has no manifest.
        ConfigError: The key cannot sign, or a file in the version cannot be signed: a link.
        UnimplementedError: The extra `signing` is not installed.
        OSError: The signature cannot be written.
    """
    check_private_key(key)
    signing = import_extra("model_signing.signing", _PURPOSE)
    folder = version_dir.resolve()
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    _check_kinds(folder, ConfigError)
    files = _make_hashing(f"{manifest.model_name}/{manifest.version}")
    signer = signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(files)
    # Beside the version: nobody sees half a signature, and a check no stranger's file.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".sign-") as made:
        path = Path(made, layout.SIGNATURE)
        signer.sign(folder, path)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        path.replace(folder / layout.SIGNATURE)
    return manifest


def verify_version(
    version_dir: Path,
    key: Path,
    *,
    version: int | None = None,
    model_names: Collection[str] = (),
) -> Manifest:
    """Checks that a version is, file for file, what the holder of a key has signed.

    Args:
        version_dir: The version's directory; links in it are refused, itself may be one.
        key: PEM file of a public EC key.
        version: The number that it was found under; None for any.
        model_names: Names that the place is known by; () for any.

    Returns:
        Its manifest, which is signed.

    Raises:
        UntrustedVersionError: It has no signature, or one that is damaged, by another key or of
            another version; or a file was changed, added or removed.
        ManifestError: Its signed manifest cannot be read.
        ConfigError: The key cannot be used.
        UnimplementedError: The extra `signing` is not installed.
    """
    check_public_key(key)
    folder = version_dir.resolve()
    _check_signature_file(version_dir, folder / layout.SIGNATURE)
    _check_kinds(folder, UntrustedVersionError)
    verifying = import_extra("model_signing.verifying", "checking signatures")
    files = _make_hashing(version_dir.name)
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints warnings
            verifier.set_hashing_config(files).verify(folder, folder / layout.SIGNATURE)
    except Exception as error:  # what damaged bytes do to three parsers is no short list
        raise _explain(error, version_dir, key, files.found) from error
    manifest = read_manifest(folder)
    if version is not None and manifest.version != version:
        raise UntrustedVersionError(
            f"{version_dir}: what is signed is version {manifest.version} of "
            f"{manifest.model_name}, and it was found as version {version}; put it back where it "
            "was published, or publish it there with --sign"
        )
    if model_names and manifest.model_name not in model_names:
        raise UntrustedVersionError(
            f"{version_dir}: what is signed is a version of {manifest.model_name}, and it was "
            f"found as one of {' or '.join(sorted(set(model_names)))}; put it back where it was "
            "published, or serve it by its name"
        )
    return manifest


def take_state(version_dir: Path) -> str:
    """A digest that is another one once anything in a version may have been changed.

    Of names, sizes and times, among them those that only the kernel sets; contents are not read.

    Args:
        version_dir: The version's directory.

    Raises:
        UntrustedVersionError: It cannot be listed.
    """
    digest = hashlib.sha256()
    folder = version_dir.resolve()
    for path in [folder, *_walk(folder, UntrustedVersionError)]:
        try:
            facts = path.lstat()
        except OSError as error:
            raise UntrustedVersionError(f"{path}: {error.strerror or error}") from None
        name = os.fsencode(path.relative_to(folder))
        digest.update(b"%s\0%d %d %d\n" % (name, facts.st_size, *_list_times(facts)))
    return digest.hexdigest()


def _list_times(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_mtime_ns, facts.st_ctime_ns


def check_state(version_dir: Path, state: str) -> None:
    """Raises UntrustedVersionError where `take_state` gives something else than it gave before."""
    if take_state(version_dir) != state:
        raise UntrustedVersionError(
            f"{version_dir} was changed after its signature was checked; it is not loaded; a "
            "published version never changes: publish another one",
            code=Code.FAILED_PRECONDITION,  # whoever calls meanwhile may call all the same
        )


def _check_signature_file(version_dir: Path, path: Path) -> None:
    advice = (
        f"sign it: python -m exporter sign {version_dir} --key FILE; or, where it is a copy of a "
        f"version with another number: python -m exporter publish {version_dir} --base_path "
        "BASE_PATH --sign FILE"
    )
    try:
        facts = path.lstat()
    except FileNotFoundError:
        raise UntrustedVersionError(
            f"{version_dir} has no signature ({path.name}); if it is yours, {advice}"
        ) from None
    except OSError as error:
        raise UntrustedVersionError(f"{path} cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(facts.st_mode) or not 0 < facts.st_size <= MAX_BYTES:
        size = f"{facts.st_size} bytes" if stat.S_ISREG(facts.st_mode) else "no plain file"
        raise UntrustedVersionError(
            f"{path}: {size}, which is no signature; copy it again, or "
            f"if the version is yours, {advice}"
        )


def _check_kinds(folder: Path, error: type[ConfigError] | type[UntrustedVersionError]) -> None:
    """Refuses what a signature does not cover: links, which lead elsewhere, and devices."""
    for path in _walk(folder, error):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "neither file nor folder"
            raise error(
                f"{path} is {kind}, which a signature does not cover; a signed version holds "
                "files: copy in its place what is meant"
            )


def _walk(folder: Path, kind: type[ConfigError] | type[UntrustedVersionError]) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise kind(f"{error.filename or folder} cannot be listed: {error.strerror or error}")

    for root, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        for name in sorted([*folders, *names]):
            yield Path(root, name)


def _make_hashing(name: str) -> Any:
    """How files are hashed: every one but the signature, whatever a signed list leaves out.

    Args:
        name: What the statement calls the version.
    """
    # Made here since its base must not be imported before it is needed.
    hashing = import_extra("model_signing.hashing", _PURPOSE)
    parts = import_extra("model_signing.manifest", _PURPOSE)

    class EveryFile(hashing.Config):  # type: ignore[misc, name-defined]
        found: signed.Manifest | None = None

        def hash(
            self, model_path: Path, *, files_to_hash: Iterable[Path] | None = None
        ) -> signed.Manifest:
            made = super().hash(model_path, files_to_hash=files_to_hash)
            self.found = parts.Manifest(
                name,
                [
                    parts.FileManifestItem(path=Path(one.identifier), digest=one.digest)
                    for one in made.resource_descriptors()
                ],
                parts.SerializationType.from_args(made.serialization_type),
            )
            return self.found

        def add_ignored_paths(self, *, model_path: Path, paths: Iterable[Path]) -> None:
            """Nothing: a file that its signer left out would be one that nobody checks."""

    files = EveryFile().set_ignored_paths(paths=[layout.SIGNATURE], ignore_git_paths=False)
    return files.set_allow_symlinks(False)


class _Resource(msgspec.Struct, frozen=True):
    name: str
    digest: str


class _Predicate(msgspec.Struct, frozen=True):
    resources: list[_Resource]


class _Statement(msgspec.Struct, frozen=True):
    predicate: _Predicate


class _Envelope(msgspec.Struct, frozen=True):
    payload: bytes


class _Bundle(msgspec.Struct, frozen=True, rename="camel"):
    dsse_envelope: _Envelope


def _explain(
    error: Exception, version_dir: Path, key: Path, found: signed.Manifest | None
) -> UntrustedVersionError:
    """What `model-signing` has found, in our words. `found`: what is there, if it came to that."""
    path = version_dir / layout.SIGNATURE
    if isinstance(error, OSError):
        return UntrustedVersionError(f"{version_dir} cannot be read: {error.strerror or error}")
    if found is not None:
        listed = _shorten(error)
        with contextlib.suppress(OSError, msgspec.DecodeError):  # a list of the oldest format
            listed = "; ".join(_compare(path, found)) or listed
        listed = listed.encode(errors="replace").decode()  # names of any bytes
        return UntrustedVersionError(
            f"{version_dir} is not what was signed: {listed}; copy the version again from where it "
            "was published"
        )
    if type(error).__name__ == "InvalidSignature" or "Key mismatch" in str(error):
        return UntrustedVersionError(
            f"{path} is no signature by the key {key}: another key made it, or it was changed; "
            "give the public half of the key that signed, or get the version from who holds it"
        )
    return UntrustedVersionError(
        f"{path} is damaged ({_shorten(error)}); copy it again, or if the version is yours, sign "
        f"it: python -m exporter sign {version_dir} --key FILE"
    )


def _compare(path: Path, found: signed.Manifest) -> Iterator[str]:
    """How the files that are there differ from those that were signed."""
    bundle = msgspec.json.decode(path.read_bytes(), type=_Bundle)
    statement = msgspec.json.decode(bundle.dsse_envelope.payload, type=_Statement)
    were = {one.name: one.digest for one in statement.predicate.resources}
    are = {one.identifier: one.digest.digest_hex for one in found.resource_descriptors()}
    yield from (f"{name} was removed" for name in sorted(were.keys() - are.keys()))
    yield from (f"{name} was added" for name in sorted(are.keys() - were.keys()))
    both = sorted(are.keys() & were.keys())
    yield from (f"{name} was changed" for name in both if are[name] != were[name])


def _shorten(error: Exception) -> str:
    """The first line of somebody else's message, and no more than a line."""
    lines = str(error).splitlines() or [""]
    return (lines[0] or type(error).__name__)[:120]
