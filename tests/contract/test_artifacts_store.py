"""What fetching promises, over every kind of place that artifacts are kept in."""

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from artifact_folder import content, identity, make, nothing

from rufus_serve.artifacts.draft import upload
from rufus_serve.artifacts.fetch import fetch
from rufus_serve.artifacts.identity import Identity, ModelIdentity
from rufus_serve.errors import ArtifactError


class Place:
    """Artifacts at a URL, which tests may damage."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = fsspec.core.url_to_fs(url)

    def publish(self, folder: Path) -> None:
        upload(folder, self.url, progress=nothing)

    def write(self, path: str, data: bytes) -> None:
        self._fs.pipe_file(f"{self._root}/{path}", data)

    def remove(self, path: str) -> None:
        self._fs.rm_file(f"{self._root}/{path}")


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The endpoint of a stand-in for S3 on this host."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch) -> str:
    """The URL of an empty bucket."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"artifacts-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}/models"


@pytest.fixture(params=["path", "file", "memory", "s3"])
def place(request, tmp_path) -> Iterator[Place]:
    if request.param == "s3":
        yield Place(request.getfixturevalue("bucket"))
    elif request.param == "memory":
        yield Place(f"memory://{request.node.name}")
        fsspec.filesystem("memory").store.clear()
    else:
        prefix = "file://" if request.param == "file" else ""
        (tmp_path / "store").mkdir()
        yield Place(f"{prefix}{tmp_path}/store")


@pytest.fixture
def made(tmp_path, place) -> Path:
    folder = make(tmp_path / "made")
    place.publish(folder)
    return folder


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr("rufus_serve.artifacts.fetch._PAUSE_S", 0.0)


def fetched(place, cache: Path, **options) -> Path:
    return brought(place, cache, **options).folder


def brought(place, cache: Path, *, node_rank: int = 0, wanted: Identity | None = None, **options):
    return fetch(
        options.pop("url", place.url), wanted or identity(), node_rank=node_rank, cache=cache,
        threads=options.pop("threads", 4), progress=options.pop("progress", nothing),
    )  # fmt: skip


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_node_gets_its_own_files_and_those_of_all(place, made, tmp_path):
    folder = fetched(place, tmp_path / "cache", node_rank=1)
    assert files_in(folder) == ["files/all", "files/node-1", "manifest.json"]
    assert (folder / "files/node-1").read_bytes() == content("node-1")


def test_one_artifact_folder_may_be_named_itself(place, made, tmp_path):
    folder = fetched(place, tmp_path / "cache", url=f"{place.url}/{made.name}")
    assert folder.name == made.name


def test_good_files_are_kept_and_bad_ones_brought_again(place, made, tmp_path):
    folder = fetched(place, tmp_path / "cache")
    kept = folder / "files/all"
    before = kept.stat().st_mtime_ns
    (folder / "files/node-0").write_bytes(b"damaged")
    told = []
    use = brought(
        place, tmp_path / "cache", progress=lambda done, total, text: told.append(text)
    ).use
    assert (use.kept_files, use.fetched_files) == (1, 1)
    assert use.fetched_bytes == len(content("node-0"))
    assert kept.stat().st_mtime_ns == before
    assert "kept files/all" in told
    assert (folder / "files/node-0").read_bytes() == content("node-0")


def test_half_of_a_fetch_is_gone_on_with(place, made, tmp_path):
    folder = fetched(place, tmp_path / "cache")
    (folder / "manifest.json").unlink()
    (folder / "files/node-0").unlink()
    (folder / "files/.node-0.abc.part").write_bytes(b"half")
    assert fetched(place, tmp_path / "cache") == folder
    assert (folder / "files/node-0").read_bytes() == content("node-0")


def test_progress_ends_at_the_total(place, made, tmp_path):
    told = []
    fetched(place, tmp_path / "cache", progress=lambda *call: told.append(call))
    done, total, _ = told[-1]
    assert done == total == len(content("all")) + len(content("node-0"))


