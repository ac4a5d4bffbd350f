"""Kernels of the tile level on an NVIDIA device: ``pytest -m gpu``; and on a simulated one, where the interpreter runs what is launched."""

import importlib.util

import pytest
import simulated
import tile_kernels

from tessera.targets.nvidia import driver

HERE = importlib.util.find_spec("cuda") is not None and driver.count() > 0
on_the_device = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason="no NVIDIA device")]


@pytest.fixture(params=["simulated", pytest.param("real", marks=on_the_device)])
def device(request, monkeypatch):
    return simulated.install(monkeypatch) if request.param == "simulated" else "gpu:0"


@pytest.mark.parametrize("case", tile_kernels.CASES, ids=str)
def test_products(device, case):
    small = device != "gpu:0"
    tile_kernels.check_product(*case, **({"shape": (20, 24, 40)} if small else {}))


@pytest.mark.parametrize("shape", [(33, 24, 41), (129, 127, 1000), (64, 64, 8)])
@pytest.mark.parametrize("case", tile_kernels.CASES[:3], ids=str)
@pytest.mark.gpu
@pytest.mark.skipif(not HERE, reason="no NVIDIA device")
def test_products_of_any_size(case, shape):
    tile_kernels.check_product(*case, shape=shape)


def test_fragments(device):
    tile_kernels.check_fragments()


@pytest.mark.parametrize("s, d", [(64, 64), (150, 64), (100, 48)])
def test_attention(device, s, d):
    tile_kernels.check_attention(s, d)
