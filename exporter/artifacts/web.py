"""What LiteRT.js runs, and so which signatures the variant `web` carries.

LiteRT.js (`@litertjs/core`) runs any signature of a file by its name. It opens none that has a
tensor of another type than its own three, and compiles none whose sizes are not all fixed: one
such signature would cost the file.
"""

from __future__ import annotations

from contract.signature import Signature

_DTYPES = ("float32", "int32", "uint8")
"""Those that its `datatypes.ts` has an array of JavaScript for."""


def find_obstacle(signature: Signature) -> str:
    """What in a signature LiteRT.js cannot run once the batch is 1; "" where nothing is.

    The other axes of outputs are not looked at: a batch that is fixed may fix them.
    """
    for spec in (*signature.inputs.values(), *signature.outputs.values()):
        if spec.dtype not in _DTYPES:
            return f"{signature.name} has {spec.name}, {spec.describe()}"
    for spec in signature.inputs.values():
        if spec.shape is None or None in spec.shape[1:]:
            return f"{signature.name} takes {spec.name}, {spec.describe()}"
    return ""


def find_free_axis(signature: Signature, fixed_rows: int) -> str:
    """What in a signature of a file has a size that is not fixed; "" where nothing is.

    `fixed_rows` is `LiteModel.fixed_rows`: what it is not 0 for, shows a fixed batch as a free one.
    """
    for spec in (*signature.inputs.values(), *signature.outputs.values()):
        if spec.shape is None or None in spec.shape[1 if fixed_rows else 0 :]:
            return f"{spec.name} of {signature.name} is {spec.describe()}"
    return ""
