"""Keys to sign versions with, as openssl writes them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Keys(NamedTuple):
    """Files of one pair."""

    private: Path
    public: Path


def make_keys(folder: Path, name: str = "signing") -> Keys:
    """An EC key of P-256, and its public half."""
    keys = Keys(folder / f"{name}.key", folder / f"{name}.pub")
    write_keys(keys, ec.generate_private_key(ec.SECP256R1()))
    return keys


def write_keys(
    keys: Keys,
    key: ec.EllipticCurvePrivateKey,
    encryption: serialization.KeySerializationEncryption | None = None,
) -> None:
    """Writes both halves; the private one under a passphrase if one is given."""
    pem = serialization.Encoding.PEM
    traditional = serialization.PrivateFormat.TraditionalOpenSSL
    keys.private.write_bytes(
        key.private_bytes(pem, traditional, encryption or serialization.NoEncryption())
    )
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    keys.public.write_bytes(key.public_key().public_bytes(pem, info))
