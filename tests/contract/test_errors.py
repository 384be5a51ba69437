"""The error tree is what its docstring draws."""

import re

from contract import errors
from contract.errors import ERRORS_BY_NAME, Code, PlumblineError


def test_the_drawn_tree_is_the_tree_of_classes() -> None:
    drawn = re.findall(r"^[│├└─ ]*(\w+Error)\s+([A-Z_]+)", errors.__doc__ or "", re.M)
    assert {name for name, _ in drawn} | {"PlumblineError"} == set(ERRORS_BY_NAME)
    for name, code in drawn:
        assert ERRORS_BY_NAME[name].default_code is Code[code], name


def test_an_error_can_carry_another_code_than_its_class() -> None:
    error = PlumblineError("no", code=Code.ABORTED)
    assert (error.code, error.message, str(error)) == (Code.ABORTED, "no", "no")
