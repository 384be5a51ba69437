"""`python -m tests.tritonclient.echo_model DIR`: a SavedModel that answers what it is given.

`serving_default` adds and multiplies two inputs; `echo_<dtype>` gives back any tensor of a dtype
that the Open Inference Protocol has, and how many elements it has.
"""

from __future__ import annotations

import sys

DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "bfloat16", "string"),
)


def main(version_dir: str) -> None:
    """Writes it."""
    import tensorflow as tf

    def make_echo(dtype: str) -> object:
        @tf.function(input_signature=[tf.TensorSpec(None, tf.as_dtype(dtype), name="x")])
        def echo(x):
            return {"y": tf.identity(x), "size": tf.size(x)}

        return echo.get_concrete_function()

    rows = tf.TensorSpec((None, 3), tf.float32)

    @tf.function(input_signature=[rows, tf.TensorSpec((None, 3), tf.int32)])
    def combine(a, b):
        b = tf.cast(b, tf.float32)
        return {"sum": a + b, "product": a * b}

    @tf.function(input_signature=[rows])
    def rotate(x):
        return {"z": tf.complex(x, -x)}

    tf.saved_model.save(
        tf.Module(),
        version_dir,
        signatures={
            "serving_default": combine.get_concrete_function(),
            "complex": rotate.get_concrete_function(),
            **{f"echo_{dtype}": make_echo(dtype) for dtype in DTYPES},
        },
    )


if __name__ == "__main__":
    main(sys.argv[1])
