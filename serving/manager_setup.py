"""A manager as a server's configuration wants it."""

from __future__ import annotations

import functools

from serving.config import ServerConfig
from serving.loader import LoadOptions, load_servable
from serving.loading import LoadPolicy
from serving.manager import ServableManager
from serving.metrics import Metrics


def make_manager(config: ServerConfig, metrics: Metrics) -> ServableManager:
    """A manager that loads with `serving.loader` and tells `metrics`."""
    options = make_load_options(config, metrics)
    manager = ServableManager(
        functools.partial(load_servable, options=options),
        policy=LoadPolicy(
            max_num_load_retries=config.max_num_load_retries,
            load_retry_interval_s=config.load_retry_interval_micros / 1e6,
            num_load_threads=config.num_load_threads,
            strict=config.strict_compat,
        ),
        poll_wait_s=config.file_system_poll_wait_seconds,
        allow_labels_for_unavailable=config.allow_version_labels_for_unavailable_models,
    )
    manager.monitor.subscribe(metrics.observe_state)
    return manager


def make_load_options(config: ServerConfig, metrics: Metrics) -> LoadOptions:
    """The flags that concern loading."""
    both = config.tensorflow_session_parallelism
    return LoadOptions(
        engine=config.engine,
        preload_signatures=config.preload_signatures,
        prefer_tflite_model=config.prefer_tflite_model,
        batching=config.batching,
        num_threads=config.litert_num_threads,
        tensorflow_intra_op_threads=config.tensorflow_intra_op_parallelism or both,
        tensorflow_inter_op_threads=config.tensorflow_inter_op_parallelism or both,
        enable_model_warmup=config.enable_model_warmup,
        num_warmup_iterations=config.num_request_iterations_for_warmup,
        saved_model_tags=tuple(config.saved_model_tags.split(",")),
        observer=metrics,
    )
