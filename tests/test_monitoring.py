"""Dashboard and alerts, each through Prometheus' own programs and a server that it scraped."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from contract.wire.rpc import PREDICT
from serving.monitoring.metrics import Metrics
from serving.versions.on_demand import Residency
from tests.prometheus_process import PrometheusProcess, run_promtool
from tests.serving.mlp_calls import make_request
from tests.serving.server_process import ServerProcess, call

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "plumbline.json").read_text())
RUNBOOK = ROOT / "docs" / "monitoring.md"
METRICS_PATH = "/monitoring/prometheus/metrics"

EMBEDDED_ONLY = "plumbline_"
VARIABLES = {"$job": ".*", "$instance": ".*", "$model": ".*", "$__rate_interval": "1m"}
GRID_COLUMNS = 24

DISLIKED_NAMES = re.compile(
    "^:tensorflow:(serving|cc):.*"
    "(metric names should not contain ':'"
    '|counter metrics should have "_total" suffix'
    '|non-histogram and non-summary metrics should not have "_count" suffix)$'
)
"""What promtool's lint says of TensorFlow Serving's own names, which are kept."""

Document = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """A server under a little load, and a Prometheus that scrapes it."""

    server: ServerProcess
    prometheus: PrometheusProcess


def list_panels() -> list[Document]:
    """Those that draw something."""
    return [one for one in DASHBOARD["panels"] if one["type"] != "row"]


def list_queries() -> list[tuple[str, str]]:
    """Title and expression of every query, with values for the dashboard's variables."""
    found = []
    for panel in list_panels():
        for target in panel["targets"]:
            found.append((f"{panel['title']} {target['refId']}", fill_in(target["expr"])))
    return found


def fill_in(text: str) -> str:
    """The text with a value for each variable."""
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    assert "$" not in text, text
    return text


def list_rules() -> list[Document]:
    """Every alert."""
    (group,) = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    rules: list[Document] = group["rules"]
    return rules


def find_metrics(expression: str) -> set[str]:
    """The metrics that an expression names; of a histogram, the one of its three that it is."""
    return set(re.findall(r"(?:plumbline_|:tensorflow:)[a-z_:]+", expression))


