"""Helpers for the tests of kernels: poisoned memory; for norms, inputs, results of a step, errors against float64."""

import math
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from speedyresnet.engine.operations import shipped_operations
from speedyresnet.kernels.agreement import error as error

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPSILON = 1e-5
INTERPRETER_TRUNCATES = DEVICE.type == "cpu"
"""Triton's interpreter rounds bfloat16 towards zero, a GPU to nearest."""


def process(*words):
    """Of Python, without the interpreter of Triton."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=1500, check=False, env=environment
    )


@contextmanager
def poisoned_memory():
    """Within the context, fill memory that is only allocated with NaN, or with a number that no label and no index has.

    Use it only around a launch: PyTorch keeps a list of its functions and must not find these among them.
    """

    def poisoned(function):
        def allocate(*arguments, **options):
            made = function(*arguments, **options)
            return made.fill_(torch.nan if made.is_floating_point() else 99 if made.dtype == torch.uint8 else -99)

        return allocate

    with pytest.MonkeyPatch.context() as patch:
        for name in ("empty", "empty_like"):
            patch.setattr(torch, name, poisoned(getattr(torch, name)))
        yield


def errors(found, expected):
    """Return all errors; that of a mean is in standard deviations, since a mean may be negligible beside them."""
    wrong = {name: error(value, expected[name]) for name, value in found.items()}
    difference = found["running_mean"].double() - expected["running_mean"]
    return wrong | {"running_mean": float((difference / expected["running_variance"].sqrt()).square().mean().sqrt())}


def channels_last(*shape, dtype=torch.float32, mean=0.0, seed=0):
    place = DEVICE if math.prod(shape) > 1 << 22 else torch.device("cpu")  # a GPU draws large batches quickly
    generator = torch.Generator(place).manual_seed(seed)
    made = torch.randn(*shape, generator=generator, dtype=torch.float64, device=place) + mean
    return made.to(DEVICE, dtype).to(memory_format=torch.channels_last).requires_grad_()


def vectors(channels, seed=1):
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.rand(channels, generator=generator) + 0.5).to(DEVICE).requires_grad_()
    bias = torch.randn(channels, generator=generator).to(DEVICE).requires_grad_()
    return weight, bias


def results(function, gradient, x, weight, bias, residual=None):
    """Return everything a training step sees: result, running statistics, gradients."""
    running_mean, running_variance = torch.zeros_like(bias), torch.ones_like(bias)
    inputs = {"x": x, "weight": weight, "bias": bias} | ({} if residual is None else {"residual": residual})
    y = function(x, weight, bias, running_mean, running_variance, *list(inputs.values())[3:])
    gradients = torch.autograd.grad(y, list(inputs.values()), gradient.to(y.dtype))
    found = {"y": y, "running_mean": running_mean, "running_variance": running_variance}
    return found | dict(zip(inputs, gradients, strict=True))


def assert_rounded(found, exact):
    """Assert that all results for float16 inputs are as exact as float16, including sums and statistics."""
    for name, wrong in errors(found, exact).items():
        assert wrong < torch.finfo(torch.float16).eps, name


def shipped(kernel):
    """Return the operations of the recipes that a kernel takes."""
    return [each for each in shipped_operations() if each.name == kernel.operation and kernel.fits(each) is None]
