"""The one flag table of the server, and how a command line is read by it.

A flag is a field of a frozen dataclass, made by `flag()`; its name, type and default are the
field's. So one table serves the parser, `--help`, the container and the documentation.

Flags are written `--flag=value`, `--flag value`, and a bare `--flag` for true. The rules are those
of `tensorflow/core/util/command_line_flags.cc`, where unknown flags are printed and the server
goes on. Here it goes on only where an unknown flag resembles none that is known: a server that was
meant to want a token must not answer everyone because its flag was misspelt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

from contract.errors import ConfigError

FlagValue = bool | int | float | str
T = TypeVar("T")

Embedded = Literal["kept", "ignored", "refused"]
Container = Literal["passed", "refused", "handled", "ignored"]
ServerKind = Literal["embedded", "container"]

MEBIBYTE = 2**20
AUTO = "auto"
ENGINES = (AUTO, "tensorflow", "litert")
TEXT, JSON = "text", "json"
LOG_FORMATS = (TEXT, JSON)
LOG_LEVELS = ("debug", "info", "warning", "error")

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_RESEMBLES = 0.75
_GUARDS = {
    *("auth", "authorization", "cert", "certificate", "credentials", "key", "mtls", "password"),
    *("secret", "ssl", "tls", "token", "tokens"),
}
"""Words of flags that say who may call."""
_NOTES: dict[tuple[ServerKind, str], str] = {
    ("embedded", "ignored"): " [accepted and ignored]",
    ("embedded", "refused"): " [refused]",
    ("container", "ignored"): " [Plumbline's own image only]",
    ("container", "refused"): " [Plumbline's own image only]",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Flag:
    """One flag of the server.

    Attributes:
        name: Without the dashes.
        default: Its type is the flag's type.
        description: One or two sentences for `--help`.
        embedded: Whether the embedded server keeps the flag, takes and ignores it, since it
            tunes what is not there, or refuses it, since ignoring it would change answers,
            devices or safety.
        container: What `serving container` does with it: passes it to tensorflow_model_server,
            handles it itself, refuses it, since ignoring it would be unsafe, or ignores it. All
            of them reach an image of Plumbline's own.
        reason: Why the embedded server does not keep it; for `--help` too.
        needs: The flag without which nothing comes of it there; "" for none.
        engine: The one engine that heeds it there; "" for any.
        choices: Its values, where they are few; those of a bool go without saying.
    """

    name: str
    default: FlagValue
    description: str
    embedded: Embedded = "kept"
    container: Container = "passed"
    reason: str = ""
    needs: str = ""
    engine: str = ""
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class UnknownFlag:
    """An argument that is no flag.

    Attributes:
        argument: As given, without what may be a secret.
        suggestion: The nearest flag's name, or "".
        is_guard: Whether it seems to say who may call.
    """

    argument: str
    suggestion: str
    is_guard: bool = False

    @property
    def is_fatal(self) -> bool:
        """Whether to go on without it could be what nobody meant."""
        return bool(self.suggestion) or self.is_guard

    def __str__(self) -> str:
        hint = ""
        if self.suggestion:
            hint = f" (did you mean --{self.suggestion}?)"
        elif self.is_guard:
            hint = " (who may call is said by --ssl_config_file and --auth_token_file)"
        return f"unknown argument: {self.argument}{hint}"


def flag(
    default: T,
    description: str,
    *,
    embedded: Embedded = "kept",
    container: Container = "passed",
    reason: str = "",
    needs: str = "",
    engine: str = "",
    choices: tuple[str, ...] = (),
) -> T:
    """A dataclass field that is a flag; see `Flag` for the arguments."""
    metadata = {
        "description": description,
        "embedded": embedded,
        "container": container,
        "reason": reason,
        "needs": needs,
        "engine": engine,
        "choices": choices,
    }
    made: T = dataclasses.field(default=default, metadata=metadata)
    return made


def list_flags(table: type[TensorFlowServingFlags]) -> list[Flag]:
    """The flags that `table` declares, TensorFlow Serving's first."""
    return [
        Flag(field.name, getattr(table, field.name), **field.metadata)
        for field in dataclasses.fields(table)
    ]


