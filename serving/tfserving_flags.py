"""The flags of `tensorflow_model_server`, with its names and defaults.

Source: tensorflow_serving/model_servers/main.cc and server.h. Values that TensorFlow Serving
takes from the number of CPUs are 0 here.
"""

from __future__ import annotations

import dataclasses

from serving.flag_parsing import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorFlowServingFlags:
    """What both servers understand."""

    port: int = flag(
        8500, "TCP port of gRPC; 0 for none; -1 for any free port.", container="handled"
    )
    grpc_socket_path: str = flag(
        "", "Path of a UNIX socket that serves gRPC as well.", container="handled"
    )
    rest_api_port: int = flag(
        0, "TCP port of REST; 0 for none; -1 for any free port.", container="handled"
    )
    rest_api_num_threads: int = flag(
        0, "Threads of REST: the embedded server needs none.", embedded="ignored"
    )
    rest_api_timeout_in_ms: int = flag(30000, "Time limit of a REST call.")
    rest_api_enable_cors_support: bool = flag(False, "Answer CORS headers.")
    enable_batching: bool = flag(False, "Batch requests that arrive together (TensorFlow engine).")
    allow_version_labels_for_unavailable_models: bool = flag(
        False, "Let a new version label point at a version that is not AVAILABLE (yet)."
    )
    batching_parameters_file: str = flag(
        "", "Text-format BatchingParameters; wants --enable_batching.", container="handled"
    )
    enable_per_model_batching_parameters: bool = flag(
        False, "Read batching_params.pbtxt beside a model.", embedded="ignored"
    )
    model_config_file: str = flag(
        "", "Text-format ModelServerConfig: several models, policies, labels.", container="handled"
    )
    model_config_file_poll_wait_seconds: int = flag(
        0, "Seconds between two readings of --model_config_file; 0 reads it once."
    )
    model_name: str = flag("default", "Name of the one model; not with --model_config_file.")
    model_base_path: str = flag(
        "", "Base path of the one model; not with --model_config_file.", container="handled"
    )
    num_load_threads: int = flag(0, "Versions loaded at a time once the server is up; 0 means 1.")
    num_unload_threads: int = flag(
        0, "Threads that unload: one is enough here.", embedded="ignored"
    )
    max_num_load_retries: int = flag(5, "Tries after the first failed load of a version.")
    load_retry_interval_micros: int = flag(
        60_000_000, "Microseconds between two tries of a load; negative for none."
    )
    file_system_poll_wait_seconds: int = flag(
        1, "Seconds between two looks at the base paths; 0 looks once, negative never."
    )
    flush_filesystem_caches: bool = flag(
        True, "Flush caches of file systems after loads.", embedded="ignored"
    )
    tensorflow_session_parallelism: int = flag(
        0, "TensorFlow's threads, both within and across operations; 0 lets it choose."
    )
    tensorflow_session_config_file: str = flag(
        "", "Text-format ConfigProto of sessions.", embedded="ignored", container="handled"
    )
    tensorflow_intra_op_parallelism: int = flag(
        0, "TensorFlow's threads within an operation; 0 lets it choose."
    )
    tensorflow_inter_op_parallelism: int = flag(
        0, "TensorFlow's operations at a time; 0 lets it choose."
    )
    use_alts_credentials: bool = flag(False, "Google's ALTS: only in TensorFlow Serving.")
    ssl_config_file: str = flag(
        "", "Text-format SSLConfig with PEM texts: TLS, or mutual TLS.", container="handled"
    )
    platform_config_file: str = flag(
        "", "Text-format PlatformConfigMap.", embedded="ignored", container="handled"
    )
    per_process_gpu_memory_fraction: float = flag(
        0.0, "Fraction of a GPU's memory.", embedded="ignored"
    )
    saved_model_tags: str = flag("serve", "Comma-separated tags of the graph to load.")
    grpc_channel_arguments: str = flag("", "Arguments of the gRPC server: k=v,k=v.")
    grpc_max_threads: int = flag(
        0,
        "Threads of gRPC (0: 4 x CPUs); the embedded server has --max_concurrent_calls.",
        embedded="ignored",
        container="handled",
    )
    enable_model_warmup: bool = flag(True, "Replay a version's warmup records before it serves.")
    num_request_iterations_for_warmup: int = flag(
        0, "How often each warmup record is replayed; 0 means once."
    )
    version: bool = flag(False, "Print the version and end.", container="handled")
    monitoring_config_file: str = flag(
        "", "Text-format MonitoringConfig: metrics on or off, and their path.", container="handled"
    )
    remove_unused_fields_from_bundle_metagraph: bool = flag(
        True, "Save memory in TensorFlow Serving.", embedded="ignored"
    )
    prefer_tflite_model: bool = flag(False, "Serve model.tflite where a version has one.")
    num_tflite_pools: int = flag(0, "Pools of TFLite interpreters.", embedded="ignored")
    num_tflite_interpreters_per_pool: int = flag(
        1, "TFLite interpreters in a pool.", embedded="ignored"
    )
    enable_signature_method_name_check: bool = flag(
        False, "Check a signature's method_name on Classify and Regress."
    )
    xla_cpu_compilation_enabled: bool = flag(False, "XLA on CPUs.", embedded="ignored")
    xla_gpu_compilation_enabled: bool = flag(False, "XLA on GPUs.", embedded="ignored")
    enable_profiler: bool = flag(True, "TensorFlow's profiler service.", embedded="ignored")
    thread_pool_factory_config_file: str = flag(
        "", "Text-format ThreadPoolConfig.", embedded="ignored", container="handled"
    )
    mixed_precision: str = flag("", "Mixed precision of TensorFlow Serving.", embedded="ignored")
    skip_initialize_tpu: bool = flag(False, "TPUs of TensorFlow Serving.", embedded="ignored")
    enable_grpc_healthcheck_service: bool = flag(
        False, "Serve grpc.health.v1 (the embedded server always does, but in --strict_compat)."
    )
    enable_serialization_as_tensor_content: bool = flag(
        False, "Answer tensors as tensor_content instead of the typed fields."
    )
