"""What the clients need: no TensorFlow, little time, little memory."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from tests.clients.grpc_servers import ModelServer


def run_python(code: str, *flags: str) -> str:
    """The standard output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Refuses the packages as if they were not installed, whatever is installed.
WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Refuse())
"""
ASK = """
import numpy as np
from clients import PredictionClient
with PredictionClient("{address}", model_name="m") as client:
    print(client.predict(np.ones((2, 4), np.float32))["y"].tolist())
"""
ANSWER = "[[4.0, 1.0], [4.0, 1.0]]"


def test_the_client_asks_a_server_where_only_the_base_is_installed() -> None:
    extras = ["tensorflow", "tf_keras", "keras", "tensorflow_serving", "httpx", "rich", "PIL"]
    with ModelServer() as server:
        code = WITHOUT.format(names=extras) + ASK.format(address=server.address)
        assert run_python(code).strip() == ANSWER


def test_a_missing_extra_is_one_sentence_that_names_it() -> None:
    code = (
        WITHOUT.format(names=["httpx"])
        + """
from contract.errors import UnimplementedError
import clients
try:
    clients.RestClient
except UnimplementedError as error:
    print(error)
"""
    )
    assert "[rest]" in run_python(code)


def test_what_needs_an_extra_is_not_loaded_with_the_package() -> None:
    code = "import sys, json, clients; print(json.dumps(list(sys.modules)))"
    loaded = {name.partition(".")[0] for name in json.loads(run_python(code))}
    assert loaded.isdisjoint({"httpx", "rich", "PIL", "ai_edge_litert", "tensorflow"})


def test_the_package_lists_what_it_offers() -> None:
    code = "import clients; print(all(getattr(clients, name) for name in clients.__all__))"
    assert run_python(code).strip() == "True"


def test_an_unknown_name_is_an_attribute_error() -> None:
    import clients

    with pytest.raises(AttributeError, match="Nope"):
        _ = clients.Nope


def test_importing_takes_at_most_60_mib() -> None:
    code = """
    from clients import PredictionClient
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(int(status["VmRSS"].split()[0]) / 1024)
    """
    assert float(run_python(code)) <= 60


def test_importing_costs_little_more_than_what_it_builds_on() -> None:
    """A ratio, since the absolute time depends on what else the machine does."""
    code = """
    import time
    start = time.process_time()
    {statement}
    print(time.process_time() - start)
    """
    statements = {
        "ours": "from clients import PredictionClient",
        "theirs": "import numpy, grpc, ml_dtypes, google.protobuf.descriptor_pb2",
    }
    seconds = {
        name: min(float(run_python(code.format(statement=text))) for _ in range(4))
        for name, text in statements.items()
    }
    assert seconds["ours"] <= 1.6 * seconds["theirs"]


@pytest.mark.tensorflow
@pytest.mark.parametrize("first", ["tensorflow", "clients"])
def test_clients_and_tensorflow_share_a_process_in_either_order(first: str) -> None:
    second = "clients" if first == "tensorflow" else "tensorflow"
    with ModelServer() as server:
        code = f"import {first}\nimport {second}\n" + ASK.format(address=server.address)
        code += "import tensorflow as tf; print(tf.make_tensor_proto([1.0]).dtype)"
        assert run_python(code).split("\n")[:2] == [ANSWER, "1"]