def parse_flags(
    arguments: Sequence[str], flags: Iterable[Flag]
) -> tuple[dict[str, FlagValue], list[UnknownFlag]]:
    """Reads a command line."""
    known = {one.name: one for one in flags}
    values: dict[str, FlagValue] = {}
    unknown: list[UnknownFlag] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, text = argument.removeprefix("--").partition("=")
        found = known.get(name) if argument.startswith("--") else None
        if found is None:
            unknown.append(_guess(argument, known))
            # The value of an unknown flag is no argument of its own.
            if argument.startswith("--") and not equals and rest and not rest[0].startswith("--"):
                rest.pop(0)
        elif equals:
            values[name] = _parse_value(found, text)
        else:
            values[name] = _take_value(found, rest)
    return values, unknown


def _guess(argument: str, known: Iterable[str]) -> UnknownFlag:
    """What an argument that is no flag may have been meant to be."""
    import difflib

    dashed = argument.startswith("-")
    given = argument.lstrip("-").partition("=")[0].replace("-", "_").lower()
    words = set(given.split("_"))
    near = difflib.get_close_matches(given, known, n=1, cutoff=_RESEMBLES)
    if not near and dashed:
        # --max_json, --token; and --max_json_bytes_per_call
        near = [name for name in known if _shares_words(words, set(name.split("_")))]
    is_guard = dashed and bool(words & _GUARDS)
    if is_guard or (near and set(near[0].split("_")) & _GUARDS):
        argument = argument.partition("=")[0]  # --auth_token=SECRET
    return UnknownFlag(argument, near[0] if near else "", is_guard)


def _shares_words(given: set[str], known: set[str]) -> bool:
    return given <= known or (len(known) > 1 and known <= given)


def _take_value(found: Flag, rest: list[str]) -> FlagValue:
    if isinstance(found.default, bool):
        if rest and rest[0].lower() in ("true", "false"):
            return _parse_value(found, rest.pop(0))
        return True
    # A negative number begins with one dash, a flag with two.
    if not rest or rest[0].startswith("--"):
        raise ConfigError(
            f"--{found.name} wants a value: --{found.name}={str(found.default) or 'TEXT'}"
        )
    return _parse_value(found, rest.pop(0))


def _parse_value(found: Flag, text: str) -> FlagValue:
    try:
        if isinstance(found.default, bool):
            return _BOOLEANS[text.lower()] if text else True
        return type(found.default)(text)
    except (KeyError, ValueError):
        kind = {"bool": "true or false", "int": "an integer", "float": "a number"}
        raise ConfigError(
            f"--{found.name}={text}: it wants {kind[type(found.default).__name__]}"
        ) from None


def describe_flags(flags: Iterable[Flag], server: ServerKind) -> str:
    """The table of `--help`: a line with name and default, then what the flag is for."""
    from contract.console.terminal import fold

    lines = []
    for one in flags:
        default = str(one.default).lower() if isinstance(one.default, bool) else repr(one.default)
        fate = one.embedded if server == "embedded" else one.container
        note = _NOTES.get((server, fate), "")
        text = f"{one.description} {one.reason}" if server == "embedded" else one.description
        lines += [f"  --{one.name}={default}{note}", fold(text.rstrip(), indent=" " * 6)]
    return "\n".join(lines)


