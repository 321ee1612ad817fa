import functools
import inspect
import os
import subprocess
import sys
from pathlib import Path

# One thread per worker of pytest-xdist: PyTorch's idle threads spin and would slow their neighbours down tenfold.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from capture_checks import StandInCuda
from safetensors import safe_open

# Before any kernel is imported: without a GPU kernels run in Triton's interpreter, on CPU tensors.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from speedyresnet.bench.cli import main
from speedyresnet.engine import tensor_file
from speedyresnet.engine.data import pack_source
from speedyresnet.engine.init import reset_parameters
from speedyresnet.engine.nets import make_net
from speedyresnet.engine.recipes import recipe
from speedyresnet.engine.schedules import plan
from speedyresnet.engine.step import TrainingState
from speedyresnet.engine.synthetic import make_synthetic
from speedyresnet.kernels import contract
from speedyresnet.kernels.language import AVAILABLE, INTERPRETED, tl

if INTERPRETED:  # it searches its whole language at each call of a device function: a third of the time
    from triton.runtime import interpreter

    @functools.cache
    def builtin_names(package):
        return [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]

    def patch_builtin(package, *rest):
        for name in builtin_names(package):
            if tl.core.is_builtin(member := getattr(package, name)):
                interpreter._patch_attr(package, name, member, *rest)

    interpreter._patch_builtin = patch_builtin


@pytest.hookimpl(optionalhook=True)  # not called without pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Give each worker whole files, so that it makes what their tests share once; idle workers take from the others."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.option.dist == "load" else None


torch.backends.cudnn.allow_tf32 = False  # else a float32 reference errs on a GPU as half precision does


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if ("kernel" in item.nodeid or "triton" in item.nodeid) and not AVAILABLE:
            item.add_marker(pytest.mark.skip(reason="needs Triton"))


@pytest.fixture(autouse=True)
def no_outside_kernels(monkeypatch):
    """Remove the kernels that a test loads from files before the next test."""
    monkeypatch.setattr(contract, "_OUTSIDE", {})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep every test away from the user's own cache."""
    monkeypatch.setenv("SPEEDYRESNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def speedyresnet(monkeypatch, capfd):
    """Return a function that runs the command in this process, to save the imports; otherwise like `subprocess.run`."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["speedyresnet", *map(str, words)])
        monkeypatch.setattr("speedyresnet.engine.kernel_choice.INTERPRETED", False)  # as for users
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(words, ended.value.code, *capfd.readouterr())

    return run


class HeaderOnly:
    """`safe_open` that cannot return whole tensors."""

    def __init__(self, *arguments, **options):
        self.file = safe_open(*arguments, **options)
        self.keys, self.metadata, self.get_slice = self.file.keys, self.file.metadata, self.file.get_slice

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def headers_only(monkeypatch):
    """Make it impossible to read a tensor of a file."""
    monkeypatch.setattr(tensor_file, "safe_open", HeaderOnly)


@pytest.fixture(scope="session")
def real_folder():
    """Return the folder of real images, laid out as {train,test}/<class>/*."""
    folder = os.environ.get("SPEEDYRESNET_TEST_IMAGES")
    if not folder:
        pytest.skip("SPEEDYRESNET_TEST_IMAGES names no folder of real images")
    return Path(folder)


def pack_of_some(folder, subset, train_images, test_images):
    """Link the first images of each class in `folder` into `subset` and pack them."""
    for split, count in (("train", train_images), ("test", test_images)):
        for label in sorted((folder / split).iterdir()):
            (subset / split / label.name).mkdir(parents=True)
            for image in sorted(label.iterdir())[:count]:
                (subset / split / label.name / image.name).symlink_to(image)
    return pack_source(str(subset), name="subset")


@pytest.fixture(scope="session")
def real_pack(real_folder, tmp_path_factory):
    """100 training and 20 test images of each class."""
    return pack_of_some(real_folder, tmp_path_factory.mktemp("real"), 100, 20)


@pytest.fixture(scope="session")
def larger_real_pack(real_folder, tmp_path_factory):
    """400 training and 20 test images of each class."""
    return pack_of_some(real_folder, tmp_path_factory.mktemp("real"), 400, 20)


@pytest.fixture(scope="session")
def small_pack():
    """Synthetic pack: 640 training and 200 test images."""
    return make_synthetic(train_images=640, test_images=200)


@pytest.fixture
def cuda(monkeypatch):
    """Stand-in for the parts of CUDA that captures need; its `graphs` are those that were made."""
    made = StandInCuda()
    for name in ("CUDAGraph", "Stream", "current_stream", "graph", "graph_pool_handle", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(made, name))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", made.end_allocate_to_pool)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", made.release_pool)
    return made


@pytest.fixture
def make_state():
    """Return a function that builds the state of a narrow recipe on random images."""

    def build(name="airbench94", *settings, images=256, device="cpu", seed=3, classes=10):
        small = ["batch_size=32", "width_multiplier=0.125", "dtype=float32", *settings]
        made = recipe(name, small)
        dtype = getattr(torch, made.dtype)
        net = make_net(made, classes=classes, channels=3, dtype=dtype, device=device).train()
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randint(0, 256, (images, 32, 32, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, classes, (images,), generator=generator)
        data = pixels.to(device), labels.to(device), (0.5,) * 3, (0.25,) * 3
        state = TrainingState(net, made, plan(made, images), *data, dtype)
        if device != "meta":
            reset_parameters(net, made.net, seed)
            state.restart(seed)
        return state

    return build
