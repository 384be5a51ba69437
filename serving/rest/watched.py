"""Requests of HTTP that are watched; those that are not pay nothing for it."""

from __future__ import annotations

from collections.abc import Collection

from contract.errors import PlumblineError
from contract.wire.status_codes import REQUEST_ID_KEY, code_of_http
from serving.monitoring.watch import CallWatch
from serving.transport.http1 import Answer, Request, Service


class WatchedServer:
    """A server whose requests have notes, but for those of probes and metrics.

    Args:
        server: Answers.
        watch: Watches.
        pages: Paths of probes and metrics.
        gives_back_ids: Whether answers name the request.
    """

    def __init__(
        self,
        server: Service,
        watch: CallWatch,
        *,
        pages: Collection[str],
        gives_back_ids: bool,
    ) -> None:
        self._server = server
        self._watch = watch
        self._pages = pages
        self._gives_back_ids = gives_back_ids

    def begin(self, request: Request) -> Answer | None:
        """See `http1.Service`."""
        path = _cut_query(request.target)
        if path in self._pages:
            return self._server.begin(request)
        headers = request.headers
        caller = request.context.caller
        notes = request.context.notes = self._watch.begin(
            f"{request.method} {path}",
            peer=caller.name_peer() if hasattr(caller, "name_peer") else "",
            request_id=headers.get(b"x-request-id"),
            trace_parent=headers.get(b"traceparent"),
            trace_state=headers.get(b"tracestate"),
        )
        answer = self._server.begin(request)
        if notes is not None and self._gives_back_ids:
            request.answer_head = f"{REQUEST_ID_KEY}: {notes.request_id}\r\n".encode()
        return answer if answer is None else self._note(request, answer)

    async def answer(self, request: Request) -> Answer:
        """See `http1.Service`."""
        notes = request.context.notes
        if notes is not None:
            notes.receive(len(request.body))
        return self._note(request, await self._server.answer(request))

    def refuse(self, request: Request, error: PlumblineError) -> Answer:
        """See `http1.Service`."""
        return self._note(request, self._server.refuse(request, error))

    def refuse_malformed(self, status: int, text: str) -> Answer:
        """See `http1.Service`."""
        return self._server.refuse_malformed(status, text)

    def end(self, request: Request) -> None:
        """See `http1.Service`."""
        self._server.end(request)

    def _note(self, request: Request, answer: Answer) -> Answer:
        notes = request.context.notes
        if notes is not None and notes.code is None:
            notes.http_status = answer.status
            notes.num_answer_bytes = len(answer.body)
            error = answer.error
            if error is not None:
                notes.error = error.message.replace(request.target, _cut_query(request.target))
            self._watch.end(notes, code_of_http(answer.status) if error is None else error.code)
        return answer


def _cut_query(target: str) -> str:
    """It may hold what nobody should read."""
    return target.partition("?")[0]
