"""Initial weights: identity convolutions and patch whitening.

Whitening and its use in fast training: David Page, "How to train your ResNet 8: bag of tricks" (myrtle.ai, 2019).
"""

import math

import torch
from torch import Tensor, nn

from .nets import BatchNorm, SpeedyResNet
from .recipe import Net

_VALUES_AT_ONCE = 1 << 26
"""Patch values per chunk, in float64: 512 MiB. The 5,000 images of airbench are one chunk."""


def patch_covariance(pixels: Tensor, scale: Tensor, shift: Tensor, kernel: int, *, centered: bool) -> Tensor:
    """Return the covariance of all kernel x kernel patches of normalised images, computed in chunks.

    In float64: the smallest eigenvalues of natural images are 1e-5 of the largest, where float32 sums err by percents.

    Args:
        pixels: uint8 [N, H, W, C].
        scale: [C], factor of the pixel values 0..255; float32 or float64.
        shift: [C], added after scaling.
        kernel: side of the patches.
        centered: subtract the mean patch; otherwise the result is the second moment about zero.

    Returns:
        float64 [D, D] with D = C * kernel * kernel, ordered as the weights of a convolution.
    """
    dimensions = len(scale) * kernel**2
    product = torch.zeros(dimensions, dimensions, dtype=torch.float64, device=pixels.device)
    total = torch.zeros(dimensions, dtype=torch.float64, device=pixels.device)
    patches_seen = 0
    for chunk in pixels.split(max(_VALUES_AT_ONCE // (kernel**2 * pixels[0].numel()), 1)):
        images = (chunk.to(scale.dtype) * scale + shift).double()
        patches = images.unfold(1, kernel, 1).unfold(2, kernel, 1).reshape(len(images), -1, dimensions)
        # One product per image: a single one of 12 x millions x 12 would leave most multiprocessors of a GPU idle.
        product += (patches.mT @ patches).sum(0)
        total += patches.sum((0, 1))
        patches_seen += patches.shape[0] * patches.shape[1]
    covariance = product / patches_seen
    return covariance - torch.outer(total, total) / patches_seen**2 if centered else covariance


def whitening_filters(pixels: Tensor, scale: Tensor, shift: Tensor, net: Net) -> Tensor:
    """Return filters [filters, C, kernel, kernel] that map patches of normalised images to uncorrelated channels.

    Filter k is eigenvector k of the patch covariance over sqrt(eigenvalue + epsilon), by falling eigenvalue; the output
    then has covariance diag(eigenvalue / (eigenvalue + epsilon)). With sign pairs the negatives follow. Images are
    passed as in `patch_covariance`.
    """
    kernel = net.whitening_kernel
    covariance = patch_covariance(pixels, scale, shift, kernel, centered=net.whitening_centered)
    # On the host: for a dozen rows it is faster than the start-up of a GPU library.
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance.cpu())
    filters: Tensor = (eigenvectors / (eigenvalues + net.whitening_epsilon).sqrt()).T.flip(0)
    if net.whitening_sign_pairs:
        filters = torch.cat([filters, -filters])
    return filters.reshape(-1, len(scale), kernel, kernel).to(pixels.device)


def _fill_uniform(values: Tensor, inputs: int, generator: torch.Generator) -> None:
    """Fill with PyTorch's default for weights and biases, where `inputs` is per output: within 1 / sqrt(inputs)."""
    bound = 1 / math.sqrt(inputs)
    values.uniform_(-bound, bound, generator=generator)


def _fill_identity(weight: Tensor) -> Tensor:
    """Set filter i to 1 at the centre of channel i and 0 elsewhere, as nn.init.dirac_, in two launches."""
    weight.zero_()[:, :, weight.shape[2] // 2, weight.shape[3] // 2].fill_diagonal_(1.0)
    return weight


def _blend_identity(weight: Tensor) -> None:
    """Add identity taps, then restore the tensor's mean and deviation (hlb-CIFAR10 v0.7)."""
    deviation, mean = torch.std_mean(weight.float())
    blended = weight.float() + _fill_identity(torch.empty_like(weight, dtype=torch.float32))
    new_deviation, new_mean = torch.std_mean(blended)
    weight.copy_((blended - new_mean) / new_deviation * deviation + mean)


def _plant_identities(net: SpeedyResNet, *, blend: bool) -> None:
    """Apply `convolution_init` dirac or, with `blend`, dirac_blend to the convolutions in the groups."""
    for group in net.groups:
        for index, convolution in enumerate(group.convolutions):  # type: ignore[arg-type]
            weight = convolution.weight
            if not blend:
                _fill_identity(weight[: weight.shape[1]])
            elif index == 0:
                _blend_identity(weight)
            else:
                _fill_identity(weight)


@torch.no_grad()
def reset_parameters(net: SpeedyResNet, settings: Net, seed: int) -> None:
    """Initialise all parameters and statistics of `net` in place; `whitening_filters` gives the whitening filters."""
    generator = torch.Generator(net.head.weight.device).manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            inputs = module.weight[0].numel()
            _fill_uniform(module.weight, inputs, generator)
            if module.bias is None:
                continue
            if isinstance(module, nn.Linear) or settings.whitening_bias_init == "uniform":
                _fill_uniform(module.bias, inputs, generator)
            else:
                module.bias.zero_()
        elif isinstance(module, BatchNorm):
            if settings.batch_norm_scale_init == "uniform":
                module.weight.uniform_(generator=generator)
            else:
                module.weight.fill_(1.0)
            module.bias.zero_()
            module.running_mean.zero_()
            module.running_var.fill_(1.0)
    if settings.head_init == "unit_deviation":
        net.head.weight.div_(net.head.weight.double().std())
    if settings.convolution_init != "default":
        _plant_identities(net, blend=settings.convolution_init == "dirac_blend")
