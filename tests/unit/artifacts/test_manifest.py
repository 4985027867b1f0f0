import msgspec
import pytest

from rufus_serve.artifacts.identity import Identity, ModelIdentity
from rufus_serve.artifacts.manifest import (
    Manifest,
    ManifestFile,
    decode_manifest,
    encode_manifest,
    write_atomically,
)
from rufus_serve.errors import ArtifactError

IDENTITY = Identity(
    model=ModelIdentity(config_sha256="c", weights=()), runtime="cpu", num_nodes=2, layout=1
)
MANIFEST = Manifest(
    identity=IDENTITY,
    made_by="0.1.0",
    files=(
        ManifestFile(path="model.pt", size=3, sha256="a"),
        ManifestFile(path="shards/0", size=5, sha256="b", node_ranks=(0,), unit="node 0"),
        ManifestFile(path="shards/1", size=7, sha256="c", node_ranks=(1,), unit="node 1"),
    ),
)
RECORDED = b"""{
  "identity": {
    "model": {"config_sha256": "c", "weights": []},
    "runtime": "cpu", "num_nodes": 2, "layout": 1, "settings": {}, "versions": {}
  },
  "files": [{"path": "shards/0", "size": 5, "sha256": "b", "node_ranks": [0], "unit": "node 0"}],
  "made_by": "0.1.0",
  "schema_version": 1
}"""


def test_a_manifest_comes_back_as_it_was():
    assert decode_manifest(encode_manifest(MANIFEST), origin="here") == MANIFEST


def test_a_recorded_manifest_of_version_1_is_still_read():
    manifest = decode_manifest(RECORDED, origin="here")
    assert manifest.identity == IDENTITY
    assert manifest.files == (MANIFEST.files[1],)


def test_a_node_loads_its_own_files_and_those_of_all():
    paths = [file.path for file in MANIFEST.files_of(1)]
    assert paths == ["model.pt", "shards/1"]
    assert MANIFEST.files_of(None) == MANIFEST.files


def test_another_schema_version_is_refused_with_both():
    newer = encode_manifest(msgspec.structs.replace(MANIFEST, schema_version=7))
    with pytest.raises(ArtifactError, match=r"here has schema version 7, .* reads 1"):
        decode_manifest(newer, origin="here")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"schema_version": 1}', b"\xff"])
def test_a_damaged_manifest_is_refused_by_name(data):
    with pytest.raises(ArtifactError, match="here is damaged"):
        decode_manifest(data, origin="here")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", ""])
def test_a_path_out_of_the_folder_is_refused(path):
    data = RECORDED.replace(b'"shards/0"', b'"' + path.encode() + b'"')
    with pytest.raises(ArtifactError, match="leaves the artifact folder"):
        decode_manifest(data, origin="here")


def test_an_atomic_write_leaves_no_other_file(tmp_path):
    write_atomically(tmp_path / "a", b"1")
    write_atomically(tmp_path / "a", b"22")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"22")]
