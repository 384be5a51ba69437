"""Why a server does not answer as it was asked to, and what to do about it."""

from __future__ import annotations

import dataclasses
import re
import shlex
import socket
import stat
from pathlib import Path

from clients.doctor.findings import Check, Finding
from clients.doctor.probe import (
    REST_PORT,
    Address,
    Heard,
    Speech,
    TlsFacts,
    connect_plainly,
    listen,
    look_at_tls,
)
from clients.options import DEFAULT_MODEL_NAME, TlsOptions
from contract.errors import (
    PermissionDeniedError,
    PlumblineError,
    UnauthenticatedError,
    UnimplementedError,
)
from contract.proxies import Proxy, find_grpc_proxy, find_http_proxy, is_local

_VERSION_FLAGS = frozenset({"--version", "--version_label"})
_TLS_FLAGS = ("--tls", "--ca_file", "--cert_file", "--key_file", "--tls_server_name")
_NO_WORDS = "in no words of TensorFlow Serving"


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """What a person gave the command, so that advice repeats it.

    Attributes:
        model_name: To be asked for, whether anybody gave it or not.
        tls: With `--tls` and its files; None without.
        flags: `--flag=value` as given, of those that every command about a server takes.
        own: The same, of those that are doctor's own.
        others: What else is looked at: version directories, other servers.
    """

    model_name: str
    tls: TlsOptions | None = None
    flags: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def advise(self, address: str, *more: str, without: tuple[str, ...] = ()) -> str:
        """The command for another try: as given, but for the flags of `more` and `without`."""
        flags = _replace((*self.own, *self.flags), more, without)
        return _write_command("doctor", address, *self.others, *flags)

    def advise_other(self, verb: str, address: str, *more: str) -> str:
        """Another command about the same model of a server."""
        named = (f"--model_name={self.model_name}", *more)
        return _write_command(*verb.split(), f"--server={address}", *_replace(self.flags, named))

    @property
    def name_flag(self) -> str:
        """For the command that starts a server; "" where its default is asked for."""
        is_default = self.model_name in ("", DEFAULT_MODEL_NAME)
        return "" if is_default else f" --model_name={shlex.quote(self.model_name)}"


def _replace(
    flags: tuple[str, ...], more: tuple[str, ...], without: tuple[str, ...] = ()
) -> tuple[str, ...]:
    gone = {*without, *(flag.partition("=")[0] for flag in more)}
    if gone & _VERSION_FLAGS:  # one of them at a time
        gone |= _VERSION_FLAGS
    return (*(flag for flag in flags if flag.partition("=")[0] not in gone), *more)


def _write_command(*words: str) -> str:
    quoted = [word if "…" in word else shlex.quote(word) for word in words]
    return " ".join(["python -m clients", *quoted])


def explain_silence(
    address: Address, error: PlumblineError, given: Given, *, takes_connections: bool = False
) -> Finding:
    """Why nobody answers at an address as he should.

    Args:
        address: The one.
        error: Of the call.
        given: What advice repeats.
        takes_connections: Whether it took one before the call.
    """
    if address.is_socket:
        return _explain_socket(address, error, given)
    if isinstance(error, UnauthenticatedError | PermissionDeniedError):
        return _explain_token(address, error, given)
    proxy = find_http_proxy(address.text) if address.is_rest else find_grpc_proxy(address.join())
    try:
        connect_plainly(address).close()
    except OSError as failure:
        if takes_connections and isinstance(failure, TimeoutError):
            return _explain_hanging(address, error)
        return _explain_no_connection(address, failure, given, proxy)
    if proxy is not None:
        return Check.REACHABLE.fails(
            f"calls to {address.join()} go through the proxy {proxy.url} of {proxy.variable}, "
            f"which does not pass them on ({_one_line(error)}); the port itself can be reached",
            f"{proxy.bypass}={address.host} {given.advise(address.text)}",
        )
    facts = look_at_tls(address, given.tls)
    wants_tls = given.tls is not None or address.is_encrypted
    if facts is not None:
        return _explain_tls(address, error, given, facts, wants_tls=wants_tls)
    heard = listen(lambda: connect_plainly(address), address.host)
    if heard.speech is Speech.NOTHING:
        return _explain_hanging(address, error)
    if wants_tls:
        return Check.REACHABLE.fails(
            f"{address.join()} speaks plain text, and was asked for TLS",
            given.advise(_plain(address), without=_TLS_FLAGS),
        )
    return _explain_protocol(address, error, given, heard)


