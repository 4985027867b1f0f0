import ctypes

import pytest

from rufus_serve.kernels import library, structs

EPYC = {
    "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "avx512f", "avx512bw",
    "avx512cd", "avx512dq", "avx512vl", "avx512_bf16",
}  # fmt: skip


def test_a_cpu_runs_what_it_has_all_instructions_for():
    assert library.supported_names(EPYC) == ["avx512_bf16", "avx512", "avx2"]
    assert library.supported_names(EPYC - {"avx512_bf16"}) == ["avx512", "avx2"]
    assert library.supported_names(EPYC - {"avx512vl"}) == ["avx2"]
    assert library.supported_names(EPYC - {"fma"}) == []


def test_the_fastest_library_that_was_built_is_taken(monkeypatch, kernels):
    monkeypatch.setattr(library, "cpu_flags", lambda: EPYC)
    monkeypatch.setattr(library, "open_library", lambda name, path: name)
    found = library.built_library(kernels.name)
    monkeypatch.setattr(library, "built_library", lambda name: found if name == "avx512" else None)
    assert library.load_library() == "avx512"


def test_an_unknown_cpu_has_no_kernels(monkeypatch):
    monkeypatch.setattr(library, "cpu_flags", set)
    with pytest.raises(library.KernelsUnavailable, match="no kernels for this CPU"):
        library.load_library()


def test_without_a_compiler_there_are_no_kernels(monkeypatch):
    monkeypatch.setattr(library, "cpu_flags", lambda: EPYC)
    monkeypatch.setattr(library, "built_library", lambda name: None)
    with pytest.raises(library.KernelsUnavailable, match="compiler"):
        library.load_library()


def test_a_library_of_other_sources_is_not_used(monkeypatch, kernels):
    monkeypatch.setattr(library, "ABI_VERSION", structs.ABI_VERSION + 1)
    path = library.built_library(kernels.name)
    with pytest.raises(library.KernelsUnavailable, match="install the package again"):
        library.open_library(kernels.name, path)


def test_a_file_that_is_no_library_is_not_used(tmp_path):
    path = tmp_path / "_avx2.so"
    path.write_bytes(b"no library")
    with pytest.raises(library.KernelsUnavailable, match="cannot be loaded"):
        library.open_library("avx2", path)


def test_structures_are_as_large_as_the_library_takes_them_for(kernels):
    sizes = (ctypes.c_int64 * 8)()
    kernels.functions.abi_sizes(sizes)
    mirrored = (
        structs.Weight, structs.Model, structs.Layer, structs.Cache, structs.Step,
        structs.Candidates, structs.DrawParams, structs.Draws,
    )  # fmt: skip
    assert list(sizes) == [ctypes.sizeof(each) for each in mirrored]