# Nobody makes one of these, so that what makes them is not generated: it costs milliseconds.
@dataclasses.dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class TensorFlowServingFlags:
    """The flags of `tensorflow_model_server`, with its names and defaults.

    Source: tensorflow_serving/model_servers/main.cc and server.h. Values that TensorFlow Serving
    takes from the number of CPUs are 0 here.
    """

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
        0, "Threads of REST.", embedded="ignored", reason="Calls cost no thread here."
    )
    rest_api_timeout_in_ms: int = flag(30000, "Time limit of a REST call.", needs="rest_api_port")
    rest_api_enable_cors_support: bool = flag(False, "Answer CORS headers.", needs="rest_api_port")
    enable_batching: bool = flag(
        False, "Batch requests that arrive together (TensorFlow engine).", engine="tensorflow"
    )
    allow_version_labels_for_unavailable_models: bool = flag(
        False, "Let a new version label point at a version that is not AVAILABLE (yet)."
    )
    batching_parameters_file: str = flag(
        "", "Text-format BatchingParameters; wants --enable_batching.", container="handled"
    )
    enable_per_model_batching_parameters: bool = flag(
        False,
        "With --enable_batching: batch a version by the batching_params.pbtxt in its folder, and "
        "do not batch one without.",
        needs="enable_batching",
    )
    model_config_file: str = flag(
        "", "Text-format ModelServerConfig: several models, policies, labels.", container="handled"
    )
    model_config_file_poll_wait_seconds: int = flag(
        0,
        "Seconds between two readings of --model_config_file; 0 reads it once.",
        needs="model_config_file",
    )
    model_name: str = flag("default", "Name of the one model; not with --model_config_file.")
    model_base_path: str = flag(
        "", "Base path of the one model; not with --model_config_file.", container="handled"
    )
    num_load_threads: int = flag(0, "Versions loaded at a time once the server is up; 0 means 1.")
    num_unload_threads: int = flag(
        0, "Threads that unload.", embedded="ignored", reason="One is enough here."
    )
    max_num_load_retries: int = flag(5, "Tries after the first failed load of a version.")
    load_retry_interval_micros: int = flag(
        60_000_000,
        "Microseconds between two tries of a load; negative for none.",
        needs="max_num_load_retries",
    )
    file_system_poll_wait_seconds: int = flag(
        1, "Seconds between two looks at the base paths; 0 looks once, negative never."
    )
    flush_filesystem_caches: bool = flag(
        True,
        "Flush caches of file systems after loads.",
        embedded="ignored",
        reason="The system's own cache needs no flush.",
    )
    tensorflow_session_parallelism: int = flag(
        0,
        "TensorFlow's threads, both within and across operations; 0 lets it choose.",
        engine="tensorflow",
    )
    tensorflow_session_config_file: str = flag(
        "",
        "Text-format ConfigProto of TensorFlow's sessions; flags of threads and memory win.",
        container="handled",
        engine="tensorflow",
    )
    tensorflow_intra_op_parallelism: int = flag(
        0, "TensorFlow's threads within an operation; 0 lets it choose.", engine="tensorflow"
    )
    tensorflow_inter_op_parallelism: int = flag(
        0, "TensorFlow's operations at a time; 0 lets it choose.", engine="tensorflow"
    )
    use_alts_credentials: bool = flag(
        False,
        "Google's ALTS.",
        embedded="refused",
        reason="Only TensorFlow Serving has it; use --ssl_config_file.",
    )
    ssl_config_file: str = flag(
        "", "Text-format SSLConfig with PEM texts: TLS, or mutual TLS.", container="handled"
    )
    platform_config_file: str = flag(
        "",
        "Text-format PlatformConfigMap.",
        embedded="refused",
        container="handled",
        reason="It replaces how models are loaded; there are --engine, --tensorflow_* flags and "
        "--batching_parameters_file instead.",
    )
    per_process_gpu_memory_fraction: float = flag(
        0.0,
        "Fraction of a GPU's memory that TensorFlow takes at once; 0 lets it choose.",
        engine="tensorflow",
    )
    saved_model_tags: str = flag("serve", "Comma-separated tags of the graph to load.")
    grpc_channel_arguments: str = flag("", "Arguments of the gRPC server: k=v,k=v.")
    grpc_max_threads: int = flag(
        0,
        "Threads of gRPC (0: 4 x CPUs).",
        embedded="ignored",
        container="handled",
        reason="Calls cost no thread here; calls in flight are limited by --max_concurrent_calls.",
    )
    enable_model_warmup: bool = flag(True, "Replay a version's warmup records before it serves.")
    num_request_iterations_for_warmup: int = flag(
        0, "How often each warmup record is replayed; 0 means once.", needs="enable_model_warmup"
    )
    version: bool = flag(False, "Print the version and end.", container="handled")
    monitoring_config_file: str = flag(
        "",
        "Text-format MonitoringConfig: metrics on or off, and their path.",
        container="handled",
        needs="rest_api_port",
    )
    remove_unused_fields_from_bundle_metagraph: bool = flag(
        True,
        "Save memory in TensorFlow Serving.",
        embedded="ignored",
        reason="Nothing of the kind is kept here.",
    )
    prefer_tflite_model: bool = flag(
        False, "Serve model.tflite where a version has one.", engine="litert"
    )
    num_tflite_pools: int = flag(
        0,
        "Pools of TFLite interpreters.",
        embedded="ignored",
        reason="There is an interpreter for each thread that runs one.",
    )
    num_tflite_interpreters_per_pool: int = flag(
        1,
        "TFLite interpreters in a pool.",
        embedded="ignored",
        reason="There is an interpreter for each thread that runs one.",
    )
    enable_signature_method_name_check: bool = flag(
        False, "Check a signature's method_name on Classify and Regress."
    )
    xla_cpu_compilation_enabled: bool = flag(
        False,
        "Let models use XLA on CPUs (in the embedded server they may without it).",
        engine="tensorflow",
    )
    xla_gpu_compilation_enabled: bool = flag(
        False,
        "Let models use XLA on GPUs (in the embedded server they may without it).",
        engine="tensorflow",
    )
    enable_profiler: bool = flag(
        True, "TensorFlow's profiler service (the embedded server has none to turn off)."
    )
    thread_pool_factory_config_file: str = flag(
        "",
        "Text-format ThreadPoolConfig.",
        embedded="ignored",
        container="handled",
        reason="--tensorflow_*_parallelism and --litert_num_threads set threads here.",
    )
    mixed_precision: str = flag(
        "",
        "Let TensorFlow Serving compute in a shorter type than the model's, such as bfloat16.",
        embedded="refused",
        reason="Answers would not be those that were verified; export the model in that type.",
    )
    skip_initialize_tpu: bool = flag(False, "Leave TPUs alone (the embedded server always does).")
    enable_grpc_healthcheck_service: bool = flag(
        False, "Serve grpc.health.v1 (the embedded server always does, but in --strict_compat)."
    )
    enable_serialization_as_tensor_content: bool = flag(
        False, "Answer tensors as tensor_content instead of the typed fields."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerFlags(TensorFlowServingFlags):
    """Every flag of `serving embedded` and `serving container`, with its default."""

    host: str = flag(
        "127.0.0.1",
        "Address or name to listen on; 0.0.0.0 for every one of IPv4, as --strict_compat has it, "
        "[::] or * for those of IPv6 too.",
        container="handled",
    )
    engine: str = flag(AUTO, "auto, tensorflow or litert.", container="refused", choices=ENGINES)
    models_base_path: str = flag(
        "",
        "Folder of base paths: each of its folders that holds a version is a model of that name; "
        "not with --model_config_file.",
        container="refused",
    )
    load_on_demand: bool = flag(
        False,
        "List models at the start, and load each when a call first asks for it, which waits.",
        container="refused",
    )
    max_resident_bytes: int = flag(
        0,
        "With --load_on_demand: what loaded versions may count for, 1.2 times their files; beyond "
        "it the model is unloaded that was used least recently; 0 for no limit.",
        container="refused",
    )
    preload_signatures: bool = flag(
        False,
        "Load TensorFlow at once for the signatures that need it, not when first asked.",
        container="ignored",
        engine="tensorflow",
    )
    workers: int = flag(
        1, "Processes that share the ports; limits on calls hold for each.", container="ignored"
    )
    litert_num_threads: int = flag(
        1, "Threads inside one run of LiteRT.", container="ignored", engine="litert"
    )
    strict_compat: bool = flag(
        False, "Turn the deliberate differences from TensorFlow Serving off.", container="ignored"
    )
    trial_timeout_s: float = flag(
        60.0,
        "How long the first load and the self-test of a version may take, three times as long with "
        "TensorFlow, and a second more for 10 MB of it; 0 for no limit.",
        container="ignored",
    )
    drain_timeout_s: float = flag(
        30.0, "How long SIGTERM waits for calls in flight.", container="handled"
    )
    port_file: str = flag(
        "", "File to write once the ports are open: JSON with pid and ports.", container="handled"
    )
    log_level: str = flag(
        "info", "debug, info, warning or error.", container="handled", choices=LOG_LEVELS
    )
    log_format: str = flag(
        TEXT,
        "text, or json: one line of JSON for each record.",
        container="refused",
        choices=LOG_FORMATS,
    )
    access_log: bool = flag(
        False,
        "A line for each call, beside the log: method, model, version, rows, status, duration.",
        container="refused",
    )
    tracing: bool = flag(
        False,
        "Send a span of each sampled call to OpenTelemetry's collector; OTEL_* variables say where "
        "it is, and what is sampled.",
        container="refused",
    )
    tracing_stages: bool = flag(
        False,
        "With --tracing: spans of decoding, queueing, running and encoding below each call's.",
        container="refused",
    )

    auth_token_file: str = flag(
        "", "File of bearer tokens, one a line; calls without one are refused.", container="refused"
    )
    require_signature_key: str = flag(
        "",
        "File of a public EC key: a version is loaded if the holder of the key has signed every "
        "file of it, and not at all otherwise (docs/signing.md).",
        container="refused",
    )
    enable_reload_config: bool = flag(
        False, "Allow HandleReloadConfigRequest.", container="handled"
    )
    max_message_bytes: int = flag(
        256 * MEBIBYTE, "Largest gRPC message, both ways.", container="refused"
    )
    max_json_bytes: int = flag(
        64 * MEBIBYTE, "Largest REST body as sent.", container="refused", needs="rest_api_port"
    )
    max_json_depth: int = flag(
        64, "Deepest nesting of a REST body.", container="refused", needs="rest_api_port"
    )
    max_inflated_bytes: int = flag(
        256 * MEBIBYTE,
        "Largest REST body after gunzip.",
        container="refused",
        needs="rest_api_port",
    )
    max_concurrent_calls: int = flag(
        1000,
        "Calls in flight; beyond them RESOURCE_EXHAUSTED; 0 for no limit.",
        container="refused",
    )
    max_bytes_in_flight: int = flag(
        0,
        "Memory that all calls in flight may hold; beyond it RESOURCE_EXHAUSTED. 0 takes a "
        "share of the memory limit of the container, else of the machine.",
        container="refused",
    )
    max_connections: int = flag(
        10_000, "Connections open at a time, both protocols together.", container="refused"
    )
    max_connection_age_s: float = flag(
        0.0,
        "After so long a connection is told to go, and closed once it is quiet; 0 for never.",
        container="refused",
    )
    header_timeout_s: float = flag(
        10.0, "How long a connection may take over the head of a request.", container="refused"
    )
    idle_timeout_s: float = flag(
        600.0, "How long a connection without a call stays open; 0 for ever.", container="refused"
    )
    max_image_pixels_per_call: int = flag(
        128 * MEBIBYTE,
        "Pixels of the PNG and JPEG files of one call, all together, by their headers; 0 for no "
        "limit.",
        container="refused",
    )
    max_queued_calls: int = flag(
        1000,
        "Calls that wait for an engine's thread; beyond them UNAVAILABLE; 0 for no limit.",
        container="refused",
    )

    request_log_dir: str = flag(
        "", "Folder for PredictionLog records of sampled requests.", container="refused"
    )
    request_log_sampling_rate: float = flag(
        0.0,
        "Share of requests to log where a model has no logging_config.",
        container="refused",
        needs="request_log_dir",
    )
    request_log_max_bytes: int = flag(
        256 * MEBIBYTE,
        "Bytes of request logs to keep; the oldest file goes first.",
        container="refused",
        needs="request_log_dir",
    )
