"""Small published versions, an S3-speaking server, and our commands in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from contract import layout
from tests.versions import seal

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def write_version(version_dir: Path, *, num_shards: int = 3, seed: str = "a") -> Path:
    """A version directory with a true manifest; its name is its number."""
    files = {
        layout.SAVED_MODEL: f"graph {seed}".encode() * 50,
        "fingerprint.pb": b"fingerprint",
        layout.LABELS: b"zero\none\n",
        layout.GOLDEN: b"",
        "model.tflite": seed.encode() * 5000,
    }
    for shard in range(num_shards):
        files[f"variables/variables.data-{shard:05}"] = f"{seed}{shard}".encode() * 2000
    for name, content in files.items():
        path = version_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    seal(version_dir)
    return version_dir


class Bucket:
    """One bucket of a real S3-speaking server on the loopback."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.endpoint = endpoint
        self.name = name
        self.url = f"s3://{name}/models/mlp"
        self.client: Any = boto3.client("s3", endpoint_url=endpoint)
        self.client.create_bucket(Bucket=name)

    def list_keys(self) -> list[str]:
        """Keys below the model's folder, in the order of their last writing."""
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return [one["Key"].removeprefix("models/mlp/") for one in found]

    def read(self, key: str) -> bytes:
        answer = self.client.get_object(Bucket=self.name, Key=f"models/mlp/{key}")
        return bytes(answer["Body"].read())

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"models/mlp/{key}", Body=content)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=f"models/mlp/{key}")


@contextmanager
def serve_s3(host: str = "127.0.0.1") -> Iterator[str]:
    """A moto server on a free port; yields its address."""
    server = ThreadedMotoServer(ip_address=host, port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def start_exporter(*arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`python -m exporter` with these arguments."""
    return subprocess.Popen(
        [sys.executable, "-m", "exporter", *map(str, arguments)],
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
