"""What a look at base paths finds, and when the source looks."""

from __future__ import annotations

import logging
import queue
from pathlib import Path

import pytest

from contract.servable import All, Latest, Specific, VersionPolicy
from serving.config.models import ModelConfig
from serving.versions.source import FileSystemSource, PollResult, poll

WAIT_S = 10


def model(base_path: Path, policy: VersionPolicy | None = None, name: str = "m") -> ModelConfig:
    return ModelConfig(name, base_path, policy or Latest(1))


def make_versions(base_path: Path, *names: str) -> Path:
    for name in names:
        (base_path / name).mkdir(parents=True)
    return base_path


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        (Latest(1), {12: "00000012"}),
        (Latest(2), {3: "3", 12: "00000012"}),
        (All(), {1: "1", 3: "3", 12: "00000012"}),
        (Specific((1, 12)), {1: "1", 12: "00000012"}),
    ],
)
def test_a_policy_chooses_among_folders_named_by_integers(
    tmp_path: Path, policy: VersionPolicy, versions: dict[int, str]
) -> None:
    make_versions(tmp_path, "1", "3", "00000012", "12a", "-4", "saved", ".stage-9", "1.5")
    (tmp_path / "99").write_text("a file is no version")
    result = poll(model(tmp_path, policy))
    assert result.versions == {number: tmp_path / name for number, name in versions.items()}
    assert result.warnings == ()


def test_an_empty_base_path_is_warned_of_in_tensorflow_servings_words(tmp_path: Path) -> None:
    result = poll(model(tmp_path))
    assert result.error is None
    assert result.warnings == (
        f"No versions of servable m found under base path {tmp_path}. "
        "Did you forget to name your leaf directory as a number (eg. '/1/')?",
    )


def test_a_missing_base_path_is_an_error_that_says_nothing_of_versions(tmp_path: Path) -> None:
    result = poll(model(tmp_path / "nope"))
    assert result.error is not None
    assert result.error.message.startswith(
        f"Could not find base path {tmp_path / 'nope'} for servable m with error "
    )
    assert result.versions == {}


def test_a_specific_version_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = poll(model(make_versions(tmp_path, "1"), Specific((1, 7))))
    assert list(result.versions) == [1]
    assert result.warnings[0].startswith("Version 7 of servable m, which was requested")


class Seen:
    """Poll results as they come, from the source's thread."""

    def __init__(self) -> None:
        self._queue: queue.Queue[PollResult] = queue.Queue()

    def __call__(self, result: PollResult) -> None:
        self._queue.put(result)

    def next(self) -> PollResult:
        return self._queue.get(timeout=WAIT_S)

    def until(self, versions: set[int]) -> PollResult:
        while True:
            result = self.next()
            if set(result.versions) == versions:
                return result


def test_polling_sees_a_version_that_comes_and_one_that_goes(tmp_path: Path) -> None:
    seen = Seen()
    with FileSystemSource(seen, poll_wait_s=0.01) as source:
        source.start([model(make_versions(tmp_path, "1"))])
        seen.until({1})
        make_versions(tmp_path, "2")
        seen.until({2})
        (tmp_path / "2").rmdir()
        seen.until({1})


def test_zero_seconds_look_once_for_each_configuration(tmp_path: Path) -> None:
    seen = Seen()
    source = FileSystemSource(seen, poll_wait_s=0)
    source.start([model(make_versions(tmp_path / "a", "1"))])
    assert set(seen.next().versions) == {1}
    make_versions(tmp_path / "a", "2")
    source.update([model(tmp_path / "a"), model(make_versions(tmp_path / "b", "5"), name="b")])
    assert set(seen.next().versions) == {2}
    assert set(seen.next().versions) == {5}
    source.stop()
    with pytest.raises(queue.Empty):
        seen._queue.get_nowait()


def test_negative_seconds_never_look(tmp_path: Path) -> None:
    seen = Seen()
    with FileSystemSource(seen, poll_wait_s=-1) as source:
        source.start([model(make_versions(tmp_path, "1"))])
    with pytest.raises(queue.Empty):
        seen._queue.get_nowait()


def test_a_model_that_left_the_configuration_is_told_without_versions(tmp_path: Path) -> None:
    seen = Seen()
    with FileSystemSource(seen, poll_wait_s=0) as source:
        source.start([model(make_versions(tmp_path, "1"))])
        assert set(seen.next().versions) == {1}
        source.update([])
        gone = seen.next()
        assert (gone.model.name, gone.versions, gone.error) == ("m", {}, None)


def test_a_missing_base_path_holds_back_no_other_model_unless_strict(tmp_path: Path) -> None:
    models = [model(make_versions(tmp_path / "a", "1"), name="a"), model(tmp_path / "b", name="b")]
    for strict, expected in ((False, ["a", "b"]), (True, ["b"])):
        told: list[PollResult] = []
        source = FileSystemSource(told.append, poll_wait_s=-1, strict=strict)
        source.start(models)
        source.poll()
        assert [result.model.name for result in told] == expected


def test_the_same_warning_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = FileSystemSource(lambda result: None, poll_wait_s=-1)
    source.start([model(tmp_path)])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            source.poll()
    assert len(caplog.records) == 1