def _explain_hanging(address: Address, error: PlumblineError) -> Finding:
    return Check.REACHABLE.fails(
        f"{address.join()} takes connections and answers nothing: a process that hangs or is "
        f"stopped, or something that speaks neither gRPC nor HTTP ({_one_line(error)})",
        "look at the process that listens there, and at its log; then start it again",
    )


def _explain_protocol(
    address: Address, error: PlumblineError, given: Given, heard: Heard
) -> Finding:
    """What may be wrong once the port speaks, encrypted or not, as it was asked to."""
    speech, grpc_port = heard.speech, re.search(r"gRPC is on port (\d+)", error.message)
    scheme = "https" if given.tls is not None or address.is_encrypted else "http"
    if speech is Speech.HTTP and not address.is_rest:
        if grpc_port:
            fix = given.advise(address.join(int(grpc_port[1])))
        else:
            fix = (
                f"{given.advise(f'{scheme}://{address.join()}')}  # or the server's gRPC port, "
                "its --port"
            )
        return Check.REACHABLE.fails(
            f"{address.join()} speaks HTTP/1.1: this is the REST port, and gRPC has another", fix
        )
    if speech is Speech.GRPC and address.is_rest:
        fix = given.advise(address.join())
        if heard.rest_port:
            fix = given.advise(f"{scheme}://{address.join(heard.rest_port)}")
        return Check.REACHABLE.fails(
            f"{address.join()} speaks gRPC: REST has a port of its own, the server's "
            "--rest_api_port",
            fix,
        )
    if isinstance(error, UnimplementedError) and speech is Speech.GRPC:
        return Check.REACHABLE.fails(
            f"{address.join()} speaks gRPC and lacks TensorFlow Serving's services "
            f"({_one_line(error)})",
            "give the address of TensorFlow Serving or of `python -m serving embedded`",
        )
    if _NO_WORDS in error.message:
        return Check.REACHABLE.fails(
            f"{address.join()} speaks HTTP, and is no TensorFlow Serving ({_one_line(error)})",
            f"give the REST port of the server, usually {address.join(REST_PORT)}",
        )
    return Check.REACHABLE.fails(
        f"{address.join()} speaks {speech}, but: {_one_line(error)}", "look at the server's log"
    )


def _explain_tls(
    address: Address, error: PlumblineError, given: Given, facts: TlsFacts, *, wants_tls: bool
) -> Finding:
    where, names = address.join(), ", ".join(facts.names)
    files = [] if not facts.wants_certificate else ["--cert_file=CERT.pem", "--key_file=KEY.pem"]
    named = []
    if facts.is_other_name and facts.names:
        # Of a certificate for *.example.org any name below it will do.
        named = [f"--tls_server_name={facts.names[0].replace('*', 'server')}"]
    target = re.sub("^http:", "https:", address.text)
    if not wants_tls:
        trust = ["--ca_file=CA.pem"] if facts.fault else ["--tls"]
        by = f", signed by {facts.issuer}" if facts.issuer else ""
        return Check.REACHABLE.fails(
            f"{where} speaks TLS, and was asked in plain text (its certificate is for "
            f"{names or 'names that cannot be read'}{by})",
            given.advise(target, *trust, *named, *files),
        )
    if facts.wants_certificate:
        had = given.tls is not None and given.tls.cert_file is not None
        trust = ["--ca_file=CA.pem"] if facts.fault else []
        untrusted = f"; and its own is not trusted ({facts.fault})" if facts.fault else ""
        return Check.REACHABLE.fails(
            f"{where} wants {'another' if had else 'a'} client certificate (mutual TLS)"
            + (f", not {given.tls.cert_file}" if had and given.tls else "")
            + untrusted,
            given.advise(
                target,
                *trust,
                *named,
                *files,
                without=("--cert_file", "--key_file", *(["--ca_file", "--tls"] if trust else [])),
            ),
        )
    if facts.is_other_name and not facts.fault:
        asked = (given.tls.server_name if given.tls else None) or address.host
        return Check.REACHABLE.fails(
            f"the certificate of {where} is for {names or 'other names'}, and not for {asked}",
            given.advise(target, *named or ["--tls_server_name=NAME"]),
        )
    if facts.is_out_of_date:
        return Check.REACHABLE.fails(
            f"the certificate of {where} is not valid today ({facts.fault})",
            "renew the server's certificate, or set this machine's clock",
        )
    if facts.fault:
        ca_file = given.tls.ca_file if given.tls else None
        trusted = f"--ca_file {ca_file}" if ca_file else "none of the system's authorities"
        verb = "does not vouch" if ca_file else "vouches"
        return Check.REACHABLE.fails(
            f"{trusted} {verb} for the certificate of {where}, signed by "
            f"{facts.issuer or 'an unknown authority'} ({facts.fault})",
            f"{given.advise(target, '--ca_file=CA.pem', *named, without=('--ca_file', '--tls'))}  "
            f"# the certificate of {facts.issuer or 'whoever signed it'}",
        )
    return _explain_protocol(address, error, given, facts.heard)


