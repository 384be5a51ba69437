from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from contract import layout
from contract.errors import (
    ConfigError,
    ExportError,
    ManifestError,
    ServableNotFoundError,
    ServableUnavailableError,
    UnimplementedError,
    UntrustedVersionError,
    VersionExistsError,
)
from contract.manifest import check_files, read_manifest, write_manifest
from contract.remote import RemoteBasePath
from contract.signing import sign_version, verify_version
from exporter.publishing.transfer import copy_to_remote, fetch_version
from tests.exporter.file_limit import limit_files, small_disk
from tests.exporter.remote_versions import (
    CREDENTIALS,
    Bucket,
    serve_s3,
    start_exporter,
    write_version,
)
from tests.signing_keys import Keys, make_keys


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, serve_s3() as endpoint:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield endpoint


@pytest.fixture
def bucket(s3_endpoint: str, request: pytest.FixtureRequest) -> Bucket:
    digest = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    return Bucket(s3_endpoint, f"bucket-{digest}")


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return write_version(tmp_path / "published" / "mlp" / "3")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    pytest.importorskip("model_signing")
    return make_keys(tmp_path)


def assert_same_version(copy: Path, original: Path) -> None:
    assert layout.list_files(copy) == layout.list_files(original)
    for name in layout.list_files(original):
        assert (copy / name).read_bytes() == (original / name).read_bytes()


