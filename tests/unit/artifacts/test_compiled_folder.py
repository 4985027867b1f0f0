import pytest

from rufus_serve.artifacts.compiled_folder import is_compiled_by_nxdi


def test_graphs_and_configuration_without_a_manifest_are_nxd_inferences_own(tmp_path):
    assert not is_compiled_by_nxdi(str(tmp_path))
    for name in ("model.pt", "neuron_config.json"):
        (tmp_path / name).touch()
    assert is_compiled_by_nxdi(str(tmp_path))
    (tmp_path / "manifest.json").touch()
    assert not is_compiled_by_nxdi(str(tmp_path))


@pytest.mark.parametrize("url", ["s3://bucket/llama", "memory://llama"])
def test_storage_elsewhere_is_none(url):
    assert not is_compiled_by_nxdi(url)
