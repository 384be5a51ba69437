"""Writes `contract/wire/plumbline_wire` from `contract/wire/protos` (development only).

    python -m contract.wire.generate [OUTPUT_ROOT]

The protos are given to the compiler under the path of the package that holds their
generated code, so that its imports are right as they come out. Needs grpcio-tools.
"""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = "contract/wire/plumbline_wire"
PROTOS = Path(__file__).parent / "protos"
ROOT = Path(__file__).parents[2]


def generate_code(output_root: Path = ROOT) -> int:
    """Compiles every proto into `<output_root>/contract/wire/plumbline_wire`.

    Returns:
        The compiler's exit code, 0 when all is well.
    """
    import grpc_tools  # type: ignore[import-untyped]
    from grpc_tools import protoc

    (output_root / PACKAGE).mkdir(parents=True, exist_ok=True)
    builtin = Path(grpc_tools.__file__).parent / "_proto"
    names = sorted(path.name for path in PROTOS.glob("*.proto"))
    return int(
        protoc.main(
            [
                "protoc",
                f"-I{PACKAGE}={PROTOS}",
                f"-I{builtin}",
                f"--python_out={output_root}",
                f"--pyi_out={output_root}",
                *(f"{PACKAGE}/{name}" for name in names),
            ]
        )
    )


if __name__ == "__main__":
    sys.exit(generate_code(*map(Path, sys.argv[1:2])))
