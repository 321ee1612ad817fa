import pytest
import torch

from speedyresnet.bench.roofline import Ceilings, measured_ceilings

CEILINGS = Ceilings(copies=((1000, 50.0), (10_000, 100.0), (100_000, 20.0)), rates={"float32": 10.0, "bfloat16": 40.0})


@pytest.mark.parametrize(
    ("size", "bandwidth"), [(10, 100.0), (1000, 100.0), (10_000, 100.0), (10_001, 20.0), (1e9, 20.0)]
)
def test_bandwidth_is_that_of_the_fastest_copy_of_as_many_bytes_or_more(size, bandwidth):
    assert CEILINGS.bandwidth(size) == bandwidth


def test_the_floor_is_the_larger_of_moving_and_computing():
    assert CEILINGS.floor(1000, 0, "float32") == 10.0
    assert CEILINGS.floor(1000, 99, "float32") == 10.0
    assert CEILINGS.floor(1000, 200, "float32") == 20.0
    assert CEILINGS.floor(1000, 800, "bfloat16") == 20.0
    assert CEILINGS.floor(0, 20, "float64") == 2.0  # not measured: that of the first dtype


def test_ceilings_are_measured_here(monkeypatch):
    monkeypatch.setattr("speedyresnet.bench.roofline._ROUNDS", 2)
    monkeypatch.setattr("speedyresnet.bench.roofline._COPY_MEBIBYTES", {"cpu": (1, 4)})
    monkeypatch.setattr("speedyresnet.bench.roofline._MATRIX_SIZES", {"cpu": (256,)})
    found = measured_ceilings(torch.device("cpu"), [torch.float32])
    assert [size for size, _ in found.copies] == [2 * 2**20, 8 * 2**20]
    assert all(1e7 < rate < 1e13 for _, rate in found.copies)
    assert list(found.rates) == ["float32"]
    assert 1e8 < found.rates["float32"] < 1e15


@pytest.mark.gpu
def test_a_gpu_copies_and_multiplies_at_a_gpus_speed():
    found = measured_ceilings(torch.device("cuda"), [torch.float16])
    assert 1e11 < found.copies[-1][1] < 2e13
    assert 1e13 < found.rates["float16"] < 1e16
