"""Calls of gRPC that are watched; those that are not pay nothing for it."""

from __future__ import annotations

from collections.abc import Callable

from contract.errors import Code, PlumblineError
from serving.grpc.protocol import REQUEST_ID_NAME, Call, Message, Service, Told, make_ok_head
from serving.monitoring.watch import CallWatch
from serving.transport.http2 import Block, Connection, Head

_ANY_ID = b"0" * 32
_ANY_HEAD = make_ok_head((REQUEST_ID_NAME, _ANY_ID))
assert _ANY_HEAD.block.endswith(_ANY_ID)


def make_head_of(request_id: bytes) -> Block:
    """What precedes the answer to a call whose name was drawn here: made of another's, all but the
    name, which is as long."""
    block = Block.__new__(Block)
    block.block = _ANY_HEAD.block[: -len(_ANY_ID)] + request_id
    block.opening, block.closing = _ANY_HEAD.opening, _ANY_HEAD.closing
    return block


def make_watched_calls(
    service: Service, watch: CallWatch
) -> Callable[[Connection, int, Head | None], Call]:
    """`Service.make_call`, of calls that are watched."""

    def make_call(connection: Connection, stream_id: int, head: Head | None) -> WatchedCall:
        call = WatchedCall(connection, stream_id, head)
        call._service = service
        call._watch = watch
        return call

    return make_call


class WatchedCall(Call):
    """A call with notes, if it is wanted; calls of health, which anybody may make, have none."""

    __slots__ = ("_watch", "notes")

    _watch: CallWatch

    def open(self) -> None:
        self.notes = None
        head = self.head
        if head is not None:
            told = head.told
            if told is None:
                told = head.told = Told(head, self._service)
            if told.http is None and (told.method is None or not told.method.is_open):
                self.notes = self._watch.begin(
                    head.path.decode("latin-1").lstrip("/").replace(" ", "%20"),
                    peer=self.connection.peer,
                    request_id=told.request_id,
                    trace_parent=told.trace_parent,
                    trace_state=told.trace_state,
                )
        super().open()
        notes = self.notes
        if notes is None or notes.code is not None or not self._service.gives_back_ids:
            return
        if not self._told.given_back:
            self._ok_head = make_head_of(notes.request_id.encode())

    def _begin(self, body: Message) -> None:
        if self.notes is not None:
            self.notes.receive(len(body))
        super()._begin(body)

    def _reply(self, reply: bytes) -> None:
        notes = self.notes
        super()._reply(reply)
        if notes is not None and notes.code is None:
            notes.num_answer_bytes = len(reply)
            self._watch.end(notes, Code.OK)

    def _fail(self, error: Exception) -> None:
        if self.notes is not None and isinstance(error, PlumblineError):
            self.notes.error = error.message
        super()._fail(error)

    def _refuse(self, block: Block, code: Code) -> None:
        super()._refuse(block, code)
        if self.notes is not None:
            self._watch.end(self.notes, code)

    def _list_given_back(self) -> tuple[tuple[bytes, bytes], ...]:
        if self.notes is None:
            return super()._list_given_back()
        if not self._service.gives_back_ids:
            return ()
        return ((REQUEST_ID_NAME, self.notes.request_id.encode()),)

    def abandon(self) -> None:
        if self.notes is not None and self.notes.code is None:
            self.notes.error = "the caller left before the answer"
            self._watch.end(self.notes, Code.CANCELLED)
        super().abandon()
