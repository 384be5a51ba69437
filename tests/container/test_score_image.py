"""The image that scores on Kubernetes, in containers started as KubeRay starts its pods.

What KubeRay does is that of 1.7: `BuildPod` and `BuildJobSubmitCommand` of its operator.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from serving.container.engine import ContainerEngine, find_image
from tests.container.images_for_tests import check_contents
from tests.container.processes import ROOT, TIMEOUT_S, name_container
from tests.exporter.remote_versions import CREDENTIALS, serve_s3
from tests.score.jobs import write_images

pytestmark = pytest.mark.score_image

IMAGE = os.environ.get("PLUMBLINE_SCORE_IMAGE", "plumbline:score")
MANIFEST = ROOT / "deploy" / "kubernetes" / "score" / "rayjob.yaml"
NUM_ROWS, GROUP_ROWS = 600, 200
UNITS = {"Mi": 2**20, "Gi": 2**30}

Document = dict[str, Any]


def read_spec() -> Document:
    """Of the RayJob."""
    spec: Document = yaml.safe_load(MANIFEST.read_text())["spec"]
    return spec


def make_start_command(group: Document, *, head: str = "") -> str:
    """What KubeRay starts a node of a group with; `head` is the head's address, for the others."""
    (container,) = group["template"]["spec"]["containers"]
    resources = container["resources"]
    memory = resources["limits"]["memory"]
    parameters = {
        "block": "true",
        "dashboard-agent-listen-port": "52365",
        "memory": str(int(memory[:-2]) * UNITS[memory[-2:]]),
        "metrics-export-port": "8080",
        "num-cpus": resources["requests"]["cpu"],
        **({"address": head} if head else {"dashboard-host": "0.0.0.0"}),
        **group["rayStartParams"],
    }
    flags = [
        f"--{name}" if value == "true" else f"--{name}={value}"
        for name, value in sorted(parameters.items())
    ]
    words = ["ray", "start", *([] if head else ["--head"]), *flags]
    return "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; " + " ".join(words)


def take_secrets(group: Document, kept: dict[str, dict[str, str]]) -> dict[str, str]:
    """Variables that a group's container takes from secrets, by name."""
    (container,) = group["template"]["spec"]["containers"]
    taken: dict[str, str] = {}
    for source in container.get("envFrom", []):
        taken |= kept[source["secretRef"]["name"]]
    return taken


def make_submit_command(dashboard: str, number: str, entrypoint: str) -> str:
    """What KubeRay's submitter runs."""
    check = (
        f"import urllib.request; r=urllib.request.urlopen('{dashboard}/api/gcs_healthz', "
        "timeout=10); exit(0 if b'success' in r.read() else 1)"
    )
    return (
        f'until python -c "{check}" >/dev/null 2>&1 ; do sleep 2 ; done ; '
        f"if ! ray job status --address {dashboard} {number} >/dev/null 2>&1 ; then "
        f"ray job submit --address {dashboard} --no-wait --submission-id {number} -- "
        f"{entrypoint} ; fi ; ray job logs --address {dashboard} --follow {number}"
    )


