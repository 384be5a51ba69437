"""Calls that are watched: each gets notes when it begins, and becomes a span and a line in the
access log when it ends. Whatever protocol a call came by, it passes here."""

from __future__ import annotations

import logging
import random
import re
from typing import TYPE_CHECKING

from contract.errors import Code
from contract.servable import DEFAULT_SIGNATURE_NAME
from serving.config.flags import JSON
from serving.config.server import ServerConfig
from serving.context import CallNotes, TraceParent
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
    ) -> CallNotes:
        """A call has begun; gives its notes.

        Args:
            method: See `CallNotes`.
            peer: See `CallNotes`.
            request_id: The value of `x-request-id`, as it was sent.
            trace_parent: And of `traceparent`.
            trace_state: And of `tracestate`.
        """
        parent = read_trace_parent(trace_parent, trace_state)
        if parent is not None:
            trace_id = parent.trace_id
        else:
            trace_id = "" if self._tracing is None else f"{_draw_id():032x}"
        return CallNotes(
            method[:MAX_METHOD],
            peer=peer,
            request_id=read_request_id(request_id) or f"{_draw_id():032x}",
            parent=parent,
            trace_id=trace_id,
        )

    def end(self, notes: CallNotes, code: Code) -> None:
        """A call has ended; what comes of it must not harm it."""
        if notes.code is not None:
            return
        notes.end(code)
        try:
            if self._tracing is not None:
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
        config: --tracing, --access_log and --log_format: lines of JSON about a call name it.
        who: Which process this is, where there are several.
    """
    if not (config.tracing or config.access_log or config.log_format == JSON):
        return None
    tracing = None
    if config.tracing:
        from serving.monitoring.tracing import start_tracing

        tracing = start_tracing(
            scheme="https" if config.tls else "http", has_stages=config.tracing_stages
        )
    access_log = AccessLog(config.log_format, who) if config.access_log else None
    return CallWatch(access_log, tracing)


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


def _draw_id() -> int:
    """Not 0, which stands for none."""
    return random.getrandbits(128) or 1