def _explain_token(address: Address, error: PlumblineError, given: Given) -> Finding:
    has_token = any(flag.startswith("--auth_token_file") for flag in given.flags)
    if has_token:
        return Check.REACHABLE.fails(
            f"{address.join()} does not accept the token of --auth_token_file ({_one_line(error)})",
            "give a file that holds one of the server's tokens, as its --auth_token_file does",
        )
    return Check.REACHABLE.fails(
        f"{address.join()} wants a token ({_one_line(error)})",
        given.advise(address.text, "--auth_token_file=FILE"),
    )


def _explain_no_connection(
    address: Address, failure: OSError, given: Given, proxy: Proxy | None
) -> Finding:
    """Nothing at all can be connected to."""
    where, host = address.join(), address.host
    port = "rest_api_port" if address.is_rest else "port"
    if proxy is not None:
        return Check.REACHABLE.fails(
            f"{where} is reached neither through the proxy {proxy.url} of {proxy.variable} nor "
            f"without it ({failure})",
            f"ask whoever runs the proxy to pass {where} on; or set {proxy.bypass}={host}, where "
            "it can be reached directly",
        )
    if isinstance(failure, socket.gaierror):
        return Check.REACHABLE.fails(f"no host is called {host}", f"getent hosts {host}")
    start = (
        f"python -m serving embedded --{port}={address.port}{given.name_flag} "
        "--model_base_path=PATH"
    )
    if isinstance(failure, ConnectionRefusedError):
        if is_local(host):
            return Check.REACHABLE.fails(f"nothing listens at {where}", start)
        return Check.REACHABLE.fails(
            f"nothing listens at {where}: no server runs there, or one that listens on its own "
            "loopback only, or on another port",
            f"on {host}: {start} --host=0.0.0.0",
        )
    return Check.REACHABLE.fails(
        f"{where} does not answer ({failure}): a firewall, a host that is off, or a server that "
        "listens elsewhere",
        f"on {host}: {start} --host=0.0.0.0; and let the port through its firewall",
    )


def _explain_socket(address: Address, error: PlumblineError, given: Given) -> Finding:
    path = Path(address.host)
    start = (
        f"python -m serving embedded --grpc_socket_path={path}{given.name_flag} "
        "--model_base_path=PATH"
    )
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return Check.REACHABLE.fails(f"{path} does not exist: no server made it", start)
    except OSError as failure:
        return Check.REACHABLE.fails(f"{path}: {failure.strerror}", f"ls -ld {path.parent}")
    if not stat.S_ISSOCK(mode):
        return Check.REACHABLE.fails(f"{path} is no socket", f"ls -l {path}")
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(3)
            connection.connect(str(path))
    except PermissionError:
        return Check.REACHABLE.fails(f"{path} may not be written by this user", f"ls -l {path}")
    except ConnectionRefusedError:
        return Check.REACHABLE.fails(f"nobody listens at {path}: its server has ended", start)
    except OSError:
        pass
    if isinstance(error, UnauthenticatedError | PermissionDeniedError):
        return _explain_token(address, error, given)
    return Check.REACHABLE.fails(f"{path} takes connections, but: {_one_line(error)}", start)


def _plain(address: Address) -> str:
    return re.sub("^https:", "http:", address.text)


def _one_line(error: PlumblineError) -> str:
    return " ".join(error.message.split())
