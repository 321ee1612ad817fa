"""Which operations of a run are done by our kernels."""

import torch

from ..kernels.language import AVAILABLE, INTERPRETED
from ..kernels.stem import takes_stem
from .errors import UserError
from .recipe import Recipe
from .step import REFERENCE_KERNELS


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no kernel runs there; none: they do."""
    if not AVAILABLE:
        return "needs Triton, which is not installed here"
    if device.type != "cuda" and not INTERPRETED:
        return "needs a CUDA GPU"
    return "takes no float64" if dtype == torch.float64 else None


def check_kernels(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> None:
    """Raise UserError for kernels=triton where they cannot run."""
    obstacle = _obstacle(device, dtype)
    if recipe.kernels == "triton" and obstacle:
        raise UserError(f"kernels=triton {obstacle}; use kernels=auto")


def pick_kernels(
    recipe: Recipe, device: torch.device, dtype: torch.dtype, backend: str = "eager", channels: int = 3
) -> dict[str, str]:
    """Provider of each operation: `triton`, or `reference`, which is plain PyTorch, as is the net in TorchScript.

    Args:
        recipe: what is asked for.
        device: where it runs.
        dtype: of weights and activations.
        backend: how a step is executed.
        channels: of the images.

    Raises:
        UserError: kernels=triton where they cannot run.
    """
    check_kernels(recipe, device, dtype)
    obstacle = _obstacle(device, dtype)
    chosen = recipe.kernels == "triton" or (recipe.kernels == "auto" and device.type == "cuda")
    kernels = dict.fromkeys(REFERENCE_KERNELS, "triton" if chosen and not obstacle else "reference")
    net = recipe.net
    taps = 3 * net.whitening_kernel**2  # images have at most 3 channels
    other_layout = net.memory_format != "channels_last"
    if other_layout or net.whitening_padding or not (taps and takes_stem(taps, 2 * taps, net.whitening_stride)):
        kernels["stem"] = "reference"
    if other_layout or net.batch_norm_precision == "native":
        kernels["batch_norm_act"] = "reference"
    if kernels["batch_norm_act"] == "reference" or net.pool != "before_norm" or net.pre_activation_blocks:
        kernels["pool_batch_norm_act"] = "reference"
    fuses_convolution = net.pool == "before_norm" and net.first_kernel == 3 and not net.pre_activation_blocks
    if other_layout or not fuses_convolution or not _prefers_convolution_pool(recipe, device, dtype, channels):
        kernels["convolution_pool"] = "reference"
    if backend == "torchscript":
        kernels = REFERENCE_KERNELS | {"augment": kernels["augment"]}
    return kernels


def _prefers_convolution_pool(recipe: Recipe, device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """Whether to use `convolution_pool` where it fits: on a GPU it is made for the tensor cores of Hopper.

    `auto` takes it where it has been measured, behind 24 whitening filters: a run of `speedy` on an H100 takes 0.839
    instead of 0.907 seconds (sum of its steps, backend `capture`).
    """
    net = recipe.net
    if device.type != "cuda":
        return recipe.kernels == "triton"
    if dtype not in (torch.float16, torch.bfloat16) or torch.cuda.get_device_capability(device) != (9, 0):
        return False
    filters = channels * net.whitening_kernel**2 * (2 if net.whitening_sign_pairs else 1)
    return recipe.kernels == "triton" or (filters == 24 and not net.project_width)
