"""The public surfaces of the clients are one."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from clients import AsyncPredictionClient, PredictionClient, RestClient
from contract.parity import Predictor


def read_surface(kind: type[Any]) -> dict[str, tuple[Any, ...]]:
    """Method name to parameters with defaults and kinds, and documentation."""
    return {
        name: (
            [
                (found.name, found.default, found.kind)
                for found in inspect.signature(member).parameters.values()
            ],
            inspect.getdoc(member),
        )
        for name, member in vars(kind).items()
        if callable(member) and (name == "__init__" or not name.startswith("_"))
    }


def test_the_synchronous_and_the_asyncio_client_have_the_same_surface() -> None:
    assert read_surface(PredictionClient) == read_surface(AsyncPredictionClient)


def test_the_rest_client_has_the_same_surface_but_for_predict_many() -> None:
    surface = read_surface(PredictionClient)
    surface.pop("predict_many")
    assert read_surface(RestClient) == surface


@pytest.mark.parametrize("kind", [PredictionClient, AsyncPredictionClient, RestClient])
def test_every_public_method_says_what_it_takes_gives_and_raises(kind: type[Any]) -> None:
    for name, (parameters, doc) in read_surface(kind).items():
        if name in ("__init__", "close"):
            continue
        assert "Raises:" in doc, name
        assert all(f"{parameter}: " in doc for parameter, _, _ in parameters[1:]), name


def test_the_clients_are_predictors() -> None:
    def take(predictor: Predictor) -> None:
        """Checked by mypy."""

    with (
        PredictionClient("localhost:1", model_name="m") as one,
        RestClient("localhost:1", model_name="m") as two,
    ):
        take(one)
        take(two)
