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
    last = "no answer"
    for connection in (
        http.client.HTTPConnection("127.0.0.1", PORT, timeout=TIMEOUT_S),
        http.client.HTTPSConnection("127.0.0.1", PORT, timeout=TIMEOUT_S, context=context),
    ):
        try:
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            last = f"{response.status} {response.read(200)!r}"
            if response.status in (200, 401, 403):
                return 0
        except ssl.SSLError as error:
            last = str(error)
            if "CERTIFICATE_REQUIRED" in last:
                return 0
        except (OSError, http.client.HTTPException) as error:
            last = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
    sys.stderr.write(f"not ready: {last}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
