"""Choice of kernels for a run: each operation of the recipe uses the registered kernel if it fits."""

from collections.abc import Sequence

import torch

from ..kernels.contract import REFERENCE, TRITON, Kernel, Operation, Target, registered
from ..kernels.language import AVAILABLE, INTERPRETED
from .errors import UserError
from .fit import expected_data
from .operations import INPUT, placed_operations
from .recipe import Recipe
from .step import REFERENCE_KERNELS, KernelChoice


def kernel_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why no kernel can run on the device in this dtype; None if they can."""
    if not AVAILABLE:
        return "needs Triton, which is not installed here"
    if device.type != "cuda" and not INTERPRETED:
        return "needs a CUDA GPU"
    return "takes no float64" if dtype == torch.float64 else None


def check_kernels(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> None:
    """Raise UserError if kernels=triton is requested where kernels cannot run."""
    obstacle = kernel_obstacle(device, dtype)
    if recipe.kernels == TRITON and obstacle:
        raise UserError(f"kernels=triton {obstacle}; use kernels=auto")


def pick_kernels(
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype,
    backend: str = "eager",
    images: Sequence[int] | None = None,
) -> KernelChoice:
    """Return the provider of each operation: `triton`, or `reference`, plain PyTorch, as for the net in TorchScript.

    An operation counts as done by a kernel if the kernel does it anywhere in the net.

    Args:
        recipe: the recipe.
        device: device of the run.
        dtype: dtype of weights and activations.
        backend: backend of the step.
        images: [N, H, W, C] of the training images; None: those of the recipe's dataset.

    Raises:
        UserError: kernels=triton is requested where kernels cannot run.
    """
    check_kernels(recipe, device, dtype)
    chosen = KernelChoice(REFERENCE_KERNELS)
    if recipe.kernels == REFERENCE or kernel_obstacle(device, dtype):
        return chosen
    cuda = device.type == "cuda"
    target = Target(device.type, torch.cuda.get_device_capability(device) if cuda else None)
    places = placed_operations(recipe, images or expected_data(recipe).train_shape, dtype)
    kernels, refused = registered(), set[tuple[str, str]]()
    for place, operations in places.items():
        for name in dict.fromkeys(each.name for each in operations):
            own = [each for each in operations if each.name == name]
            in_reach = backend != "torchscript" or place == INPUT
            if name in kernels and in_reach and all(_takes(kernels[name], each, recipe, target) for each in own):
                chosen[name] = TRITON
            else:
                refused.add((place, name))
    chosen.refused = frozenset(refused)
    return chosen


def _takes(kernel: Kernel, operation: Operation, recipe: Recipe, target: Target) -> bool:
    """Return whether the kernel is used for an operation on a target under the recipe's setting `kernels`."""
    if kernel.fits(operation) is not None or not kernel.runs_on(operation, target):
        return False
    return recipe.kernels == TRITON or kernel.auto(operation, target)
