"""An observer that remembers what it was told."""

from __future__ import annotations

from contract.servable import ServableId
from serving.observer import EngineChoice, Observer


class Seen(Observer):
    """Remembers.

    Attributes:
        requests: (model, status) of each.
        latencies: (model, api, entrypoint) of those that were answered.
        choices: Signature name to who answers it.
        results: Signature name to what its self-test said.
        warmups: How many versions were warmed up.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.latencies: list[tuple[str, str, str]] = []
        self.choices: dict[str, EngineChoice] = {}
        self.results: dict[str, str] = {}
        self.warmups = 0

    def observe_request(self, model_name: str, status: str) -> None:
        self.requests.append((model_name, status))

    def observe_request_latency(
        self, model_name: str, api: str, entrypoint: str, latency_us: float
    ) -> None:
        assert latency_us > 0
        self.latencies.append((model_name, api, entrypoint))

    def observe_engine(
        self, servable_id: ServableId, signature_name: str, choice: EngineChoice
    ) -> None:
        self.choices[signature_name] = choice

    def observe_self_test(self, servable_id: ServableId, signature_name: str, result: str) -> None:
        self.results[signature_name] = result

    def observe_warmup(self, servable_id: ServableId, latency_us: float) -> None:
        self.warmups += 1
