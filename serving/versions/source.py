"""Looks at base paths and says which versions each model should serve.

The rules and warnings are those of TensorFlow Serving's
`sources/storage_path/file_system_storage_path_source.cc`, but that a missing base path
concerns its model alone (with `strict`, nothing is said of any model while one is missing).
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from contract.errors import ConfigError, PlumblineError
from contract.layout import find_versions
from contract.servable import Specific, choose_versions
from serving.config.models import ModelConfig

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class PollResult:
    """What one look at a model's base path found.

    Attributes:
        model: Whose base path it is.
        versions: Version to directory: the aspired versions, or empty.
        error: Why the base path cannot be read; then nothing is known of its versions.
        warnings: For the log.
    """

    model: ModelConfig
    versions: Mapping[int, Path] = dataclasses.field(default_factory=dict)
    error: PlumblineError | None = None
    warnings: tuple[str, ...] = ()


def poll(model: ModelConfig) -> PollResult:
    """Looks at the base path of `model` once."""
    try:
        found = find_versions(model.base_path)
    except OSError as error:
        return PollResult(
            model,
            error=ConfigError(
                f"Could not find base path {model.base_path} for servable {model.name} "
                f"with error {error.strerror or error}"
            ),
        )
    chosen = choose_versions(model.version_policy, list(found))
    warnings = []
    if isinstance(model.version_policy, Specific):
        warnings += [
            f"Version {version} of servable {model.name}, which was requested to be served as a "
            "'specific' version in the servable's version policy, was not found in the file system"
            for version in model.version_policy.versions
            if version not in found
        ]
        if not model.version_policy.versions:
            warnings.append(f"No specific versions requested for servable {model.name}.")
    if not chosen:
        warnings.append(
            f"No versions of servable {model.name} found under base path {model.base_path}. "
            "Did you forget to name your leaf directory as a number (eg. '/1/')?"
        )
    return PollResult(model, {version: found[version] for version in chosen}, None, tuple(warnings))


class FileSystemSource:
    """A thread that looks at base paths every so often and tells a target what it saw.

    Args:
        target: Called on the source's thread with each result. Models that left the
            configuration are told once, without versions.
        poll_wait_s: Seconds between two looks; 0 looks once per configuration, negative never.
        strict: As TensorFlow Serving: one missing base path holds back every model.
    """

    def __init__(
        self,
        target: Callable[[PollResult], None],
        *,
        poll_wait_s: float = 1,
        strict: bool = False,
    ) -> None:
        self._target = target
        self._poll_wait_s = poll_wait_s
        self._strict = strict
        self._models: tuple[ModelConfig, ...] = ()
        self._removed: list[ModelConfig] = []
        self._said: dict[str, tuple[str, ...]] = {}
        self._lock = threading.Lock()
        self._polling = threading.Lock()
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def start(self, models: Sequence[ModelConfig]) -> None:
        """Begins to look at the base paths of `models`."""
        self._models = tuple(models)
        if self._poll_wait_s >= 0:
            self._thread = threading.Thread(target=self._run, name="source", daemon=True)
            self._thread.start()

    def update(self, models: Sequence[ModelConfig]) -> None:
        """Replaces the models; the base paths are looked at again at once."""
        with self._lock:
            kept = {model.name for model in models}
            self._removed += [model for model in self._models if model.name not in kept]
            self._models = tuple(models)
        self._wake.set()

    def stop(self) -> None:
        """Ends the thread; nothing is told after it returns."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> FileSystemSource:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def poll(self) -> None:
        """Looks at every base path once and tells the target."""
        with self._polling:
            with self._lock:
                models, removed = self._models, self._removed
                self._removed = []
            for model in removed:
                self._said.pop(model.name, None)
                self._target(PollResult(model))
            results = [poll(model) for model in models]
            held = self._strict and any(result.error for result in results)
            for result in results:
                self._say(result)
                if result.error or not held:
                    self._target(result)

    def _run(self) -> None:
        while not self._stopped:
            self._wake.clear()
            try:
                self.poll()
            except Exception:
                # The boundary of this thread: one bad look must not end all looking.
                logger.exception("FileSystemSource failed to look at the base paths")
            self._wake.wait(self._poll_wait_s or None)

    def _say(self, result: PollResult) -> None:
        """Logs what is wrong, once per change rather than once per look."""
        said = result.warnings
        if result.error is not None:
            message = result.error.message
            said = (
                f"FileSystemStoragePathSource encountered a filesystem access error: {message}",
            )
        if self._said.get(result.model.name, ()) != said:
            self._said[result.model.name] = said
            for warning in said:
                logger.warning("%s", warning)
