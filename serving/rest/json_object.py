"""JSON objects in which a key may come more than once, as RapidJSON keeps them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any


class JsonObject(dict[str, Any]):
    """An object with equal keys: as a dict it has the first of each.

    Args:
        members: Every key and value, in order.

    Attributes:
        members: As given.
    """

    def __init__(self, members: Sequence[tuple[str, Any]]) -> None:
        super().__init__()
        self.members = members
        for key, value in members:
            self.setdefault(key, value)


def make_object(members: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A plain dict, or a `JsonObject` if there are equal keys."""
    plain = dict(members)
    return plain if len(plain) == len(members) else JsonObject(members)


def list_members(value: dict[str, Any]) -> Collection[tuple[str, Any]]:
    """Every key and value of an object, in order, equal keys included."""
    return value.members if isinstance(value, JsonObject) else value.items()
