"""TensorFlow when it is first needed: loaded once, tested, then like any other engine."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Sequence

from contract.errors import PlumblineError
from contract.servable import ServableId
from contract.signature import Batch
from serving.config.server import BatchingParameters
from serving.context import NO_CONTEXT, RequestContext
from serving.engines.batching import Batcher
from serving.engines.servable import Engine
from serving.observer import Observer

_log = logging.getLogger(__name__)

RETRY_S = 5.0
"""After a load that failed, calls are answered with its error for so long before another try."""


class LazyEngine(Engine):
    """An engine that is made when somebody first asks for it.

    Args:
        servable_id: For the log.
        make: Loads the engine; slow.
        check: Warmup and self-test of what the engine is in charge of; raises when it is unfit.
        batching: Parameters of batching across requests, or None.
        observer: Is told of batches.
    """

    def __init__(
        self,
        servable_id: ServableId,
        make: Callable[[], Engine],
        *,
        check: Callable[[Engine], None],
        batching: BatchingParameters | None,
        observer: Observer,
    ) -> None:
        self._id = servable_id
        self._make = make
        self._check = check
        self._parameters = batching
        self._observer = observer
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._batcher: Batcher | None = None
        self._failure: tuple[float, PlumblineError] | None = None
        self._is_closed = False
        self._loading: concurrent.futures.Future[Engine] | None = None

    @property
    def batcher(self) -> Batcher | None:
        return self._batcher

    @property
    def is_ready(self) -> bool:
        return self._engine is not None

    def load(self) -> Engine:
        """The engine, loaded now if it was not."""
        if self._engine is not None:
            return self._engine
        with self._lock:
            if self._engine is None:
                if self._failure is not None and time.monotonic() - self._failure[0] < RETRY_S:
                    # A new one each time: a raised error carries the frames it came through.
                    error = self._failure[1]
                    raise type(error)(error.message, code=error.code)
                try:
                    self._engine = self._load()
                except PlumblineError as error:
                    self._failure = (time.monotonic(), error)
                    raise
            return self._engine

    async def prepare(self) -> None:
        if self._engine is None:
            # One thread loads for all who wait, so that none of the pool's is held up, and
            # goes on when a caller's deadline has passed.
            loading = self._loading
            if loading is None or loading.done():
                loading = self._loading = concurrent.futures.Future()
                threading.Thread(
                    target=self._load_for, args=(loading,), name="load-tensorflow", daemon=True
                ).start()
            await asyncio.shield(asyncio.wrap_future(loading))

    def run(
        self,
        signature_name: str,
        inputs: Batch,
        *,
        output_filter: Sequence[str] = (),
        context: RequestContext = NO_CONTEXT,
    ) -> Batch:
        engine = self._engine or self.load()
        return engine.run(signature_name, inputs, output_filter=output_filter, context=context)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._batcher is not None:
                self._batcher.close()
            if self._engine is not None:
                self._engine.close()

    def _load_for(self, loading: concurrent.futures.Future[Engine]) -> None:
        try:
            loading.set_result(self.load())
        except BaseException as error:
            loading.set_exception(error)

    def _load(self) -> Engine:
        started = time.monotonic()
        engine = self._make()
        try:
            self._check(engine)
        except PlumblineError:
            engine.close()
            raise
        if self._parameters is not None and not self._is_closed:
            self._batcher = Batcher(
                self._id,
                lambda name, inputs, wanted, context: engine.run(
                    name, inputs, output_filter=wanted, context=context
                ),
                parameters=self._parameters,
                observer=self._observer,
            )
        _log.info("%s: TensorFlow loaded in %.1f s", self._id, time.monotonic() - started)
        return engine
