"""Moving a label to a version, forwards with a way back, or back at all costs.

    promote: serve the version → AVAILABLE everywhere → golden by number → label → golden by label
                 └─ fails ──── label and policy as they were, label first ─────┘

A label may point only at a version that is AVAILABLE (TensorFlow Serving refuses the whole
configuration otherwise), so a version comes before its label and goes after it.
"""

from __future__ import annotations

import logging
import time

from contract.errors import ConfigError, PlumblineError
from contract.servable import MAX_VERSION, ModelSpec
from contract.wire.plumbline_wire import config_pb2
from serving.rollout.audit import PROMOTE, ROLLBACK, find_last_label, find_previous, read_lines
from serving.rollout.config_text import ModelEdit
from serving.rollout.parity import ServerParity, VersionGolden
from serving.rollout.rollout import Outcome, Rollout, find_problem

_LOG = logging.getLogger(__name__)


def promote(rollout: Rollout, model_name: str, *, version: int, label: str) -> Outcome:
    """Serves a version and points a label at it, or leaves everything as it was.

    Raises:
        ConfigError: The file, the version's golden examples or an argument is of no use.
        ServableUnavailableError: A server cannot be reached; nothing was changed.
        DeadlineExceededError: Another rollout holds the file.
    """
    start = time.monotonic()
    if not label or not label.isprintable():
        raise ConfigError(f"--label {label!r}: give a name, such as stable or canary")
    if not 0 <= version <= MAX_VERSION:
        raise ConfigError(f"--version {version}: a version is 0 to {MAX_VERSION}")
    with rollout.config.hold(timeout_s=rollout.servers.timeout_s):
        model = rollout.config.read_model(model_name)
        expected = rollout.read_golden(model, version)
        rollout.servers.list_available(model_name)  # all of them answer
        outcome = _Promotion(rollout, model, version, label).run(expected)
        return rollout.conclude(outcome, seconds=time.monotonic() - start)


class _Promotion:
    def __init__(
        self, rollout: Rollout, model: config_pb2.ModelConfig, version: int, label: str
    ) -> None:
        self._rollout = rollout
        self._model = model
        self._version = version
        self._label = label
        self._text = rollout.config.read_text()
        self._parity: tuple[ServerParity, ...] = ()

    def run(self, expected: VersionGolden | None) -> Outcome:
        try:
            problem = self._try(expected)
        except PlumblineError as error:
            problem = error.message
        except BaseException:
            _LOG.warning("interrupted: restoring what was before")
            self._rollout.restore(self._text, self._model, self._label)
            raise
        if problem:
            _LOG.error("%s; restoring what was before", problem)
        return Outcome(
            action=PROMOTE,
            model_name=self._model.name,
            version=self._version,
            label=self._label,
            version_before=self._model.version_labels.get(self._label),
            problem=problem,
            is_restored=bool(problem)
            and self._rollout.restore(self._text, self._model, self._label),
            parity=self._parity,
        )

    def _try(self, expected: VersionGolden | None) -> str:
        name, version, label = self._model.name, self._version, self._label
        self._rollout.serve(self._model, version, PROMOTE)
        # By number first, so that a wrong version never answers to the label.
        self._parity = self._rollout.check(expected, ModelSpec(name, version), version)
        if problem := find_problem(self._parity):
            return problem
        self._rollout.change(ModelEdit(name, {label: version}), PROMOTE)
        self._rollout.servers.wait_until_labelled(name, label, version)
        spec = ModelSpec(name, version_label=label)
        self._parity = self._rollout.check(expected, spec, version)
        return find_problem(self._parity)


def rollback(rollout: Rollout, model_name: str, *, label: str = "") -> Outcome:
    """Points a label back at the version before its last promotion, loading it if need be.

    Golden is checked afterwards and reported; the label stays where it was asked to go.

    Args:
        rollout: The file and its servers.
        model_name: Whose label.
        label: Which; the one that was moved last without it.

    Raises:
        ConfigError: The file is of no use, or its audit knows no version before.
        ServableUnavailableError: A server cannot be reached, or the version fails to load.
        DeadlineExceededError: The servers did not follow in time.
    """
    start = time.monotonic()
    with rollout.config.hold(timeout_s=rollout.servers.timeout_s):
        model = rollout.config.read_model(model_name)
        label, version = _find_way_back(rollout, model, label)
        text = rollout.config.read_text()
        try:
            rollout.serve(model, version, ROLLBACK)
        except PlumblineError:
            rollout.restore(text, model, label)
            raise
        rollout.change(ModelEdit(model_name, {label: version}), ROLLBACK)
        rollout.servers.wait_until_labelled(model_name, label, version)
        parity = _check_after_rollback(rollout, model, version, label)
        outcome = Outcome(
            action=ROLLBACK,
            model_name=model_name,
            version=version,
            label=label,
            version_before=model.version_labels.get(label),
            problem=find_problem(parity),
            parity=parity,
        )
        return rollout.conclude(outcome, seconds=time.monotonic() - start)


def _find_way_back(rollout: Rollout, model: config_pb2.ModelConfig, label: str) -> tuple[str, int]:
    lines = read_lines(rollout.config.path)
    label = label or find_last_label(lines, model.name) or ""
    current = model.version_labels.get(label)
    version = find_previous(lines, model.name, label, current=current)
    if version is None:
        what = f"label {label!r}" if label else "a label"
        raise ConfigError(
            f"{rollout.config.path}: its audit knows no version that {what} of model "
            f"{model.name!r} could go back to; name one with promote --version"
        )
    return label, version


def _check_after_rollback(
    rollout: Rollout, model: config_pb2.ModelConfig, version: int, label: str
) -> tuple[ServerParity, ...]:
    try:
        expected = rollout.read_golden(model, version)
    except ConfigError as error:
        _LOG.warning("parity is not checked: %s", error.message)
        return ()
    return rollout.check(expected, ModelSpec(model.name, version_label=label), version)
