"""Calls that are watched: each gets notes when it begins, and becomes a span and a line in the
access log when it ends. Whatever protocol a call came by, it passes here."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from contract.errors import Code
from contract.servable import DEFAULT_SIGNATURE_NAME
from serving.config.server import ServerConfig
from serving.context import CallNotes, TraceParent, draw_id
from serving.logs import Access, AccessLog, clean_text

if TYPE_CHECKING:
    from serving.monitoring.tracing import Tracing

MAX_METHOD = 256
"""Characters of a path that are kept."""

_MAX_NAME, _MAX_ERROR = 128, 256
"""Characters of what stands in a line, which is to be written in one piece."""

_log = logging.getLogger(__name__)

_is_request_id = re.compile(rb"[!#-\[\]-~]{1,128}").fullmatch
_read_parent = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
).fullmatch


def read_request_id(value: bytes | None) -> str:
    """A caller's `x-request-id`; "" for none that may stand in a log or in an answer.

    Up to 128 characters of printable ASCII without blanks, quotes and backslashes.
    """
    return value.decode() if value is not None and _is_request_id(value) else ""


def read_trace_parent(value: bytes | None, state: bytes | None = None) -> TraceParent | None:
    """A caller's `traceparent` and `tracestate`; None for none, or one that is malformed."""
    found = None if value is None else _read_parent(value)
    if found is None or (found[5] is not None and found[1] == b"00"):
        return None
    return TraceParent(
        found[2].decode(),
        found[3].decode(),
        bool(int(found[4], 16) & 1),
        "" if state is None else state.decode("latin-1"),
    )


def name_call(method: str, *, request_id: bytes | None, trace_parent: bytes | None) -> CallNotes:
    """Notes of a call that nobody watches, for a line about it.

    Args:
        method: See `CallNotes`.
        request_id: The value of `x-request-id`, as it was sent; one is drawn where none was.
        trace_parent: And of `traceparent`.
    """
    parent = read_trace_parent(trace_parent)
    return CallNotes(
        method[:MAX_METHOD],
        request_id=read_request_id(request_id) or draw_id(),
        trace_id="" if parent is None else parent.trace_id,
    )


class CallWatch:
    """Watches calls; belongs to the event loop's thread, but for `CallNotes` themselves.

    Args:
        access_log: Gets a line for each call; None for no access log.
        tracing: Makes spans; None for no traces.
    """

    def __init__(self, access_log: AccessLog | None, tracing: Tracing | None) -> None:
        self._access_log = access_log
        self._tracing = tracing

    def begin(
        self,
        method: str,
        *,
        peer: str,
        request_id: bytes | None,
        trace_parent: bytes | None,
        trace_state: bytes | None = None,
    ) -> CallNotes | None:
        """A call has begun; gives its notes, or None where nobody wants them.

        Args:
            method: See `CallNotes`.
            peer: See `CallNotes`.
            request_id: The value of `x-request-id`, as it was sent; one is drawn where none was.
            trace_parent: And of `traceparent`.
            trace_state: And of `tracestate`.
        """
        parent = read_trace_parent(trace_parent, trace_state)
        kept = "" if self._tracing is None else self._tracing.choose_trace(parent, method)
        if not kept and self._access_log is None:
            return None
        return CallNotes(
            method[:MAX_METHOD],
            peer=peer,
            request_id=read_request_id(request_id) or draw_id(),
            parent=parent,
            trace_id=kept or ("" if parent is None else parent.trace_id),
            is_traced=bool(kept),
        )

    def end(self, notes: CallNotes, code: Code) -> None:
        """A call has ended; what comes of it must not harm it."""
        if notes.code is not None:
            return
        notes.end(code)
        try:
            if notes.is_traced and self._tracing is not None:
                self._tracing.record(notes)
            if self._access_log is not None:
                self._access_log.write(describe_access(notes))
        except Exception:  # the boundary
            _log.exception("a call cannot be recorded")

    def close(self, timeout_s: float) -> None:
        """Sends the spans that wait, for so long at most; blocks."""
        if self._tracing is not None:
            self._tracing.close(timeout_s)


def make_watch(config: ServerConfig, who: str = "") -> CallWatch | None:
    """What watches the calls of this process; None where nobody wants to know.

    Args:
        config: --tracing and --access_log.
        who: Which process this is, where there are several.
    """
    tracing = None
    if config.tracing:
        from serving.monitoring.tracing import start_tracing

        tracing = start_tracing(
            scheme="https" if config.tls else "http", has_stages=config.tracing_stages
        )
    access_log = AccessLog(config.log_format, who) if config.access_log else None
    return CallWatch(access_log, tracing) if access_log or tracing else None


def describe_access(notes: CallNotes) -> Access:
    """A call's line in the access log."""
    assert notes.code is not None
    return Access(
        method=_cut(notes.method, MAX_METHOD),
        status=notes.code.name,
        duration_us=round((notes.ended - notes.begun) * 1e6),
        model=_cut(notes.model, _MAX_NAME),
        version=notes.version,
        signature=_cut(notes.signature, _MAX_NAME)
        or (DEFAULT_SIGNATURE_NAME if notes.entered else ""),
        rows=None if notes.rows < 0 else notes.rows,
        request_bytes=notes.num_request_bytes,
        answer_bytes=notes.num_answer_bytes,
        peer=notes.peer,
        request_id=notes.request_id,
        trace_id=notes.trace_id,
        error=_cut(notes.error, _MAX_ERROR),
    )


def _cut(text: str, most: int) -> str:
    return clean_text(text)[:most]
