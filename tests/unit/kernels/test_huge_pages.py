import torch

from rufus_serve.kernels.huge_pages import Arena, zeros

MIB = 1 << 20


def test_zeros_of_any_size_are_zeros():
    for shape in ((3,), (2, 5 * MIB)):
        found = zeros(shape, torch.bfloat16)
        assert found.shape == shape
        assert found.dtype == torch.bfloat16
        assert not found.any()


def test_large_arrays_begin_at_a_huge_page():
    assert zeros((4 * MIB,), torch.uint8).data_ptr() % (2 * MIB) == 0


def test_memory_outlives_whoever_asked_for_it():
    part = zeros((4 * MIB,), torch.uint8)[5:7]
    part += 1
    assert part.tolist() == [1, 1]


def test_an_arenas_tensors_are_aligned_and_do_not_overlap():
    arena = Arena()
    tensors = [arena.empty((size,), torch.int32) for size in (1, 17, 3 * MIB, 5 * MIB, 12 * MIB)]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    for number, tensor in enumerate(tensors):
        assert tensor.data_ptr() % 64 == 0
        assert (tensor == number).all()
