"""Policies choose the versions that TensorFlow Serving would choose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ConfigError, RequestError
from contract.servable import All, Latest, ModelSpec, Specific, choose_versions

versions = st.lists(st.integers(0, 2**63 - 1), max_size=8)


@given(found=versions, n=st.integers(1, 5))
def test_latest_chooses_the_highest_versions(found: list[int], n: int) -> None:
    assert choose_versions(Latest(n), found) == sorted(set(found))[-n:]


@given(found=versions)
def test_all_chooses_every_version_once_in_ascending_order(found: list[int]) -> None:
    assert choose_versions(All(), found) == sorted(set(found))


def test_specific_chooses_only_versions_that_exist() -> None:
    assert choose_versions(Specific((3, 1, 9)), [1, 2, 3]) == [1, 3]


def test_latest_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        Latest(0)


def test_a_spec_with_version_and_label_is_refused() -> None:
    with pytest.raises(RequestError, match="give one of them"):
        ModelSpec("mlp", version=1, version_label="stable")
