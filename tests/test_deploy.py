"""The files of deploy/ say what they mean: rendered, checked against schemas, and read."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from serving.config import memory
from serving.config.flags import ServerFlags, list_flags, parse_flags
from serving.container.engine import REPOSITORY, ContainerEngine, name_default_image
from serving.container.plan import TEMPORARY_FOLDER, list_confinements
from serving.transport.admission import MemoryBudget
from tests.serving.server_process import ServerProcess

ROOT = Path(__file__).resolve().parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
KSERVE = KUBERNETES / "kserve"
SCORE = KUBERNETES / "score"
COMPOSE = ROOT / "deploy" / "compose.yaml"

SERVERS = ["embedded", "tensorflow-serving", "embedded-fetch"]
FOLDERS = [
    *(f"overlays/{name}" for name in SERVERS),
    *(f"parity/{name}" for name in SERVERS),
]
SCHEMA = "1.37"
DRAIN_TIMEOUT_S = 30  # the default of --drain_timeout_s
TMP_BYTES = 64 * 2**20  # files in memory count for a container's limit

Document = dict[str, Any]


def find_tool(name: str) -> str:
    """A tool of the environment, or of the machine."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} has no wheel for this machine, and none is on PATH")
    return found


@functools.cache
def render(folder: str) -> list[Document]:
    """What `kubectl apply -k` would send."""
    done = subprocess.run(
        [find_tool("kubectl"), "kustomize", str(KUBERNETES / folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def render_monitored(tmp_path: Path) -> list[Document]:
    """An overlay of one's own, with the component for the Prometheus operator."""
    overlay = tmp_path / "monitored"
    overlay.mkdir()
    resources = os.path.relpath(KUBERNETES / "overlays" / "embedded", overlay)
    component = os.path.relpath(KUBERNETES / "components" / "monitoring", overlay)
    (overlay / "kustomization.yaml").write_text(
        f"resources: [{resources}]\ncomponents: [{component}]\n"
    )
    return render(str(overlay))


def read_kserve(name: str) -> Document:
    """One of the manifests for KServe."""
    document: Document = yaml.safe_load((KSERVE / name).read_text())
    return document


def check_custom(document: Document) -> None:
    """Refuses what a cluster with this CustomResourceDefinition would, and unknown fields."""
    schema = json.loads((ROOT / "tests" / "crds" / f"{document['kind']}.json").read_text())
    jsonschema.validate(document, schema)


def find_one(folder: str, kind: str, name: str = "") -> Document:
    """The one document of a kind."""
    (found,) = (
        one
        for one in render(folder)
        if one["kind"] == kind and name in ("", one["metadata"]["name"])
    )
    return found


def find_server(name: str) -> tuple[Document, Document]:
    """The pod's specification and the server's container in it."""
    pod = find_one(f"overlays/{name}", "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def read_compose() -> Document:
    """What `docker compose config` makes of the file."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [find_tool("docker-compose"), "-f", str(COMPOSE), "--profile=*", "config", "--format=json"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower(), done.stderr
    document: Document = json.loads(done.stdout)
    return document


@pytest.mark.parametrize("folder", FOLDERS)
def test_manifests_render_without_a_warning_and_fit_the_schemas(folder: str) -> None:
    documents = render(folder)
    assert documents
    for document in documents:
        kubernetes_validate.validate(document, SCHEMA, strict=True)


@pytest.mark.parametrize("name", SERVERS)
def test_a_rolling_update_leaves_no_gap(name: str) -> None:
    deployment = find_one(f"overlays/{name}", "Deployment")["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert "replicas" not in deployment, "they are the autoscaler's"
    pod, container = find_server(name)
    wait = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = DRAIN_TIMEOUT_S if name.startswith("embedded") else 0
    assert wait >= 5
    assert pod["terminationGracePeriodSeconds"] > wait + drain


@pytest.mark.parametrize("name", SERVERS)
def test_probes_mean_what_they_say(name: str) -> None:
    _, container = find_server(name)
    startup, readiness = container["startupProbe"], container["readinessProbe"]
    liveness = container["livenessProbe"]
    if name.startswith("embedded"):
        assert startup["httpGet"] == readiness["httpGet"] == {"path": "/readyz", "port": "rest"}
        assert liveness["httpGet"] == {"path": "/livez", "port": "rest"}
    else:
        assert startup["exec"] == readiness["exec"]
        assert '"state": "AVAILABLE"' in readiness["exec"]["command"][-1]
        assert liveness["grpc"]["port"] == 8500
        assert "--enable_grpc_healthcheck_service=true" in container["args"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_are_confined_as_the_restricted_standard_wants_it(folder: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    (found,) = (one for one in render(folder) if one["kind"] in ("Deployment", "Job"))
    pod = found["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for volume in pod["volumes"]:
        assert {"configMap", "emptyDir", "persistentVolumeClaim"} & volume.keys(), volume
    for container in (*pod["containers"], *pod.get("initContainers", [])):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["allowPrivilegeEscalation"] is False
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]


def test_what_kserve_runs_is_confined_as_the_restricted_standard_wants_it() -> None:
    runtime = yaml.safe_load((KUBERNETES / "kserve" / "runtime.yaml").read_text())
    for container in runtime["spec"]["containers"]:
        context = container["securityContext"]
        assert context["runAsNonRoot"]
        assert context["readOnlyRootFilesystem"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}


@pytest.mark.parametrize("name", SERVERS)
def test_the_server_understands_every_flag_it_is_given(name: str) -> None:
    _, container = find_server(name)
    given, unknown = parse_flags(container["args"], list_flags(ServerFlags))
    assert unknown == []
    assert (given["port"], given["rest_api_port"]) == (8500, 8501)


@pytest.mark.parametrize("name", SERVERS)
def test_connections_end_in_time_for_pods_that_are_new(name: str) -> None:
    _, container = find_server(name)
    given, _ = parse_flags(container["args"], list_flags(ServerFlags))
    arguments = dict(one.split("=") for one in str(given["grpc_channel_arguments"]).split(","))
    assert 60_000 <= int(arguments["grpc.max_connection_age_ms"]) <= 600_000


def check_memory(limit: int, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls, the processes and /tmp fit, and so does the largest message."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # as in the image
    flags = ServerFlags(**dict[str, Any](parse_flags(arguments, list_flags(ServerFlags))[0]))
    budget = memory.choose_max_bytes_in_flight(flags, limit)
    needed = flags.workers * memory.PROCESS_BYTES + memory.BESIDE_BYTES
    assert needed + flags.workers * budget + TMP_BYTES <= limit
    assert MemoryBudget(budget).max_call_bytes >= flags.max_message_bytes
    # As sent, and once more in arrays, which is what pieces of it take.
    assert MemoryBudget(budget).max_call_bytes >= 3 * flags.max_json_bytes


@pytest.mark.parametrize("name", ["embedded", "embedded-fetch"])
def test_no_request_is_worth_more_memory_than_a_pod_has(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod, container = find_server(name)
    tmp = next(one for one in pod["volumes"] if one["name"] == "tmp")
    assert tmp["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Mi"}
    limit = container["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    check_memory(int(limit.removesuffix("Mi")) * 2**20, container["args"], monkeypatch)


def test_no_request_is_worth_more_memory_than_compose_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = read_compose()["services"]["embedded"]
    assert any("size=64m" in one for one in service["tmpfs"])
    check_memory(int(service["mem_limit"]), [], monkeypatch)


@pytest.mark.parametrize("name", SERVERS)
def test_grpc_clients_find_every_pod_behind_a_headless_service(name: str) -> None:
    service = find_one(f"overlays/{name}", "Service", "model-server")["spec"]
    template = find_one(f"overlays/{name}", "Deployment")["spec"]["template"]
    assert service["clusterIP"] == "None"
    assert service["selector"].items() <= template["metadata"]["labels"].items()
    _, container = find_server(name)
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert {one["targetPort"] for one in service["ports"]} <= ports.keys()


@pytest.mark.parametrize("name", SERVERS)
def test_scaling_and_disruption_are_about_the_same_pods(name: str) -> None:
    folder = f"overlays/{name}"
    scaler = find_one(folder, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == find_one(folder, "Deployment")["metadata"]["name"]
    assert scaler["minReplicas"] >= 2
    budget = find_one(folder, "PodDisruptionBudget")["spec"]
    labels = find_one(folder, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()


def test_the_stock_image_is_of_the_locked_version_everywhere() -> None:
    _, container = find_server("tensorflow-serving")
    assert container["image"] == name_default_image()
    assert read_compose()["services"]["tensorflow-serving"]["image"] == name_default_image()
    assert name_default_image().startswith(REPOSITORY)


def test_each_pod_that_fetches_has_a_volume_of_its_own() -> None:
    pod, _ = find_server("embedded-fetch")
    volume = next(one for one in pod["volumes"] if one["name"] == "models")
    assert volume == {"name": "models", "emptyDir": {}}
    (fetch,) = pod["initContainers"]
    from exporter.cli import main

    arguments = [one.replace("$(MODEL_VERSION)", "1") for one in fetch["args"]]
    with pytest.raises(SystemExit) as end:
        main([*fetch["command"][3:], *arguments, "--help"])
    assert end.value.code == 0


@pytest.mark.parametrize("folder", [f"parity/{name}" for name in SERVERS])
def test_the_parity_job_is_a_command_that_exists(folder: str) -> None:
    (container,) = find_one(folder, "Job")["spec"]["template"]["spec"]["containers"]
    arguments = [*container["command"][3:], *container["args"]]
    from clients.cli import build_parser

    parsed = build_parser().parse_args(arguments)
    assert parsed.server == "model-server:8500"


def test_tensorflow_serving_in_kubernetes_counts_as_our_container_command_does() -> None:
    inside = ROOT / "serving" / "container" / "monitoring.config"
    copy = KUBERNETES / "overlays" / "tensorflow-serving" / "monitoring.config"
    assert copy.read_text() == inside.read_text()


def test_the_documented_patch_gives_a_server_the_key_that_it_asks_signatures_of(
    tmp_path: Path,
) -> None:
    text = (ROOT / "docs" / "signing.md").read_text()
    (patch,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    # Resources are named by where they lie from here, which leaves the folder of a test.
    overlay = os.path.relpath(KUBERNETES / "overlays" / "embedded", tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(f"resources: [{overlay}]\n{patch}")
    (tmp_path / "signing.pub").write_text("a public key\n")
    done = subprocess.run(
        [find_tool("kubectl"), "kustomize", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    documents = list(yaml.safe_load_all(done.stdout))
    (deployment,) = (one for one in documents if one["kind"] == "Deployment")
    kubernetes_validate.validate(deployment, SCHEMA, strict=True)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    given, unknown = parse_flags(container["args"], list_flags(ServerFlags))
    assert unknown == []
    folder = Path(str(given["require_signature_key"])).parent
    mount = next(one for one in container["volumeMounts"] if one["mountPath"] == str(folder))
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    volume = next(one for one in volumes if one["name"] == mount["name"])
    keys = next(
        one
        for one in documents
        if one["kind"] == "ConfigMap" and one["metadata"]["name"] == volume["configMap"]["name"]
    )
    assert keys["data"] == {"signing.pub": "a public key\n"}


def test_compose_confines_the_servers_and_publishes_on_loopback() -> None:
    services = read_compose()["services"]
    assert {"embedded", "tensorflow-serving", "prometheus", "parity"} == services.keys()
    for service in services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert [f"--tmpfs={one}" for one in service["tmpfs"]] == [TEMPORARY_FOLDER]
        assert all(mount["read_only"] for mount in service["volumes"])
        assert not service.get("privileged")
    for name in ("embedded", "tensorflow-serving", "parity"):
        assert services[name]["user"] == "10001:10001"
    for service in services.values():
        assert {one["host_ip"] for one in service.get("ports", [])} <= {"127.0.0.1"}


def test_the_documented_command_confines_a_container_as_serving_container_does() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    (command,) = re.findall(r"^docker run (?:.*\\\n)*.*plumbline:embedded$", text, re.MULTILINE)
    given = command.replace("\\\n", " ").split()
    wanted = list_confinements(ContainerEngine("docker", is_podman=False))
    # The image names its user itself, as compose and the manifests do.
    kept = {one for one in wanted if not one.startswith(("--user", "--security-opt=label"))}
    assert kept <= set(given)
    assert "readonly" in next(one for one in given if one.startswith("--mount"))
    assert all("=127.0.0.1:" in one for one in given if one.startswith("--publish"))
    containerfile = (ROOT / "deploy" / "Containerfile").read_text()
    assert containerfile.count("USER 10001:10001") == 3  # servers, tools, nodes that score


def test_compose_gives_flags_that_exist() -> None:
    command = read_compose()["services"]["tensorflow-serving"]["command"]
    assert parse_flags(command, list_flags(ServerFlags))[1] == []
    from clients.cli import build_parser

    build_parser().parse_args(read_compose()["services"]["parity"]["command"][1:])


def test_compose_names_only_files_that_exist() -> None:
    for service in read_compose()["services"].values():
        for mount in service.get("volumes", []):
            if "models" not in mount["target"]:
                assert Path(mount["source"]).is_file(), mount


def test_prometheus_scrapes_both_servers_where_they_count() -> None:
    document = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (job,) = document["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert set(discovery["names"]) <= read_compose()["services"].keys()
    monitoring = (ROOT / "serving" / "container" / "monitoring.config").read_text()
    assert re.findall(r'path: "(.+)"', monitoring) == [job["metrics_path"]]


# The Prometheus operator.


def test_the_monitoring_component_fits_an_overlay_and_the_operators_schemas(
    tmp_path: Path,
) -> None:
    documents = render_monitored(tmp_path)
    custom = [one for one in documents if one["apiVersion"].startswith("monitoring.coreos.com")]
    assert {one["kind"] for one in custom} == {"ServiceMonitor", "PrometheusRule"}
    for document in custom:
        check_custom(document)
    for document in documents:
        if document not in custom:
            kubernetes_validate.validate(document, SCHEMA, strict=True)


def test_a_service_monitor_finds_every_pod_once_where_it_counts(tmp_path: Path) -> None:
    documents = render_monitored(tmp_path)
    (monitor,) = (one for one in documents if one["kind"] == "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    services = [one for one in documents if one["kind"] == "Service"]
    assert len(services) == 2
    (found,) = (one for one in services if wanted <= one["metadata"]["labels"].items())
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {one["name"] for one in found["spec"]["ports"]}
    job = found["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    alerts = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
    (jobs,) = re.findall(r'up\{job=~"(.+?)"\}', alerts)
    assert re.fullmatch(jobs, job)
    monitoring = (ROOT / "serving" / "container" / "monitoring.config").read_text()
    assert re.findall(r'path: "(.+)"', monitoring) == [endpoint["path"]]


def test_the_operator_knows_the_same_alerts(tmp_path: Path) -> None:
    (rule,) = (one for one in render_monitored(tmp_path) if one["kind"] == "PrometheusRule")
    alerts = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    assert rule["spec"] == alerts


# KServe.


@pytest.mark.parametrize("path", sorted(KSERVE.glob("*.yaml")), ids=lambda path: path.name)
def test_kserve_manifests_fit_the_schemas(path: Path) -> None:
    check_custom(read_kserve(path.name))


@pytest.mark.parametrize("name", ["runtime.yaml", "v2.yaml"])
def test_a_field_that_kserve_does_not_know_is_found(name: str) -> None:
    document = read_kserve(name)
    inner = document["spec"]
    inner = inner["predictor"]["model"] if "predictor" in inner else inner["containers"][0]
    inner["readynessProbe"] = {}
    with pytest.raises(jsonschema.ValidationError, match="readynessProbe"):
        check_custom(document)


def test_kserve_starts_the_server_with_flags_that_it_has_where_the_model_is() -> None:
    (container,) = read_kserve("runtime.yaml")["spec"]["containers"]
    given, unknown = parse_flags(container["args"], list_flags(ServerFlags))
    assert unknown == []
    assert given["model_name"] == "{{.Name}}"
    assert given["model_base_path"] == "/mnt/models"
    ports = {probe["httpGet"]["port"] for name, probe in container.items() if "Probe" in name}
    assert ports == {given["rest_api_port"]}
    grpc_ports = read_kserve("v2-grpc.yaml")["spec"]["predictor"]["model"]["ports"]
    assert [one["containerPort"] for one in grpc_ports] == [given["port"]]


def test_a_server_started_as_kserve_does_answers_both_protocols(
    published_mlp: Path, tmp_path: Path
) -> None:
    (container,) = read_kserve("runtime.yaml")["spec"]["containers"]
    flags = [
        one.replace("{{.Name}}", "digits").replace("/mnt/models", str(published_mlp / "mlp"))
        for one in container["args"]
        if "port=" not in one
    ]
    row = [0.0] * 784
    tensor = {"name": "images", "datatype": "FP32", "shape": [1, 784], "data": row}
    with ServerProcess(tmp_path, *flags, "--engine=litert", rest=True) as server:
        server.wait_until_ready()
        assert post(f"{server.url}/v1/models/digits:predict", {"instances": [row]})["predictions"]
        answer = post(f"{server.url}/v2/models/digits/infer", {"inputs": [tensor]})
        assert answer["outputs"][0]["shape"][0] == 1


def post(url: str, body: Document) -> Document:
    """The JSON that a server answers."""
    request = urllib.request.Request(url, json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        document: Document = json.load(answer)
    return document


@pytest.mark.parametrize("name", ["v1.yaml", "v2.yaml", "v2-grpc.yaml"])
def test_an_inference_service_asks_for_what_the_runtime_offers(name: str) -> None:
    runtime = read_kserve("runtime.yaml")
    model = read_kserve(name)["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    formats = {one["name"] for one in runtime["spec"]["supportedModelFormats"]}
    assert model["modelFormat"]["name"] in formats


def test_a_pod_of_kserve_is_confined_and_has_the_memory_that_it_promises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = read_kserve("runtime.yaml")["spec"]
    (container,) = spec["containers"]
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert context["runAsNonRoot"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert spec["volumes"] == [
        {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}
    ]
    limit = container["resources"]["limits"]["memory"]
    check_memory(int(limit.removesuffix("Mi")) * 2**20, container["args"], monkeypatch)


# KubeRay.


def read_rayjob() -> Document:
    """The manifest of a job that scores."""
    document: Document = yaml.safe_load((SCORE / "rayjob.yaml").read_text())
    return document


def list_pods(document: Document) -> dict[str, Document]:
    """The pods of a RayJob, by what they are."""
    spec = document["spec"]
    cluster = spec["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    groups = {"head": cluster["headGroupSpec"], "worker": group}
    pods = {"submitter": spec["submitterPodTemplate"]["spec"]}
    return pods | {name: one["template"]["spec"] for name, one in groups.items()}


def read_versions(lock: str) -> dict[str, str]:
    """Package to version, of a lock."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_the_rayjob_fits_the_schema() -> None:
    check_custom(read_rayjob())


def test_a_field_that_kuberay_does_not_know_is_found() -> None:
    document = read_rayjob()
    document["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParameters"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParameters"):
        check_custom(document)


def test_pods_of_a_rayjob_are_confined_as_the_restricted_standard_wants_it() -> None:
    for pod in list_pods(read_rayjob()).values():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["allowPrivilegeEscalation"] is False
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        assert container["image"] == "plumbline:score"


def test_a_rayjob_runs_a_command_that_exists() -> None:
    from clients.cli import build_parser

    words = shlex.split(read_rayjob()["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "clients"]
    assert build_parser().parse_args(words[3:]).cluster == "", "RAY_ADDRESS says which"


def test_a_cluster_has_the_versions_that_are_tested_here() -> None:
    cluster, here = (
        read_versions("requirements-ray-cluster.lock"),
        read_versions("requirements.lock"),
    )
    assert {"ray", "pyarrow", "numpy", "ai-edge-litert", "s3fs"} <= cluster.keys() & here.keys()
    assert {name: here[name] for name in cluster.keys() & here.keys()}.items() <= cluster.items()
    assert read_rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == cluster["ray"]


def test_the_documented_overlay_scores_on_a_volume(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "score.md").read_text()
    (overlay,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    place = os.path.relpath(SCORE, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(overlay.replace("../score", place))
    (document,) = render(str(tmp_path))
    check_custom(document)
    words = shlex.split(document["spec"]["entrypoint"])
    pods = list_pods(document)
    for name in ("head", "worker"):
        (container,) = pods[name]["containers"]
        mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        volumes = {one["name"]: one for one in pods[name]["volumes"]}
        assert volumes.keys() == mounts.keys() == {"tmp", "data"}
        assert "persistentVolumeClaim" in volumes["data"]
        assert all(word.startswith(mounts["data"]) for word in words if "/" in word)
    assert [one["name"] for one in pods["submitter"]["volumes"]] == ["tmp"]
    images = {pod["containers"][0]["image"] for pod in pods.values()}
    assert images == {"registry.example.org/plumbline:score"}


def roll_out(tmp_path: Path, *, succeeded: str, status: int = 0) -> tuple[int, list[str]]:
    """Runs roll-out with a kubectl that notes what it is asked, and answers as told."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\ncase "$*" in\n'
        f"*jsonpath*) printf %s '{succeeded}' ;;\n"
        f"rollout\\ status*) [ -e {tmp_path}/undone ] || exit {status} ;;\n"
        f"rollout\\ undo*) touch {tmp_path}/undone ;;\nesac\n"
    )
    kubectl.chmod(0o755)
    done = subprocess.run(
        [KUBERNETES / "roll-out", "embedded"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=False,
        capture_output=True,
    )
    return done.returncode, (tmp_path / "calls").read_text().splitlines()


def test_a_rollout_that_agrees_stays(tmp_path: Path) -> None:
    code, calls = roll_out(tmp_path, succeeded="1")
    assert code == 0
    assert calls[0] == "apply -k overlays/embedded"
    assert "apply -k parity/embedded" in calls
    assert not [call for call in calls if "undo" in call]


@pytest.mark.parametrize(("succeeded", "status"), [("", 0), ("1", 1)])
def test_a_rollout_that_differs_or_hangs_goes_back(
    tmp_path: Path, succeeded: str, status: int
) -> None:
    code, calls = roll_out(tmp_path, succeeded=succeeded, status=status)
    assert code == 1
    assert "rollout undo deployment/model-server" in calls


@pytest.mark.parametrize(
    "script", ["build", "kubernetes/roll-out", "install.sh", "trim.sh", "entrypoint.sh"]
)
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / "deploy" / script)], check=True)


def test_everything_that_an_image_is_built_from_is_in_its_context() -> None:
    kept = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    containerfile = (ROOT / "deploy" / "Containerfile").read_text()
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", containerfile, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert any(Path(source).match(pattern) for pattern in kept), source
        assert (ROOT / source).exists()


def test_every_package_is_installed_into_images() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in ("contract", "exporter", "serving", "clients")
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert listed == found


def select_locked(*arguments: str, folder: Path = ROOT) -> dict[str, str]:
    """The lock's entries that an image installs, by package."""
    done = subprocess.run(
        [sys.executable, ROOT / "deploy/locked.py", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    chosen: dict[str, str] = {}
    for entry in re.split(r"^(?=\w)", done.stdout, flags=re.MULTILINE)[1:]:
        name = entry.partition("==")[0]
        chosen[name] = chosen.get(name, "") + entry
    return chosen


def test_images_install_what_they_need_of_the_lock_and_no_more() -> None:
    chosen = select_locked("--extra", "serving")
    assert {"google-crc32c", "grpcio", "httptools", "uvloop", "numpy"} <= set(chosen)
    assert not {"tensorflow", "aiohttp", "pytest", "httpx", "s3fs", "setuptools"} & set(chosen)
    assert "model-signing" in select_locked("--extra", "serving", "--extra", "signing")
    lock = (ROOT / "requirements.lock").read_text()
    for entry in chosen.values():
        assert "--hash=sha256:" in entry
        assert entry in lock


def test_images_choose_packages_by_name_alone_too() -> None:
    assert set(select_locked("setuptools")) == {"setuptools"}


def test_a_package_with_an_entry_for_each_python_is_installed_on_all(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text(
        "one==1 ; python_full_version < '3.12' \\\n    --hash=sha256:a\n    # via two\n"
        "one==2 ; python_full_version >= '3.12' \\\n    --hash=sha256:b\n    # via two\n"
        "two==1 \\\n    --hash=sha256:c\n"
    )
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    chosen = select_locked("two", folder=tmp_path)
    assert set(chosen) == {"one", "two"}
    assert chosen["one"].count("==1 ;") == chosen["one"].count("==2 ;") == 1


def test_a_package_that_is_not_locked_is_named() -> None:
    with pytest.raises(AssertionError, match=r"requirements\.lock has no left-pad"):
        select_locked("left-pad")


class UniqueKeys(yaml.SafeLoader):
    """Refuses what kustomize refuses, and `yaml` takes: a key twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [str(key.value) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key is there twice: {keys}"
        return super().construct_mapping(node, deep)


WRITTEN = sorted(ROOT.glob("deploy/**/*.y*ml"))
PAGES = [path for path in sorted(ROOT.glob("docs/*.md")) if "```yaml" in path.read_text()]


@pytest.mark.parametrize("path", [*WRITTEN, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_key_is_there_twice(path: Path) -> None:
    text = path.read_text()
    if path.suffix == ".md":
        texts = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    else:
        texts = [text]
    for one in texts:
        assert list(yaml.load_all(one, UniqueKeys))


@pytest.mark.parametrize("words", [[], ["nosuch"]])
def test_a_roll_out_of_no_overlay_names_those_that_there_are(words: list[str]) -> None:
    done = subprocess.run(
        [KUBERNETES / "roll-out", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    for overlay in sorted((KUBERNETES / "overlays").iterdir()):
        assert overlay.name in done.stderr