def test_a_flipped_byte_is_found_with_expected_and_found(place, made, tmp_path):
    data = bytearray(content("node-0"))
    data[500] ^= 1
    place.write(f"{made.name}/files/node-0", bytes(data))
    with pytest.raises(ArtifactError, match=r"files/node-0: expected sha256 \w{64}, found \w{64}"):
        fetched(place, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.part"))
    assert not list((tmp_path / "cache").rglob("node-0"))


def test_a_shortened_file_is_found_with_both_sizes(place, made, tmp_path):
    place.write(f"{made.name}/files/node-0", b"short")
    expected = len(content("node-0"))
    with pytest.raises(ArtifactError, match=f"node-0: expected {expected} bytes, found 5"):
        fetched(place, tmp_path / "cache")


def test_a_missing_file_is_named(place, made, tmp_path):
    place.remove(f"{made.name}/files/node-0")
    with pytest.raises(ArtifactError, match=r"files/node-0: expected \d+ bytes, cannot be copied"):
        fetched(place, tmp_path / "cache")


def test_another_nodes_damage_does_not_matter(place, made, tmp_path):
    place.remove(f"{made.name}/files/node-2")
    fetched(place, tmp_path / "cache", node_rank=0)


def test_an_unfinished_upload_is_no_artifact(place, made, tmp_path):
    place.remove(f"{made.name}/manifest.json")
    with pytest.raises(ArtifactError, match="no artifacts there"):
        fetched(place, tmp_path / "cache")


def test_a_damaged_manifest_is_named(place, made, tmp_path):
    place.write(f"{made.name}/manifest.json", b"{}")
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        fetched(place, tmp_path / "cache")


def test_artifacts_of_another_configuration_are_refused_field_by_field(place, made, tmp_path):
    with pytest.raises(ArtifactError, match="num_nodes is 3, wanted 4"):
        fetched(place, tmp_path / "cache", wanted=identity(num_nodes=4))
    with pytest.raises(ArtifactError, match="num_nodes is 3, wanted 4"):
        fetched(
            place, tmp_path / "cache", wanted=identity(num_nodes=4), url=f"{place.url}/{made.name}"
        )


def test_artifacts_of_another_finetune_are_refused(place, made, tmp_path):
    with pytest.raises(ArtifactError, match="fingerprint is 'f0', wanted 'f1'"):
        fetched(place, tmp_path / "cache", wanted=identity(fingerprint="f1"))


def test_among_several_the_fitting_one_is_found(place, made, tmp_path):
    other = make(tmp_path / "made", identity(fingerprint="f1"))
    place.publish(other)
    assert fetched(place, tmp_path / "cache").name == made.name
    wanted = identity(fingerprint="f1")
    assert fetched(place, tmp_path / "cache", wanted=wanted).name == other.name


def test_without_weights_several_that_fit_are_not_chosen_from(place, made, tmp_path):
    place.publish(make(tmp_path / "made", identity(fingerprint="f1")))
    bare = Identity(
        model=ModelIdentity(config_sha256="c0", weights=()), runtime="cpu", num_nodes=3, layout=1
    )
    with pytest.raises(ArtifactError, match="2 artifacts fit"):
        fetched(place, tmp_path / "cache", wanted=bare)
    assert fetched(place, tmp_path / "cache", wanted=bare, url=f"{place.url}/{made.name}")


def test_nodes_fetch_into_one_cache_at_the_same_time(place, made, tmp_path):
    ready, results = threading.Barrier(6), []

    def run(rank: int) -> None:
        ready.wait()
        folder = fetched(place, tmp_path / "cache", node_rank=rank % 3)
        results.append(
            (folder / f"files/node-{rank % 3}").read_bytes() == content(f"node-{rank % 3}")
        )

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 6
    folder = tmp_path / "cache" / made.name
    names = ["files/all", *(f"files/node-{rank}" for rank in range(3)), "manifest.json"]
    assert files_in(folder) == names


def test_an_empty_place_says_how_to_fill_it(place, tmp_path):
    with pytest.raises(ArtifactError, match="make them with 'rufus-serve compile'"):
        fetched(place, tmp_path / "cache")
