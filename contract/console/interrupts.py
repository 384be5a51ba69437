"""Ctrl-C at any moment of a command: exit code 130, and no traceback.

Imports next to nothing, since nothing can be done about Ctrl-C before: the packages of commands do
neither, so that Python comes here as soon as it has started.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing's own would take its import
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import FrameType
    from typing import NoReturn
else:
    import _signal as signal  # the same without enumerations, whose import takes milliseconds

_INTERRUPTED = 130  # ExitCode.INTERRUPTED, which is not imported yet
_USAGE = 2
_IMPORTING = "<frozen importlib._bootstrap"
_LOOK_AGAIN_S = 0.01
_LOOKS = 200


def run_main(name: str) -> int:
    """Imports a module and runs its `main()`, the command of this process; gives its exit code.

    While the module is imported nothing was begun, and Ctrl-C ends the process at once. Then it
    raises KeyboardInterrupt, but not into an import: libraries take it for what it is not,
    and callbacks of the import system print it. It comes when the import is over; after 2 s of
    waiting, or with a second Ctrl-C, the process ends. Once `main` has returned, its exit code
    stands.

    Where SIGINT is ignored already (`nohup`, a job in the background of a script), it stays so.

    A Python that Plumbline is not installed in is one sentence, and exit code 2.
    """
    try:
        return _run_main(name)
    except (ImportError, SyntaxError) as error:
        from contract.console.missing import explain

        sentence = explain(error)
        if not sentence:
            raise
        sys.stderr.write(f"{sentence}\n")
        return _USAGE


def _run_main(name: str) -> int:
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return int(_find_main(name)())
    signal.signal(signal.SIGINT, _end_at_once)
    main = _find_main(name)
    status = _INTERRUPTED
    try:
        try:
            signal.signal(signal.SIGINT, _interrupt)
            status = int(main())
        finally:
            if signal.getsignal(signal.SIGINT) is _end_at_once:  # it still waits for an import
                signal.setitimer(signal.ITIMER_REAL, 0)
                status = _INTERRUPTED
            signal.signal(signal.SIGINT, _end_with(status))
    except KeyboardInterrupt:  # where the command does not expect it, or as it ended
        pass
    return status


class left_to_asyncio:  # noqa: N801 - as contextlib's, whose import it saves
    """Lets `asyncio.Runner` handle Ctrl-C within, which it does only in place of Python's own
    handler: it cancels the main task."""

    def __enter__(self) -> None:
        self._handler = signal.getsignal(signal.SIGINT)
        if self._handler is _interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        if self._handler is _interrupt:
            signal.signal(signal.SIGINT, self._handler)


class held_back:  # noqa: N801 - as above
    """Holds Ctrl-C back until the end of the block, where a library forks: what is raised in a hook
    of fork is dropped by Python, together with the locks that the hook has taken. A second one is
    not held back."""

    def __enter__(self) -> None:
        self._is_pending = False
        self._handler = signal.getsignal(signal.SIGINT)
        self._is_ours = self._handler in (_interrupt, signal.default_int_handler)
        if self._is_ours:
            signal.signal(signal.SIGINT, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_pending:
            raise KeyboardInterrupt
        self._is_pending = True

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            signal.signal(signal.SIGINT, self._handler)
        if self._is_pending:
            raise KeyboardInterrupt


def _find_main(name: str) -> Callable[[], int]:
    import importlib

    main: Callable[[], int] = importlib.import_module(name).main
    return main


def _end_with(status: int) -> Callable[[int, FrameType | None], NoReturn]:
    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        try:
            sys.stdout.flush()
        finally:
            os._exit(status)

    return end


_looks = 0
_end_at_once = _end_with(_INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _looks
    if not _is_importing(frame) or not hasattr(signal, "setitimer"):
        raise KeyboardInterrupt
    _looks += 1
    if _looks > _LOOKS:
        os.write(2, b"interrupted\n")
        _end_at_once(number, frame)
    signal.signal(signal.SIGINT, _end_at_once)  # for who cannot wait
    signal.signal(signal.SIGALRM, _look_again)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_AGAIN_S)


def _look_again(_number: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    if handler is _end_at_once:
        signal.signal(signal.SIGINT, handler := _interrupt)
    if callable(handler):  # the command may have set its own meanwhile
        handler(signal.SIGINT, frame)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORTING):
            return True
        frame = frame.f_back
    return False
