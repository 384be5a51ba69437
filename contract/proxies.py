"""Proxies of the environment: none stands between a client and its own machine.

gRPC reads `grpc_proxy`, `https_proxy` and `http_proxy`, in lower case alone, for whatever it is
asked (src/core/handshaker/http_connect/http_proxy_mapper.cc); httpx reads what Python reads. Both
would send a call to 127.0.0.1 to the proxy, where another server answers, or nobody.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping

_GRPC_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_NAMES = frozenset({"localhost", "ip6-localhost", "ip6-loopback", "localhost.localdomain"})


@dataclasses.dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that calls go through.

    Attributes:
        variable: Of the environment.
        url: Without user and password.
        bypass: The variable that names hosts to be reached without it.
    """

    variable: str
    url: str
    bypass: str = "no_proxy"

    def describe(self, host: str) -> str:
        """For the end of an error's text, with what to do about it.

        Args:
            host: That was to be reached.
        """
        return (
            f"the call goes through the proxy {self.url} of {self.variable}; where it should not, "
            f"set {self.bypass}={host}"
        )


def is_local(host: str) -> bool:
    """Whether a host is this very machine by its name or address alone; nothing is looked up.

    Args:
        host: A name or an address, with or without brackets; "" and the addresses that stand for
            every one of a server's (0.0.0.0, ::) reach this machine too.
    """
    import ipaddress  # of no use to servers, which import this module too

    bare = host.strip("[]").partition("%")[0].rstrip(".").lower()
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return not bare or bare in _NAMES or bare.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def list_channel_options(target: str) -> list[tuple[str, int]]:
    """The options of a gRPC channel that keep proxies out of the way where they have no business.

    Args:
        target: As for `is_local_target`. `no_proxy=*`, which grpcio does not know, is honoured.
    """
    everywhere = "*" in map(str.strip, os.environ.get(_name_bypass(os.environ), "").split(","))
    return [("grpc.enable_http_proxy", 0)] if everywhere or is_local_target(target) else []


def is_local_target(target: str) -> bool:
    """Whether a target of gRPC leads to this machine, or one of several addresses does.

    Args:
        target: `host:port`, `unix:/path`, `dns:///host:port`, `ipv4:a:1,b:2` and the like.
    """
    if target.startswith(("unix:", "unix-abstract:", "vsock:")):
        return True
    return any(map(is_local, list_hosts(target)))


def list_hosts(target: str) -> list[str]:
    """The hosts in a target of gRPC, without ports.

    Args:
        target: As for `is_local_target`.
    """
    bare = re.sub(r"^(dns|ipv4|ipv6):(//[^/]*/)?", "", target)
    hosts = []
    for part in bare.replace("%5B", "[").replace("%5D", "]").split(","):
        match = re.fullmatch(r"\[(.*)\](:\d+)?|([^:]*)(:\d*)?", part.strip())
        hosts.append((match[1] or match[3] or "") if match else part.strip())
    return hosts


def find_grpc_proxy(target: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy that grpcio takes to a target, which is not `is_local_target`.

    Args:
        target: As for `is_local_target`.
        environment: Variables.
    """
    if is_local_target(target):
        return None
    variable = next((name for name in _GRPC_VARIABLES if name in environment), "")
    url = environment.get(variable, "")
    bypass = _name_bypass(environment)
    listed = environment.get(bypass, "")
    if not url.startswith("http://"):  # grpcio knows no other kind, and goes without
        return None
    if any(_is_bypassed(host, listed) for host in list_hosts(target)):
        return None
    return Proxy(variable, _hide_credentials(url), bypass)


def name_grpc_proxy(target: str) -> str:
    """What the text of a failed call ends with; "" where no proxy is in its way.

    Args:
        target: As for `is_local_target`.
    """
    proxy = find_grpc_proxy(target)
    return "" if proxy is None else f"; {proxy.describe(list_hosts(target)[0])}"


def name_http_proxy(url: str) -> str:
    """The same of HTTP.

    Args:
        url: As for `find_http_proxy`.
    """
    from urllib.parse import urlsplit

    proxy = find_http_proxy(url)
    return "" if proxy is None else f"; {proxy.describe(urlsplit(url).hostname or '')}"


def find_http_proxy(url: str) -> Proxy | None:
    """The proxy that Python's HTTP clients take to a URL, by the variables of this process.

    Args:
        url: `http://host:port` or `https://host:port`.
    """
    import urllib.request
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies()
    scheme = parts.scheme if proxies.get(parts.scheme) else "all"
    found = proxies.get(scheme)
    if not found or is_local(host) or urllib.request.proxy_bypass(host):
        return None
    name = f"{scheme}_proxy"
    variable = next((one for one in (name, name.upper()) if os.environ.get(one)), name)
    bypass = "NO_PROXY" if os.environ.get("NO_PROXY") else "no_proxy"
    return Proxy(variable, _hide_credentials(found), bypass)


def _name_bypass(environment: Mapping[str, str]) -> str:
    return "no_grpc_proxy" if "no_grpc_proxy" in environment else "no_proxy"


def _is_bypassed(host: str, listed: str) -> bool:
    """By the rules of grpcio: the end of a name, or a network that the address lies in."""
    import ipaddress

    for entry in filter(None, (part.strip() for part in listed.split(","))):
        if entry == "*":
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            pass
        if host.lower().endswith(entry.lower()):
            return True
    return False


def _hide_credentials(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", url)
