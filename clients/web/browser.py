"""A model in a browser that nobody sees: LiteRT.js asked as any server is, batch by batch.

A Chromium opens a page of ours (`web/src/replay.js`), which loads the `web` variant and posts to
this process: first the signatures, then an answer to each question. No driver is needed, and the
browser is the machine's own, with a profile that is thrown away.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NoReturn

from clients.interruption import hold_interrupts
from clients.web import safetensors
from clients.web.safetensors import DTYPES
from clients.web.server import Request, Response, WebServer, find_page
from contract.errors import (
    ConfigError,
    DeadlineExceededError,
    InternalError,
    ManifestError,
    RequestError,
    ServableUnavailableError,
    UnimplementedError,
)
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Array, Batch

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
"""What Chromium and Chrome are called on PATH."""

_PLACES = {
    "darwin": (
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "~/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
    ),
    "win32": (
        r"%ProgramFiles%\Google\Chrome\Application\chrome.exe",
        r"%ProgramFiles(x86)%\Google\Chrome\Application\chrome.exe",
        r"%LocalAppData%\Google\Chrome\Application\chrome.exe",
        r"%LocalAppData%\Chromium\Application\chrome.exe",
    ),
}
"""Where they lie on systems that do not put them on PATH."""

_FLAGS = (
    "--headless=new",
    "--incognito",  # half the files of a profile
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-dev-shm-usage",  # 64 MB in a container
    "--password-store=basic",  # asks for no keyring
    "--use-mock-keychain",
)
_PAGE = "replay.html"
_MODEL = "model.tflite"
_MAX_ANSWER_BYTES = 2**30
_CLOSE_S, _END_S = 2.0, 5.0  # for a browser whose page closes itself; for one that was told to end
_MAX_SOCKET_PATH = 104  # of macOS; Linux has 108
_REMOVALS, _REMOVE_AGAIN_S = 20, 0.05
_LOG_PREFIX = re.compile(r"^\[[^\]]*\] ?")
_CHATTER = ":ERROR:dbus/"  # where there is no desktop


def find_browser(given: str = "") -> Path:
    """The Chromium or Chrome of this machine.

    Args:
        given: A path, or a name on PATH; "" looks for the usual ones.

    Raises:
        ConfigError: What was given cannot be run.
        UnimplementedError: There is none of the usual ones.
    """
    if given:
        found = shutil.which(given)
        if found is None:
            raise ConfigError(f"--browser {given} is no program that can be run")
        return Path(found)
    places = (os.path.expandvars(Path(one).expanduser()) for one in _PLACES.get(sys.platform, ()))
    for one in (*NAMES, *places):
        found = shutil.which(one)
        if found is not None:
            return Path(found)
    raise UnimplementedError(
        f"no browser was found: none of {', '.join(NAMES)} is on PATH; name a Chromium or Chrome "
        "with --browser PATH"
    )


class BrowserPredictor:
    """Answers batches with LiteRT.js in a headless browser; a `contract.parity.Predictor`.

    The browser runs between `__enter__` and `__exit__`, and ends with them however they end: with
    an error, with Ctrl-C, and also when it does not answer.

    Args:
        model: A `.tflite` file.
        browser: A Chromium or Chrome.
        timeout_s: For the browser to start and load the model, and for each batch.

    Raises:
        UnimplementedError: The page that it opens was not built.
        ManifestError: The model cannot be read.

    Example:
        >>> with BrowserPredictor(model, find_browser()) as predictor:  # doctest: +SKIP
        ...     predictor.predict({"images": images}, signature_name="serving_default")
    """

    def __init__(self, model: Path, browser: Path, *, timeout_s: float = 30.0) -> None:
        self._model, self._browser, self._timeout_s = model, browser, timeout_s
        try:
            self._content = model.read_bytes()
        except OSError as error:
            raise ManifestError(f"{model} cannot be read: {error.strerror}") from error
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()  # None: it has ended
        self._questions: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._is_open = threading.Event()
        self._signature_names: frozenset[str] = frozenset()
        self._server = WebServer(
            find_page(),
            {("GET", _MODEL): self._give_model, ("POST", "answers"): self._take_answer},
            max_body_bytes=_MAX_ANSWER_BYTES,
        )
        self._stack = contextlib.ExitStack()

    @property
    def signature_names(self) -> frozenset[str]:
        """What the model in the browser can be asked."""
        return self._signature_names

    def __enter__(self) -> BrowserPredictor:
        try:
            with hold_interrupts():  # what is begun must be known before it is given up
                self._stack.enter_context(self._server)
                folder = tempfile.mkdtemp(prefix="plumbline-browser-")
                self._stack.callback(_remove, folder)
                self._log = Path(folder, "stderr")
                self._process = _start(self._browser, folder, self._server.url + _PAGE, self._log)
                self._stack.callback(self._end)
                threading.Thread(target=self._watch, name="browser", daemon=True).start()
            _, metadata = self._hear()
            self._signature_names = frozenset(metadata["signature_names"].split("\n"))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the browser and removes its profile, whatever it does."""
        with hold_interrupts():
            self._stack.close()

    def predict(self, batch: Batch, *, signature_name: str) -> dict[str, Array]:
        """The outputs for a batch of any size.

        Args:
            batch: Input name to ndarray of the signature's dtype and shape; axis 0 is the batch.
            signature_name: "" stands for `serving_default`.

        Returns:
            Output name to ndarray; axis 0 is the row of the batch.

        Raises:
            UnimplementedError: A dtype that LiteRT.js does not take.
            InternalError: The page could not answer; the message says why.
            ServableUnavailableError: The browser has ended.
            DeadlineExceededError: It did not answer in time.
        """
        others = [f"`{k}` is {v.dtype}" for k, v in batch.items() if v.dtype.name not in DTYPES]
        if others:
            raise UnimplementedError(f"LiteRT.js takes {', '.join(DTYPES)}; {', '.join(others)}")
        name = signature_name or DEFAULT_SIGNATURE_NAME
        self._questions.put(safetensors.encode(batch, {"signature_name": name}))
        answers, _ = self._hear()
        return answers

    # In threads of the server.

    def _give_model(self, _: Request) -> Response:
        self._is_open.set()
        return Response(self._content)

    def _take_answer(self, request: Request) -> Response:
        self._answers.put(request.body)
        return Response(self._questions.get())

    def _watch(self) -> None:
        self._process.wait()
        self._answers.put(None)

    # In the caller's.

    def _end(self) -> None:
        """Ends the browser, and what it has started: processes that it leaves behind too.

        A page that closes itself, at an empty question, is the way that leaves nothing in the
        system's folder for temporary files.
        """
        self._questions.put(b"")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_S if self._is_open.is_set() else 0)
        for name in ("SIGTERM", "SIGKILL"):
            if not hasattr(os, "killpg"):
                self._process.kill()
            else:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, getattr(signal, name))
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)

    def _hear(self) -> tuple[dict[str, Array], dict[str, str]]:
        """The next answer of the page.

        Raises:
            PlumblineError: There is none, or it is an error.
        """
        try:
            answer = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            self._blame_silence()
        if answer is None:
            self._blame_end()
        try:
            arrays, metadata = safetensors.decode(answer)
        except RequestError as error:
            raise InternalError(f"the page answered {error.message}") from error
        if "error" in metadata:
            self._blame_page(metadata.get("cause", ""), " ".join(metadata["error"].split()))
        return arrays, metadata

    def _blame_silence(self) -> NoReturn:
        limit = f"within {self._timeout_s:g} s and was ended; --timeout_s gives it longer"
        if self._is_open.is_set():
            raise DeadlineExceededError(f"the page in {self._browser} did not answer {limit}")
        raise UnimplementedError(f"{self._browser} did not open the page {limit}")

    def _blame_end(self) -> NoReturn:
        text = f"{self._browser} ended (exit code {self._process.returncode})"
        said = _read_last_words(self._log)
        if self._is_open.is_set():
            raise ServableUnavailableError(f"{text}{said}")
        raise UnimplementedError(f"{text} before it opened the page{said}")

    def _blame_page(self, cause: str, error: str) -> NoReturn:
        if cause == "dtype":
            raise UnimplementedError(
                f"LiteRT.js takes {', '.join(DTYPES)} and cannot load {self._model}: {error}"
            )
        if cause == "runtime":
            raise InternalError(f"LiteRT.js could not be loaded in {self._browser}: {error}")
        if cause == "model":
            raise ManifestError(f"LiteRT.js cannot load {self._model}: {error}")
        raise InternalError(f"LiteRT.js could not run {self._model}: {error}")


