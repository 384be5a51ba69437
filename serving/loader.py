"""From a version directory to a servable, checked before anyone may ask it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from contract.servable import ServableId
from serving.servable import Observer, Servable

ENGINES = ("auto", "tensorflow", "litert")


@dataclasses.dataclass(frozen=True, slots=True)
class BatchingParameters:
    """TensorFlow Serving's `BatchingParameters`, with its defaults.

    Attributes:
        max_batch_size: Rows of one batch.
        batch_timeout_micros: How long the first task of a batch waits for company.
        max_enqueued_batches: Full batches that may wait; beyond them UNAVAILABLE.
        num_batch_threads: Batches run at a time; 0 for the number of CPUs.
        allowed_batch_sizes: Sizes to pad up to; increasing, the last one `max_batch_size`.
        pad_variable_length_inputs: Pad ragged inputs with zeros to one shape.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 0
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class LoadOptions:
    """How versions are loaded.

    Attributes:
        engine: `auto`, `tensorflow` or `litert`.
        preload_signatures: Load TensorFlow at once for signatures that need it.
        prefer_tflite_model: Serve versions that hold only `model.tflite`, as the flag of
            that name does.
        batching: Parameters of batching across requests, or None for none.
        num_threads: Threads inside one run of LiteRT.
        tensorflow_intra_op_threads: 0 lets TensorFlow choose.
        tensorflow_inter_op_threads: 0 lets TensorFlow choose.
        enable_model_warmup: Replay warmup records before a version is AVAILABLE.
        saved_model_tags: Tags of the meta graph.
        observer: Is told choices, self-tests and batches.
    """

    engine: str = "auto"
    preload_signatures: bool = False
    prefer_tflite_model: bool = False
    batching: BatchingParameters | None = None
    num_threads: int = 1
    tensorflow_intra_op_threads: int = 0
    tensorflow_inter_op_threads: int = 0
    enable_model_warmup: bool = True
    saved_model_tags: tuple[str, ...] = ("serve",)
    observer: Observer = dataclasses.field(default_factory=Observer)


def load_servable(servable_id: ServableId, version_dir: Path, options: LoadOptions) -> Servable:
    """Loads a version, checks it, and answers for it.

    In order: the manifest's checksums when there is a manifest, an engine for each
    signature, warmup records, the golden self-test.

    Args:
        servable_id: Model name and version.
        version_dir: `<base_path>/<version>`.
        options: See `LoadOptions`.

    Raises:
        ManifestError: A checksum differs, or the files cannot be read.
        VerificationError: The golden self-test failed.
        UnimplementedError: An extra that the version needs is not installed.
        PlumblineError: A warmup record failed, or the model cannot be loaded.
    """
    raise NotImplementedError
