"""Hops: the ways to ask a model, each behind the same `predict`."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clients.on_device import OnDevicePredictor, list_variants
from contract import layout
from contract.errors import ConfigError
from contract.parity import Predictor, Tolerance, read_tolerances
from contract.signature import Array, Batch

GRPC, GRPC_AIO, REST = "grpc", "grpc-aio", "rest"
SERVER_HOPS = (GRPC, GRPC_AIO, REST)
ON_DEVICE = "on-device:"
ALL = "all"

HOPS = (*SERVER_HOPS, *(f"{ON_DEVICE}{variant}" for variant in layout.VARIANTS))


@dataclasses.dataclass(frozen=True, slots=True)
class Hop:
    """One way to ask.

    Attributes:
        name: For example `grpc-aio` or `on-device:int8`.
        tolerance: How far its answers may be from golden.
        open: Connects; a context manager that gives a Predictor.
        signature_names: What it can answer; None when only the server knows.
    """

    name: str
    tolerance: Tolerance
    open: Callable[[], Any]
    signature_names: frozenset[str] | None = None


def list_hops(via: str, version_dir: Path | None) -> list[str]:
    """The names of the hops that `--via` asks for.

    Args:
        via: Names with commas between, or `all`.
        version_dir: Whose variants belong to `all`.

    Raises:
        ConfigError: An unknown name; the message lists the known ones.
    """
    variants = list_variants(version_dir) if version_dir is not None else []
    everything = [*SERVER_HOPS, *(f"{ON_DEVICE}{variant}" for variant in variants)]
    names: list[str] = []
    for name in (part.strip() for part in via.split(",")):
        if name not in (ALL, *HOPS):
            raise ConfigError(f"--via {name!r}: give {', '.join(HOPS)} or {ALL}")
        names += everything if name == ALL else [name]
    return list(dict.fromkeys(names))


def make_device_hop(name: str, version_dir: Path | None, *, num_threads: int = 1) -> Hop:
    """The hop `on-device:VARIANT`.

    Raises:
        ConfigError: There is no version directory, or no such variant in it.
        PlumblineError: The variant cannot be read.
    """
    if version_dir is None:
        raise ConfigError(f"--via {name} needs --version_dir, where the variant is")
    variant = name.removeprefix(ON_DEVICE)
    if variant not in layout.VARIANTS:
        raise ConfigError(f"--via {name}: give one of {', '.join(layout.VARIANTS)}")
    predictor = OnDevicePredictor(version_dir, variant=variant, num_threads=num_threads)

    @contextmanager
    def open_predictor() -> Iterator[Predictor]:
        with predictor:
            yield predictor

    tolerance = read_tolerances(version_dir).of_variant(variant)
    return Hop(name, tolerance, open_predictor, frozenset(predictor.signatures))


class Pinned:
    """A client of a server, asked for one version only.

    Args:
        client: A PredictionClient or a RestClient.
        version: The version, or None.
        version_label: The label, or None.
    """

    def __init__(
        self, client: Any, *, version: int | None = None, version_label: str | None = None
    ) -> None:
        self._client = client
        self._version = {"version": version, "version_label": version_label}

    def predict(self, batch: Batch, *, signature_name: str) -> Batch:
        """Asks the server; see `PredictionClient.predict`."""
        answer: dict[str, Array] = self._client.predict(
            batch, signature_name=signature_name, **self._version
        )
        return answer


class Blocking:
    """An AsyncPredictionClient behind plain calls, with an event loop of its own.

    Args:
        connect: Makes the client, within the loop.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._runner = asyncio.Runner()
        self._client: Any = None

    def __enter__(self) -> Blocking:
        self._runner.__enter__()
        self._client = self._runner.run(self._open())
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._runner.run(self._client.__aexit__(*error))
        finally:
            self._runner.close()

    async def _open(self) -> Any:
        return await self._connect().__aenter__()

    def predict(self, batch: Batch, **options: Any) -> Batch:
        """Asks the server; see `AsyncPredictionClient.predict`."""
        answer: dict[str, Array] = self._runner.run(self._client.predict(batch, **options))
        return answer
