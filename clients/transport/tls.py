"""TLS of Python, set up as the options say; for all that asks over HTTP, with httpx or without."""

from __future__ import annotations

import ssl

from clients.options import TlsOptions
from contract.errors import ConfigError


def make_ssl_context(tls: TlsOptions) -> ssl.SSLContext:
    """Python's context for TLS or mutual TLS."""
    trusted = tls.read(tls.ca_file)
    try:
        context = ssl.create_default_context(cadata=None if trusted is None else trusted.decode())
        if tls.cert_file is not None:
            context.load_cert_chain(tls.cert_file, tls.key_file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{tls} cannot be used: {error}") from error
    return context