@pytest.fixture(scope="module")
def scene(published_mlp: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("monitoring")
    batching = folder / "batching.config"
    batching.write_text(
        "max_batch_size { value: 8 } batch_timeout_micros { value: 20000 }"
        " allowed_batch_sizes: 4 allowed_batch_sizes: 8"
    )
    flags = ["--model_name=mlp", f"--model_base_path={published_mlp / 'mlp'}", "--workers=2"]
    flags += ["--engine=tensorflow", "--enable_batching", f"--batching_parameters_file={batching}"]
    with ServerProcess(folder, *flags, rest=True) as server:
        server.wait_until_ready()
        target = server.url.removeprefix("http://")
        with (
            load(server),
            PrometheusProcess(folder, target, RULES / "alerts.yml") as prometheus,
        ):
            yield Scene(server, prometheus)


@contextlib.contextmanager
def load(server: ServerProcess) -> Iterator[None]:
    """Every kind of call and of mistake that the dashboard shows, over and over."""
    is_over = threading.Event()
    row = [[0.0] * 784]
    classify(server)
    leave_early(server)
    with socket.create_connection(("127.0.0.1", server.addresses["rest_port"])) as connection:
        connection.sendall(b"no request\r\n\r\n")
        connection.recv(1024)

    def call_often() -> None:
        with grpc.insecure_channel(server.address) as channel:
            while not is_over.wait(0.02):
                call(channel, PREDICT, make_request())
                post(server, "mlp:predict", {"instances": row})
                post(server, "mlp:predict", {"instances": "no rows"})
                post(server, "absent:predict", {"instances": row})

    threads = [threading.Thread(target=call_often) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def classify(server: ServerProcess) -> None:
    """A call with a tf.Example, on TensorFlow."""
    body = {"signature_name": "classify", "examples": [{"images": [0.0] * 784}]}
    post(server, "mlp:classify", body)


def leave_early(server: ServerProcess) -> None:
    """A call whose time is over while it waits for its batch."""
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
        call(channel, PREDICT, make_request(), timeout_s=0.005)


def post(server: ServerProcess, path: str, body: Document) -> None:
    url = f"{server.url}/v1/models/{path}"
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60).close()


def wait_for_answer(ask: Callable[[], Any], *, timeout_s: float = 60.0) -> Any:
    """What `ask` gives once it is not empty, or the last of it."""
    deadline = time.monotonic() + timeout_s
    while not (found := ask()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


# The dashboard's structure.


def test_the_dashboard_is_one_that_grafana_10_reads() -> None:
    assert DASHBOARD["schemaVersion"] >= 38
    assert DASHBOARD["id"] is None, "a number would overwrite another dashboard"
    assert re.fullmatch(r"[a-z-]{1,40}", DASHBOARD["uid"])
    assert DASHBOARD["panels"][0]["type"] == "row"


def test_ids_of_panels_are_unique() -> None:
    ids = [one["id"] for one in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_panels_cover_their_grid_without_overlap_or_gap() -> None:
    taken: dict[tuple[int, int], int] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= GRID_COLUMNS
        rows = range(place["y"], place["y"] + place["h"])
        for cell in itertools.product(rows, range(place["x"], place["x"] + place["w"])):
            assert cell not in taken, f"{panel['title']} lies on panel {taken[cell]}"
            taken[cell] = panel["id"]
    assert len(taken) == GRID_COLUMNS * (1 + max(row for row, _ in taken))


@pytest.mark.parametrize("panel", list_panels(), ids=lambda one: one["title"])
def test_a_panel_says_what_it_shows_in_which_unit_and_who_feeds_it(panel: Document) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    assert len({one["refId"] for one in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        assert "$job" in target["expr"], "every query is of the chosen job"
    is_ours = all(EMBEDDED_ONLY in one["expr"] for one in panel["targets"])
    assert ("Embedded server only." if is_ours else "Both servers") in panel["description"]


def test_jobs_instances_and_models_are_chosen_from_what_both_servers_expose() -> None:
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "model"]
    assert variables["datasource"]["type"] == "datasource"
    for name in ("job", "instance", "model"):
        assert variables[name]["multi"]
        assert variables[name]["query"]["query"].startswith("label_values(:tensorflow:serving:")


# Its queries, of a server that was scraped.


@pytest.mark.tensorflow
@pytest.mark.parametrize(("title", "query"), list_queries(), ids=[one for one, _ in list_queries()])
def test_a_query_of_the_dashboard_has_an_answer(scene: Scene, title: str, query: str) -> None:
    def ask() -> list[Document]:
        found = scene.prometheus.ask("query", query=query)["result"]
        return [one for one in found if math.isfinite(float(one["value"][1]))]

    assert wait_for_answer(ask), query


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["job", "instance", "model"])
def test_a_variable_of_the_dashboard_has_values(scene: Scene, name: str) -> None:
    (one,) = [one for one in DASHBOARD["templating"]["list"] if one["name"] == name]
    wanted = re.fullmatch(r"label_values\((.+), (\w+)\)", one["query"]["query"])
    assert wanted
    matcher, label = fill_in(wanted[1]), wanted[2]
    found = wait_for_answer(
        lambda: scene.prometheus.ask(f"label/{label}/values", **{"match[]": matcher})
    )
    assert {"job": "model-servers", "instance": scene.server.url[7:], "model": "mlp"}[name] in found


@pytest.mark.tensorflow
def test_every_metric_that_dashboard_and_alerts_name_is_exposed(scene: Scene) -> None:
    with urllib.request.urlopen(f"{scene.server.url}{METRICS_PATH}") as answer:
        page = answer.read().decode()
    exposed = set(re.findall(r"^([a-z_:]+)\{", page, re.MULTILINE))
    expressions = [query for _, query in list_queries()] + [one["expr"] for one in list_rules()]
    named = set().union(*map(find_metrics, expressions))
    assert named <= exposed
    assert len(named) > 20


@pytest.mark.tensorflow
def test_promtool_has_nothing_against_the_page_but_tensorflow_servings_names(scene: Scene) -> None:
    with urllib.request.urlopen(f"{scene.server.url}{METRICS_PATH}") as answer:
        page = answer.read().decode()
    done = run_promtool("check", "metrics", text=page)
    disliked = done.stderr.splitlines() + done.stdout.splitlines()
    assert [line for line in disliked if not DISLIKED_NAMES.fullmatch(line)] == []


def test_the_document_names_every_metric_and_no_other() -> None:
    metrics = Metrics(list_versions=dict, is_ready=lambda: False)
    metrics.watch_residency(lambda: Residency(num_models=0, num_bytes=0, max_bytes=0))
    exposed = set(re.findall(r"^# TYPE (\S+) ", metrics.render(), re.MULTILINE))
    exposed.add("plumbline_worker_up")  # of --workers
    documented = RUNBOOK.read_text()
    table = documented[documented.index("## Metrics") : documented.index("## Alerts")]
    assert set(re.findall(r"`((?:plumbline_|:tensorflow:)\w[\w:]*)`", table)) == exposed


# Alerts.


def test_the_alerts_are_rules() -> None:
    done = run_promtool("check", "rules", str(RULES / "alerts.yml"))
    assert done.returncode == 0, done.stderr + done.stdout


def test_prometheus_configuration_finds_its_alerts() -> None:
    done = run_promtool("check", "config", str(RULES / "prometheus.yml"))
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"SUCCESS: {len(list_rules())} rules found" in done.stdout


def test_alerts_fire_where_they_should_and_are_silent_where_not() -> None:
    done = run_promtool("test", "rules", "alerts-tests.yml", cwd=RULES)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize("name", [one["alert"] for one in list_rules()])
def test_an_alert_is_tested_firing_and_silent(name: str) -> None:
    tests = yaml.safe_load((RULES / "alerts-tests.yml").read_text())["tests"]
    found = [
        bool(one["exp_alerts"])
        for test in tests
        for one in test["alert_rule_test"]
        if one["alertname"] == name
    ]
    assert set(found) == {True, False}


@pytest.mark.parametrize("rule", list_rules(), ids=lambda one: one["alert"])
def test_an_alert_says_how_bad_it_is_what_was_measured_and_what_to_do(rule: Document) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    annotations = rule["annotations"]
    assert annotations["summary"]
    assert "$value" in annotations["description"]
    path, _, section = annotations["runbook_url"].partition("#")
    assert section == rule["alert"].lower()
    headings = re.findall(r"^#+ (\w+)$", (ROOT / path).read_text(), re.MULTILINE)
    assert rule["alert"] in headings
    is_ours = EMBEDDED_ONLY in rule["expr"]
    assert is_ours == ("Embedded server only." in annotations["description"])


@pytest.mark.tensorflow
def test_no_alert_fires_of_a_server_that_is_well(scene: Scene) -> None:
    def ask() -> list[Document]:
        (group,) = scene.prometheus.ask("rules")["groups"]
        rules: list[Document] = group["rules"]
        return rules if all(one["health"] != "unknown" for one in rules) else []

    rules = wait_for_answer(ask)
    assert {one["health"] for one in rules} == {"ok"}
    assert [one["name"] for one in rules if one["state"] == "firing"] == []
