"""The name that benchmarks import; the function's home is `exporter.processes`."""

from exporter.processes import silence_tensorflow as silence_tensorflow
