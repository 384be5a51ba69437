"""The container's health check: exits 0 when the server is ready, 1 when it is not.

It asks /readyz on the REST port inside the container, in the clear and then over TLS. The
certificate is not verified: the question is whether this container's own server answers. A
server that wants a client's certificate (mutual TLS) or a token is up, and says no more.
"""

import http.client
import os
import ssl
import sys

PORT = int(os.environ.get("PLUMBLINE_REST_PORT", "8501"))
TIMEOUT_S = 4.0


def main() -> int:
    """Asks once; the engine repeats."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    plain = http.client.HTTPConnection("127.0.0.1", PORT, timeout=TIMEOUT_S)
    encrypted = http.client.HTTPSConnection("127.0.0.1", PORT, timeout=TIMEOUT_S, context=context)
    problem = ask(plain) and ask(encrypted, shakes_hands=True)
    if problem:
        sys.stderr.write(f"not ready: {problem}\n")
    return 1 if problem else 0


def ask(connection: http.client.HTTPConnection, *, shakes_hands: bool = False) -> str:
    """What keeps the server from being ready, or ""."""
    connected = False
    try:
        connection.connect()
        connected = True
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        if response.status in (200, 401, 403):
            return ""
        return f"{response.status} {response.read(200)!r}"
    except (OSError, http.client.HTTPException) as error:
        # With TLS 1.3 a client without a certificate is turned away after the handshake.
        return "" if connected and shakes_hands else f"{type(error).__name__}: {error}"
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
