"""The one flag table of the server: TensorFlow Serving's flags, then our own."""

from __future__ import annotations

import dataclasses

from serving.flag_parsing import flag
from serving.tfserving_flags import TensorFlowServingFlags

MEBIBYTE = 2**20
ENGINES = ("auto", "tensorflow", "litert")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerFlags(TensorFlowServingFlags):
    """Every flag of `serving embedded` and `serving container`, with its default."""

    host: str = flag(
        "127.0.0.1",
        "Address to listen on; 0.0.0.0 or [::] for every one, as --strict_compat has it.",
        container="handled",
    )
    engine: str = flag("auto", "auto, tensorflow or litert.", container="refused")
    preload_signatures: bool = flag(
        False,
        "Load TensorFlow at once for the signatures that need it, not when first asked.",
        container="ignored",
    )
    workers: int = flag(
        1, "Processes that share the ports; limits on calls hold for each.", container="ignored"
    )
    litert_num_threads: int = flag(1, "Threads inside one run of LiteRT.", container="ignored")
    strict_compat: bool = flag(
        False, "Turn the deliberate differences from TensorFlow Serving off.", container="ignored"
    )
    drain_timeout_s: float = flag(
        30.0, "How long SIGTERM waits for calls in flight.", container="handled"
    )
    port_file: str = flag(
        "", "File to write once the ports are open: JSON with pid and ports.", container="handled"
    )
    log_level: str = flag("info", "debug, info, warning or error.", container="handled")

    auth_token_file: str = flag(
        "", "File of bearer tokens, one a line; calls without one are refused.", container="refused"
    )
    enable_reload_config: bool = flag(
        False, "Allow HandleReloadConfigRequest.", container="handled"
    )
    max_message_bytes: int = flag(
        256 * MEBIBYTE, "Largest gRPC message, both ways.", container="refused"
    )
    max_json_bytes: int = flag(64 * MEBIBYTE, "Largest REST body as sent.", container="refused")
    max_json_depth: int = flag(64, "Deepest nesting of a REST body.", container="refused")
    max_inflated_bytes: int = flag(
        256 * MEBIBYTE, "Largest REST body after gunzip.", container="refused"
    )
    max_concurrent_calls: int = flag(
        1000,
        "Calls in flight; beyond them RESOURCE_EXHAUSTED; 0 for no limit.",
        container="refused",
    )
    max_queued_calls: int = flag(
        1000,
        "Calls that wait for an engine's thread; beyond them UNAVAILABLE; 0 for no limit.",
        container="refused",
    )

    request_log_dir: str = flag(
        "",
        "Folder for PredictionLog records of sampled requests.",
        container="refused",
    )
    request_log_sampling_rate: float = flag(
        0.0,
        "Share of requests to log where a model has no logging_config.",
        container="refused",
    )
    request_log_max_bytes: int = flag(
        256 * MEBIBYTE,
        "Bytes of request logs to keep; the oldest file goes first.",
        container="refused",
    )