@dataclasses.dataclass
class Pods:
    """Containers confined as the manifest's pods, with KubeRay's token where it asks for one."""

    engine: ContainerEngine
    token: str
    names: list[str] = dataclasses.field(default_factory=list)

    def _list_options(self, environment: dict[str, str]) -> list[str]:
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token} if self.token else {}
        variables = auth | environment
        # Kubernetes writes nobody into /etc/passwd.
        nameless = ["--passwd=false"] if self.engine.is_podman else []
        return [
            *nameless,
            *("--user=10001:10001", "--read-only", "--tmpfs=/tmp:rw,mode=1777", "--shm-size=4g"),
            *("--cap-drop=all", "--security-opt=no-new-privileges", "--entrypoint=/bin/bash"),
            *(f"--env={name}={value}" for name, value in variables.items()),
        ]

    def start(self, command: str, *, shell: str = "-c", **environment: str) -> str:
        """Starts one, and returns its name."""
        name = name_container()
        self.names.append(name)
        options = self._list_options(environment)
        run = ("run", "--detach", f"--name={name}", *options, IMAGE, shell, "--", command)
        done = self.engine.call(*run)
        assert done.returncode == 0, done.stderr
        return name

    def run(self, command: str, *, shell: str = "-ce", **environment: str) -> str:
        """Runs one to its end, and returns what it printed."""
        options = self._list_options(environment)
        done = self.engine.call("run", "--rm", *options, IMAGE, shell, "--", command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def find_address(self, name: str) -> str:
        """Where another container reaches it."""
        facts = json.loads(self.engine.call("inspect", name).stdout)[0]["NetworkSettings"]
        networks = [facts, *facts.get("Networks", {}).values()]
        return next(one["IPAddress"] for one in networks if one.get("IPAddress"))

    def read_log(self, name: str) -> str:
        """What one printed."""
        done = self.engine.call("logs", name)
        return done.stdout + done.stderr

    def wait_for(self, name: str, predicate: Callable[[], bool]) -> None:
        """Waits until `predicate` holds, or the container ends."""
        deadline = time.monotonic() + TIMEOUT_S
        while not predicate():
            state = self.engine.call("inspect", "--format={{.State.Running}}", name).stdout.strip()
            assert state == "true" and time.monotonic() < deadline, self.read_log(name)
            time.sleep(0.5)

    def close(self) -> None:
        """Removes what was started."""
        if self.names:
            self.engine.call("rm", "--force", "--time=0", *self.names)


def ask(url: str, token: str = "") -> tuple[int, str]:
    """Status and body; status 0 where nobody answers."""
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


@dataclasses.dataclass
class Cluster:
    """A head and a worker, and the store that they read and write."""

    pods: Pods
    entrypoint: str
    dashboard: str
    store: Any

    def submit(self, entrypoint: str) -> tuple[Document, str]:
        """Submits a job as KubeRay does; what the dashboard tells of it at its end, and its log."""
        number = f"score-{secrets.token_hex(3)}"
        log = self.pods.run(make_submit_command(self.dashboard, number, entrypoint))
        status, body = ask(f"{self.dashboard}/api/jobs/{number}", self.pods.token)
        assert status == 200, body
        facts: Document = json.loads(body)
        return facts, log

    def read_scores(self) -> pa.Table:
        """All of OUT."""
        listed = self.store.list_objects_v2(Bucket="scores", Prefix="digits/version=1/")
        bodies = [
            self.store.get_object(Bucket="scores", Key=one["Key"])["Body"].read()
            for one in listed["Contents"]
        ]
        return pa.concat_tables(parquet.read_table(io.BytesIO(body)) for body in bodies)


@pytest.fixture(scope="module")
def pods(engine: ContainerEngine) -> Iterator[Pods]:
    assert find_image(engine, IMAGE), f"{IMAGE} is not here: make test-score-image"
    mode = read_spec()["rayClusterSpec"].get("authOptions", {}).get("mode")
    pods = Pods(engine, secrets.token_hex(32) if mode == "token" else "")
    yield pods
    pods.close()


@pytest.fixture(scope="module")
def cluster(
    pods: Pods, published_mlp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    spec = read_spec()
    groups = spec["rayClusterSpec"]
    (workers,) = groups["workerGroupSpecs"]
    rows = tmp_path_factory.mktemp("rows") / "rows.parquet"
    write_images(rows, NUM_ROWS, group=GROUP_ROWS)
    # This machine, as containers reach it.
    host = pods.run(
        "python -c \"import socket; route = open('/proc/net/route').readlines()[1].split()[2]; "
        'print(socket.inet_ntoa(bytes.fromhex(route)[::-1]))"'
    ).strip()
    with serve_s3("0.0.0.0") as everywhere:  # engines take their bridge down meanwhile
        url = everywhere.replace("0.0.0.0", host)
        store = boto3.client("s3", endpoint_url=everywhere, **to_arguments(CREDENTIALS))
        for bucket in ("rows", "scores", "models"):
            store.create_bucket(Bucket=bucket)
        store.upload_file(str(rows), "rows", "digits/rows.parquet")
        for file in (one for one in (published_mlp / "mlp").rglob("*") if one.is_file()):
            store.upload_file(str(file), "models", file.relative_to(published_mlp).as_posix())
        kept = {"model-store": {**CREDENTIALS, "AWS_ENDPOINT_URL": url}}
        head = pods.start(
            make_start_command(groups["headGroupSpec"]),
            RAY_ADDRESS="127.0.0.1:6379",
            **take_secrets(groups["headGroupSpec"], kept),
        )
        address = pods.find_address(head)
        pods.wait_for(head, lambda: ask(f"http://{address}:52365/api/healthz")[0] == 200)
        # A login shell, as older KubeRays have it.
        worker = pods.start(
            make_start_command(workers, head=f"{address}:6379"),
            shell="-cl",
            RAY_ADDRESS=f"{address}:6379",
            **take_secrets(workers, kept),
        )
        healthz = f"http://{pods.find_address(worker)}:52365/api/healthz"
        pods.wait_for(worker, lambda: ask(healthz)[0] == 200)
        yield Cluster(pods, spec["entrypoint"], f"http://{address}:8265", store)


def to_arguments(credentials: dict[str, str]) -> dict[str, str]:
    """Environment variables as boto3 takes them."""
    return {
        "aws_access_key_id": credentials["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": credentials["AWS_SECRET_ACCESS_KEY"],
        "region_name": credentials["AWS_DEFAULT_REGION"],
    }


def test_the_rayjob_scores_each_row_once_however_often_it_is_tried(cluster: Cluster) -> None:
    for said in ("rows/s", f"{NUM_ROWS // GROUP_ROWS} of {NUM_ROWS // GROUP_ROWS} parts are there"):
        facts, log = cluster.submit(cluster.entrypoint)
        assert facts["status"] == "SUCCEEDED", log
        assert said in log
        assert re.search(r"^Verdict: [\d,]+ rows .* agree with", log, re.MULTILINE)
        assert sorted(cluster.read_scores()["id"].to_pylist()) == list(range(NUM_ROWS))


def test_a_job_that_cannot_run_tells_kuberay_why(cluster: Cluster) -> None:
    facts, _ = cluster.submit(cluster.entrypoint.replace("s3://models/mlp", "s3://models/none"))
    assert facts["status"] == "FAILED"
    assert "s3://models/none" in facts["message"] and "Traceback" not in facts["message"]


def test_who_has_no_token_submits_nothing(cluster: Cluster) -> None:
    assert ask(f"{cluster.dashboard}/api/jobs/")[0] == 401
    assert ask(f"{cluster.dashboard}/api/jobs/", cluster.pods.token)[0] == 200


def test_the_image_that_scores_lists_what_is_in_it(pods: Pods) -> None:
    check_contents(pods.engine, IMAGE)
