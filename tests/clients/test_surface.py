"""The public surfaces of the clients are one."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from clients import AsyncPredictionClient, PredictionClient, RestClient
from contract.parity import Predictor


def read_surface(kind: type[Any]) -> dict[str, list[tuple[str, Any, Any]]]:
    """Public method to the names, defaults and kinds of its parameters."""
    return {
        name: [
            (found.name, found.default, found.kind)
            for found in inspect.signature(member).parameters.values()
        ]
        for name, member in inspect.getmembers(kind, callable)
        if name == "__init__" or not name.startswith("_")
    }


def read_doc(kind: type[Any], name: str) -> str:
    """The documentation of one of its methods."""
    return inspect.getdoc(getattr(kind, name)) or ""


def test_the_blocking_and_the_asyncio_client_have_the_same_surface() -> None:
    surface = read_surface(PredictionClient)
    assert len(surface) == 9
    assert read_surface(AsyncPredictionClient) == surface


def test_the_rest_client_has_the_same_surface_but_for_predict_many() -> None:
    surface = read_surface(PredictionClient)
    surface.pop("predict_many")
    assert read_surface(RestClient) == surface


@pytest.mark.parametrize("kind", [PredictionClient, RestClient])
def test_every_public_method_says_what_it_takes_gives_and_raises(kind: type[Any]) -> None:
    for name, parameters in read_surface(kind).items():
        if name in ("__init__", "close"):
            continue
        doc = read_doc(kind, name)
        assert "Returns:" in doc, name
        assert "Raises:" in doc, name
        assert all(f"{parameter}: " in doc for parameter, _, _ in parameters[1:]), name


def test_every_method_of_the_asyncio_client_says_where_it_is_described() -> None:
    for name in read_surface(AsyncPredictionClient).keys() - {"__init__", "close"}:
        assert f"as `PredictionClient.{name}`." in read_doc(AsyncPredictionClient, name)


@pytest.mark.parametrize("kind", [AsyncPredictionClient, PredictionClient, RestClient])
def test_every_client_says_how_it_is_made(kind: type[Any]) -> None:
    doc = inspect.getdoc(kind) or ""
    assert "Raises:" in doc
    for parameter, _, _ in read_surface(kind)["__init__"][1:]:
        assert f"{parameter}: " in doc, parameter


def test_the_clients_are_predictors() -> None:
    def take(predictor: Predictor) -> None:
        """Checked by mypy."""

    with (
        PredictionClient("localhost:1", model_name="m") as one,
        RestClient("localhost:1", model_name="m") as two,
    ):
        take(one)
        take(two)