def _start(browser: Path, folder: str, url: str, log: Path) -> subprocess.Popen[bytes]:
    """A browser in a process group of its own, which Ctrl-C in a terminal does not reach."""
    flags = [*_FLAGS, f"--user-data-dir={folder}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium has none for root, and ends at once without this
    try:
        with log.open("wb") as stderr:
            return subprocess.Popen(
                [browser, *flags, url],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=_make_environment(folder),
                start_new_session=True,
            )
    except OSError as error:
        raise ConfigError(f"{browser} cannot be started: {error.strerror}") from error


def _make_environment(folder: str) -> dict[str, str]:
    """Has Chromium keep in the profile what it would leave elsewhere: crash reports, caches, and
    its socket, which stays if it is ended by force."""
    environment = {**os.environ, "XDG_CONFIG_HOME": folder, "XDG_CACHE_HOME": folder}
    if len(folder) + len("/org.chromium.Chromium.XXXXXX/SingletonSocket") < _MAX_SOCKET_PATH:
        environment["TMPDIR"] = folder
    return environment


def _remove(folder: str) -> None:
    """Removes a profile; a process that is about to end may write into it once more."""
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not Path(folder).exists():
            return
        time.sleep(_REMOVE_AGAIN_S)


def _read_last_words(log: Path) -> str:
    """What a browser said why it ended: ": " and one line, "" if it said nothing."""
    lines = log.read_text(errors="replace").splitlines()
    said = [line for line in lines if line.strip() and _CHATTER not in line]
    grave = [line for line in said if ":FATAL:" in line] or said
    return f": {_LOG_PREFIX.sub('', grave[-1]).strip()}" if grave else ""
