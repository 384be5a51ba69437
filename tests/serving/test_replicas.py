from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import PredictionClient
from serving.rollout.rollout import promote
from serving.rollout.servers import Server
from tests.serving.replica_set import (
    Load,
    Replica,
    count_shares,
    read_batch,
    run_replicas,
    wait_for,
)
from tests.serving.rollout_scene import copy_version, open_rollout, replace_text

MIN_SHARE = 0.2
"""Of three replicas, each has a third; threads that retry shift it a little."""


@pytest.fixture
def replicas(tmp_path: Path, published_mlp: Path) -> Iterator[list[Replica]]:
    for number in (1, 2):
        copy_version(published_mlp / "mlp" / "1", tmp_path / "mlp" / str(number))
    with run_replicas(tmp_path, tmp_path / "mlp", 3) as found:
        yield found


def test_replicas_are_killed_restarted_and_rolled_without_a_failed_call(
    replicas: list[Replica], tmp_path: Path
) -> None:
    batch = read_batch(tmp_path / "mlp" / "1")
    addresses = ",".join(replica.address for replica in replicas)
    with PredictionClient(addresses, model_name="mlp") as client, Load(client, batch) as load:
        load.wait_for_calls(30)
        assert min(count_shares(replicas, load, calls=150)) > MIN_SHARE

        replicas[1].kill()
        load.wait_for_calls(100)  # the others answer
        replicas[1].start()
        wait_for(lambda: replicas[1].count_requests() > 0)
        assert min(count_shares(replicas, load, calls=150)) > MIN_SHARE

        for replica in replicas:
            rollout = open_rollout(replica.config, replica.address)
            assert promote(rollout, "mlp", version=2, label="stable").passed
        assert min(count_shares(replicas, load, calls=150)) > MIN_SHARE
    assert load.errors == []
    assert [Server(one.address).find_label("mlp", "stable") for one in replicas] == [2, 2, 2]


def test_replicas_that_are_replaced_one_by_one_lose_no_call(
    replicas: list[Replica], tmp_path: Path
) -> None:
    batch = read_batch(tmp_path / "mlp" / "1")
    addresses = ",".join(replica.address for replica in replicas)
    with PredictionClient(addresses, model_name="mlp") as client, Load(client, batch) as load:
        for replica in replicas:
            load.wait_for_calls(30)
            text = replica.config.read_text().replace("versions: 1", "versions: 2")
            replace_text(replica.config, text.replace("value: 1", "value: 2"))
            replica.server.signal()  # SIGTERM: it drains, as a rolling update has it
            assert replica.server.wait() == 0
            replica.start()
            wait_for(lambda: replica.count_requests() > 0)  # noqa: B023  called at once
        assert min(count_shares(replicas, load, calls=150)) > MIN_SHARE
    assert load.errors == []