def wait_until(is_reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not is_reached():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def test_a_version_copied_to_s3_and_fetched_is_the_same_byte_for_byte(
    bucket: Bucket, version: Path, tmp_path: Path
) -> None:
    copied = copy_to_remote(version, bucket.url)
    fetched = fetch_version(bucket.url, tmp_path / "here" / "mlp")
    assert (copied.target, copied.num_present) == (f"{bucket.url}/3", 0)
    assert copied.num_files == len(layout.list_files(version)) == fetched.num_files
    assert_same_version(tmp_path / "here" / "mlp" / "3", version)


def test_file_addresses_work_like_those_of_object_stores(version: Path, tmp_path: Path) -> None:
    url = (tmp_path / "mounted disk" / "mlp").as_uri().replace("%20", " ")
    copy_to_remote(version, url)
    fetch_version(url, tmp_path / "here")
    assert_same_version(tmp_path / "here" / "3", version)


def test_data_goes_first_then_the_graph_and_the_manifest_last(
    bucket: Bucket, version: Path
) -> None:
    uploads: list[str] = []

    def note(_num_bytes: int) -> None:
        uploads.extend(key for key in bucket.list_keys() if key not in uploads)

    copy_to_remote(version, bucket.url, on_bytes=note)
    assert uploads[-2:] == [f"3/{layout.SAVED_MODEL}", f"3/{layout.MANIFEST}"]


def test_progress_counts_every_byte_once(bucket: Bucket, version: Path, tmp_path: Path) -> None:
    size = sum((version / name).stat().st_size for name in layout.list_files(version))
    totals: list[int] = []
    for copy in (
        partial(copy_to_remote, version, bucket.url),
        partial(copy_to_remote, version, bucket.url),
        partial(fetch_version, bucket.url, tmp_path / "here"),
        partial(fetch_version, bucket.url, tmp_path / "here"),
    ):
        counted: list[int] = []
        copied = copy(on_bytes=counted.append, on_total=totals.append)
        assert sum(counted) == size == copied.num_bytes
    assert totals == [size] * 3  # the last found all of it in place


def test_a_copy_killed_on_the_way_shows_no_manifest_and_goes_on_where_it_was(
    bucket: Bucket, tmp_path: Path
) -> None:
    version = write_version(tmp_path / "mlp" / "3", num_shards=80)
    process = start_exporter("publish", version, "--to", bucket.url)
    wait_until(lambda: len(bucket.list_keys()) >= 5, process)
    process.kill()
    process.communicate()
    there = bucket.list_keys()
    assert f"3/{layout.MANIFEST}" not in there and f"3/{layout.SAVED_MODEL}" not in there
    with pytest.raises(ServableNotFoundError, match="no complete version"):
        fetch_version(bucket.url, tmp_path / "here")
    copied = copy_to_remote(version, bucket.url)
    assert copied.num_present >= len(there) - 1 > 0  # the last may have been half written
    fetch_version(bucket.url, tmp_path / "here")
    assert_same_version(tmp_path / "here" / "3", version)


def test_a_fetch_killed_on_the_way_shows_no_version_and_goes_on_where_it_was(
    bucket: Bucket, tmp_path: Path
) -> None:
    version = write_version(tmp_path / "mlp" / "3", num_shards=80)
    copy_to_remote(version, bucket.url)
    here = tmp_path / "here"
    process = start_exporter("fetch", bucket.url, "--base_path", here)
    wait_until(lambda: len(list(here.glob(".stage-*/variables/*"))) >= 5, process)
    process.kill()
    process.communicate()
    assert layout.find_versions(here) == {}
    fetched = fetch_version(bucket.url, here)
    assert fetched.num_present >= 4
    assert_same_version(here / "3", version)
    assert list(here.glob(".stage-*")) == []


def list_all(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_fetch_onto_a_disk_that_is_full_leaves_nothing_and_says_so(
    version: Path, tmp_path: Path
) -> None:
    url = f"file://{version.parent}"
    with small_disk(tmp_path / "disk", "24k") as disk:
        with pytest.raises(ExportError, match=r"disk is full.*base path is as it was"):
            fetch_version(url, disk / "models" / "mlp")
        assert list_all(disk) == []
        (disk / "mlp").mkdir()
        (disk / "mlp" / "filler").write_bytes(b"x" * 12_000)
        with pytest.raises(ExportError, match="disk is full"):
            fetch_version(url, disk / "mlp")
        assert list_all(disk / "mlp") == ["filler"]
    fetch_version(url, tmp_path / "elsewhere")


def test_a_fetch_beyond_a_limit_on_files_leaves_nothing(version: Path, tmp_path: Path) -> None:
    with limit_files(3_000), pytest.raises(ExportError, match="disk is full or a quota"):
        fetch_version(f"file://{version.parent}", tmp_path / "models" / "mlp")
    assert not (tmp_path / "models").exists()


def test_a_copy_to_a_disk_that_is_full_says_that_it_is_the_disk(
    version: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "24k") as disk:
        with pytest.raises(ExportError, match=r"disk there is full.*incomplete"):
            copy_to_remote(version, f"file://{disk}/mlp")
        assert not list(disk.rglob(layout.MANIFEST.rpartition("/")[2]))


def test_two_fetches_at_once_end_with_one_version(
    bucket: Bucket, version: Path, tmp_path: Path
) -> None:
    copy_to_remote(version, bucket.url)
    here = tmp_path / "here"
    processes = [start_exporter("fetch", bucket.url, "--base_path", here) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_same_version(here / "3", version)


def test_a_file_changed_in_the_bucket_is_never_fetched_and_a_second_copy_repairs_it(
    bucket: Bucket, version: Path, tmp_path: Path
) -> None:
    copy_to_remote(version, bucket.url)
    content = bytearray(bucket.read("3/model.tflite"))
    content[100] ^= 1
    bucket.write("3/model.tflite", bytes(content))
    with pytest.raises(ManifestError, match=r"damaged.*model\.tflite differs from its sha256"):
        fetch_version(bucket.url, tmp_path / "here")
    assert layout.find_versions(tmp_path / "here") == {}
    copied = copy_to_remote(version, bucket.url)
    assert copied.num_present == copied.num_files - 2  # all but this file and the manifest
    fetch_version(bucket.url, tmp_path / "here")
    assert_same_version(tmp_path / "here" / "3", version)


def test_a_file_lost_in_the_bucket_is_named(bucket: Bucket, version: Path, tmp_path: Path) -> None:
    copy_to_remote(version, bucket.url)
    bucket.delete("3/fingerprint.pb")
    with pytest.raises(ManifestError, match=r"missing or cut short: fingerprint\.pb"):
        fetch_version(bucket.url, tmp_path / "here")


def test_a_damaged_version_is_not_copied(bucket: Bucket, version: Path) -> None:
    (version / "model.tflite").write_bytes(b"cut")
    with pytest.raises(ManifestError, match="bytes instead of"):
        copy_to_remote(version, bucket.url)
    assert bucket.list_keys() == []


def test_a_version_there_is_never_overwritten_by_another(
    bucket: Bucket, version: Path, tmp_path: Path
) -> None:
    copy_to_remote(version, bucket.url)
    before = {key: bucket.read(key) for key in bucket.list_keys()}
    other = write_version(tmp_path / "other" / "3", seed="b")
    with pytest.raises(VersionExistsError, match="taken"):
        copy_to_remote(other, bucket.url)
    assert {key: bucket.read(key) for key in bucket.list_keys()} == before


@pytest.mark.parametrize("key", ["3/saved_model.pb", "3/variables/variables.index"])
def test_what_others_put_under_the_number_is_left_alone(
    bucket: Bucket, version: Path, key: str
) -> None:
    bucket.write(key, b"made by hand")
    with pytest.raises(VersionExistsError, match="taken"):
        copy_to_remote(version, bucket.url)
    assert bucket.list_keys() == [key]


def test_a_version_here_is_never_overwritten_by_another(
    bucket: Bucket, version: Path, tmp_path: Path
) -> None:
    copy_to_remote(version, bucket.url)
    other = write_version(tmp_path / "here" / "3", seed="b")
    with pytest.raises(VersionExistsError, match="exists"):
        fetch_version(bucket.url, tmp_path / "here")
    check_files(other, read_manifest(other))


def test_fetch_takes_the_highest_complete_version_unless_told(
    bucket: Bucket, tmp_path: Path
) -> None:
    for number in (2, 10):
        copy_to_remote(write_version(tmp_path / "mlp" / str(number)), bucket.url)
    bucket.write("11/variables/variables.data-00000", b"still being written")
    assert fetch_version(bucket.url, tmp_path / "here").version == 10
    assert fetch_version(bucket.url, tmp_path / "here", version=2).version == 2
    with pytest.raises(ServableNotFoundError, match=r"version 11 .*versions there: 2, 10, 11"):
        fetch_version(bucket.url, tmp_path / "here", version=11)


@pytest.mark.parametrize("name", ["../../escaped", "/etc/escaped", "a/../b"])
def test_a_manifest_cannot_make_fetch_write_outside_its_stage(
    bucket: Bucket, version: Path, tmp_path: Path, name: str
) -> None:
    copy_to_remote(version, bucket.url)
    manifest = read_manifest(version)
    evil = tmp_path / "evil" / "3"
    write_manifest(
        evil,
        type(manifest)(**manifest_fields(manifest, name)),  # the digest is made anew
    )
    bucket.write(f"3/{layout.MANIFEST}", (evil / layout.MANIFEST).read_bytes())
    with pytest.raises(ManifestError, match="no path of a version"):
        fetch_version(bucket.url, tmp_path / "a" / "b" / "here")
    assert not list(tmp_path.rglob("escaped"))


def manifest_fields(manifest: object, extra: str) -> dict[str, object]:
    fields = {name: getattr(manifest, name) for name in manifest.__struct_fields__}  # type: ignore[attr-defined]
    entry = next(iter(fields["files"].values()))
    return fields | {"files": fields["files"] | {extra: entry}}


def test_a_signature_goes_to_a_remote_base_path_and_comes_back(
    bucket: Bucket, version: Path, tmp_path: Path, keys: Keys
) -> None:
    sign_version(version, keys.private)
    counted: list[int] = []
    copied = copy_to_remote(version, bucket.url)
    fetched = fetch_version(bucket.url, tmp_path / "here" / "mlp", on_bytes=counted.append)
    verify_version(tmp_path / "here" / "mlp" / "3", keys.public, version=3, model_names=["mlp"])
    assert copied.num_files == fetched.num_files == len(layout.list_files(version))
    assert copied.num_bytes == fetched.num_bytes == sum(counted)


def test_a_version_that_is_signed_later_gets_its_signature_by_copying_it_again(
    bucket: Bucket, version: Path, tmp_path: Path, keys: Keys
) -> None:
    here = tmp_path / "here" / "mlp"
    copy_to_remote(version, bucket.url)
    fetch_version(bucket.url, here)
    with pytest.raises(UntrustedVersionError, match="has no signature"):
        verify_version(here / "3", keys.public)
    other = make_keys(tmp_path, "other")
    for one in (other, keys):  # and signed anew, as with a key that takes the place of another
        sign_version(version, one.private)
        before = set(bucket.list_keys())
        copied = copy_to_remote(version, bucket.url)
        assert copied.num_files - copied.num_present == 1
        assert before <= set(bucket.list_keys())
        fetch_version(bucket.url, here)
        verify_version(here / "3", one.public)
    assert {path.name for path in here.iterdir()} == {"3", layout.LOCK}


def test_a_signature_there_stays_when_the_version_is_copied_without_one(
    bucket: Bucket, version: Path, tmp_path: Path, keys: Keys
) -> None:
    sign_version(version, keys.private)
    copy_to_remote(version, bucket.url)
    (version / layout.SIGNATURE).unlink()
    copied = copy_to_remote(version, bucket.url)
    assert copied.num_present == copied.num_files
    fetch_version(bucket.url, tmp_path / "here")
    verify_version(tmp_path / "here" / "3", keys.public)


def test_fetch_with_a_key_shows_no_server_what_is_not_signed(
    bucket: Bucket, version: Path, tmp_path: Path, keys: Keys
) -> None:
    here = tmp_path / "here" / "mlp"
    copy_to_remote(version, bucket.url)
    with pytest.raises(UntrustedVersionError, match="has no signature") as refused:
        fetch_version(bucket.url, here, key=keys.public)
    assert f"{bucket.url}/3" in refused.value.message
    assert "sign the version where it was published" in refused.value.message
    assert not (here / "3").exists()
    sign_version(version, keys.private)
    copy_to_remote(version, bucket.url)
    for _ in range(2):  # again, with the version in place
        fetch_version(bucket.url, here, key=keys.public)
    verify_version(here / "3", keys.public)
    (here / "3" / ".gitignore").write_text("*")
    with pytest.raises(UntrustedVersionError, match=r"\.gitignore was added"):
        fetch_version(bucket.url, here, key=keys.public)


def test_fetch_with_another_key_asks_for_the_key_and_not_for_a_signature(
    bucket: Bucket, version: Path, tmp_path: Path, keys: Keys
) -> None:
    sign_version(version, keys.private)
    copy_to_remote(version, bucket.url)
    other = make_keys(tmp_path, "other").public
    with pytest.raises(UntrustedVersionError, match="is no signature by the key") as refused:
        fetch_version(bucket.url, tmp_path / "here" / "mlp", key=other)
    assert "give the public half of the key that signed" in refused.value.message
    assert "sign the version where" not in refused.value.message


def test_a_candidate_is_not_a_version_to_copy(bucket: Bucket, version: Path) -> None:
    candidate = version.rename(version.parent / "candidate")
    with pytest.raises(ConfigError, match="publish it first"):
        copy_to_remote(candidate, bucket.url)


def test_a_bucket_that_is_not_there_is_not_made(
    s3_endpoint: str, bucket: Bucket, version: Path
) -> None:
    with pytest.raises(ConfigError, match="check the address"):
        copy_to_remote(version, "s3://no-such-bucket/models/mlp")
    assert "no-such-bucket" not in [one["Name"] for one in bucket.client.list_buckets()["Buckets"]]


@pytest.mark.parametrize("url", ["models/mlp", "/models/mlp", "nonsense://x/y", "s3://"])
def test_addresses_that_are_none_are_named_in_one_sentence(url: str) -> None:
    with pytest.raises(ConfigError, match=url or "address"):
        RemoteBasePath(url)


def test_messages_never_show_a_password() -> None:
    with pytest.raises((ConfigError, UnimplementedError)) as caught:
        RemoteBasePath("nonsense://someone:hunter2@host/models/mlp")
    assert "hunter2" not in str(caught.value)


def test_a_service_that_nobody_runs_is_reported_as_unreachable(version: Path) -> None:
    env = CREDENTIALS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    process = start_exporter("publish", version, "--to", "s3://bucket/models/mlp", env=env)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "cannot be reached" in err and "Traceback" not in err


def test_unreachable_is_an_error_of_its_own_class(version: Path) -> None:
    with pytest.raises(ServableUnavailableError, match="cannot be reached"):
        copy_to_remote(version, "http://127.0.0.1:9/models/mlp")


def test_the_commands_print_one_json_document(
    bucket: Bucket, version: Path, tmp_path: Path
) -> None:
    documents = []
    for arguments in (
        ("publish", version.parent, "--to", bucket.url, "--json"),
        ("fetch", bucket.url, "--base_path", tmp_path / "here", "--json"),
    ):
        process = start_exporter(*arguments)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        documents.append(json.loads(out))
    assert [one["version"] for one in documents] == [3, 3]
    assert documents[1]["target"] == str(tmp_path / "here" / "3")


def test_to_refuses_flags_that_would_do_nothing(version: Path) -> None:
    process = start_exporter("publish", version, "--to", "s3://b/m", "--keep", "3")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--keep has no place beside it" in err


def test_without_fsspec_one_sentence_names_the_extra(version: Path) -> None:
    code = (
        "import sys; sys.modules['fsspec'] = None; from exporter.cli import main; "
        f"sys.exit(main(['publish', {str(version)!r}, '--to', 's3://bucket/models/mlp']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "[remote]'" in done.stderr and "Traceback" not in done.stderr


def test_an_address_whose_package_is_missing_names_the_package(version: Path) -> None:
    code = (
        "import sys; sys.modules['gcsfs'] = None; from exporter.cli import main; "
        f"sys.exit(main(['publish', {str(version)!r}, '--to', 'gs://bucket/models/mlp']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install gcsfs" in done.stderr and "Traceback" not in done.stderr


def test_a_store_that_returns_other_bytes_than_were_written_is_found_out(
    bucket: Bucket, version: Path
) -> None:
    def spoil(_num_bytes: int) -> None:  # right after the upload of each file
        if "3/fingerprint.pb" in bucket.list_keys():
            bucket.write("3/fingerprint.pb", b"FINGERPRINT")

    with pytest.raises(ManifestError, match=r"fingerprint\.pb: read back, it differs"):
        copy_to_remote(version, bucket.url, on_bytes=spoil)
    assert f"3/{layout.MANIFEST}" not in bucket.list_keys()


def test_fetch_never_imports_tensorflow(bucket: Bucket, version: Path, tmp_path: Path) -> None:
    copy_to_remote(version, bucket.url)
    code = (
        "import sys; from exporter.cli import main; "
        f"main(['fetch', {bucket.url!r}, '--base_path', {str(tmp_path / 'here')!r}]); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
