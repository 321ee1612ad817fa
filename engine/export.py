"""Export of trained models: one file that plain PyTorch loads and that takes unnormalised pixel values.

Evaluation runs in float32 whatever the training dtype. Normalisation and batch norm are affine per channel, so they are
folded into the weights and biases of adjacent convolutions, in float64, and disappear as operations. Exceptions are the
batch norms behind squeeze-and-excite, whose factors stand between the two, and the normalisation before a convolution
that pads with the zeros of normalised images.
"""

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..kernels.augment import normalisation
from ..kernels.batch_norm import ResidualPlace, with_activation
from .errors import UserError
from .files import write_atomically
from .model_file import Model
from .nets import BatchNorm, SpeedyResNet, check_image_size
from .record import version_of
from .torchscript import saved, torchscript_obstacle, trace

METADATA_FILE = "speedyresnet.json"
"""Name of the JSON document in the exported file."""
SCHEMA = "speedyresnet.export/1"


class ActivationAndResidual(nn.Module):
    """Remainder of a `BatchNorm` whose scale and shift are folded into the convolution before it."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None, residual_place: ResidualPlace = "none") -> Tensor:
        """Apply the part of `BatchNorm.forward` after the normalisation; [N, C, H, W] -> [N, C, H, W]."""
        return with_activation(x, residual, self.activation, residual_place)


def folded_net(model: Model) -> nn.Module:
    """Return a folded copy of the net: float32 [N, C, H, W] in [0, 1] -> logits float32 [N, classes], on the CPU.

    Raises:
        UserError: a batch norm cannot be folded, as after a diverged run.
    """
    net = copy.deepcopy(model.net).to("cpu", torch.float64)
    _fold_normalisation(net, model)
    scaled = [group.norms[-1] for group in net.groups if group.squeeze_excite is not None]  # type: ignore[index]
    for name, module in list(net.named_modules()):
        if isinstance(module, BatchNorm) and module not in scaled:
            _fold_norm(net, name, module, pools_first=model.recipe.net.pool == "before_norm")
    head = nn.Linear(net.head.in_features, net.head.out_features, bias=net.head.bias is not None, device="meta")
    head.load_state_dict(net.head.state_dict(), assign=True)
    net.set_submodule("head", head)
    return net.float().to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


def _fold_normalisation(net: SpeedyResNet, model: Model) -> None:
    """Make `net` take pixels in [0, 1]: normalise in the whitening, or in front of it if it pads or is missing."""
    scale, shift = normalisation(model.mean, model.std, torch.float64, torch.device("cpu"))
    whitening = net.stem.whitening
    if isinstance(whitening, nn.Conv2d):
        weight, bias = whitening.weight, torch.zeros(len(whitening.weight), dtype=torch.float64)
        bias = bias if whitening.bias is None else whitening.bias
        if not model.recipe.net.whitening_padding:
            shifted = (weight * shift[:, None, None]).sum((1, 2, 3))
            _replace_convolution(net, "stem.whitening", weight * (255 * scale)[:, None, None], bias + shifted)
            return
        _replace_convolution(net, "stem.whitening", weight, bias)
    channels = len(scale)
    normalise = nn.Conv2d(channels, channels, 1, groups=channels, device="meta")
    normalise.load_state_dict({"weight": 255 * scale.view(-1, 1, 1, 1), "bias": shift}, assign=True)
    net.set_submodule("stem.whitening", nn.Sequential(normalise, net.stem.whitening))


def _fold_norm(net: SpeedyResNet, name: str, norm: BatchNorm, *, pools_first: bool) -> None:
    """Fold scale and shift of the batch norm `name` into the convolution before it.

    With `pools_first` the max-pool of a group stands between its first convolution and norm.
    """
    scale = norm.weight / (norm.running_var + norm.epsilon).sqrt()
    if not scale.isfinite().all():
        raise UserError(f"{name} of the model has scales that are not finite; its run diverged: train it again")
    # max(scale * x + shift) equals scale * max(x) + shift only for scale > 0. Frozen scales are 1 and thus qualify.
    if name.endswith("norms.0") and pools_first and not (scale > 0).all():
        raise UserError(f"{name} of the model has scales that are not above 0, which its max-pooling does not take")
    before = "stem.projection" if name == "stem.norm" else name.replace("norms", "convolutions")
    weight = net.get_submodule(before).get_parameter("weight")
    affine = norm.running_mean, norm.running_var, norm.epsilon, norm.weight, norm.bias
    _replace_convolution(net, before, *fuse_conv_bn_weights(weight, None, *affine))
    net.set_submodule(name, ActivationAndResidual(norm.activation))


def _replace_convolution(net: SpeedyResNet, name: str, weight: Tensor, bias: Tensor) -> None:
    """Replace the square convolution `name` by a plain nn.Conv2d with this weight and bias."""
    old = net.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    outputs, inputs, kernel, _ = weight.shape
    plain = nn.Conv2d(inputs, outputs, kernel, old.stride[0], int(old.padding[0]), device="meta")
    plain.load_state_dict({"weight": weight.detach(), "bias": bias.detach()}, assign=True)
    net.set_submodule(name, plain)


def _torchscript(net: nn.Module, example: Tensor, metadata: str) -> bytes:
    """Return a TorchScript file for torch.jit.load and LibTorch."""
    obstacle = torchscript_obstacle()
    if obstacle:
        raise UserError(f"--format torchscript {obstacle}; use --format pt2")
    return saved(trace(net, (example,)), {METADATA_FILE: metadata})


def _pt2(net: nn.Module, example: Tensor, metadata: str) -> bytes:
    """Return a torch.export program with a dynamic batch size, for torch.export.load."""
    program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    program.example_inputs = None  # else they are saved too, as are stack traces with local paths
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA_FILE: metadata})
    return file.getvalue()


FORMATS: dict[str, Callable[[nn.Module, Tensor, str], bytes]] = {"torchscript": _torchscript, "pt2": _pt2}
"""Functions from the folded net, example images and the metadata document to the content of a file, by format."""


def check_format(name: str) -> None:
    """Raise UserError for an unknown format."""
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}: choose {' or '.join(FORMATS)}")


def export_model(
    model: Model, path: Path, file_format: str, image_size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Write `model` to `path` for programs without this package; return the metadata, which the file also contains.

    Args:
        model: model with trained weights.
        path: output file, written atomically.
        file_format: torchscript or pt2.
        image_size: height and width; None uses the size of the training images.

    Raises:
        UserError: unknown format, unknown or too small image size, weights of a diverged run, pre-activation blocks, or
            a path that cannot be written.
    """
    check_format(file_format)
    size = image_size or model.image_size
    if size is None:
        raise UserError("the model file does not tell the size of its images; give --size")
    check_image_size(model.recipe.net, *size)
    if model.recipe.net.pre_activation_blocks:
        raise UserError("batch norms in front of convolutions cannot be folded into them: this net has such")
    metadata = _metadata(model, file_format, *size)
    # Two images, because torch.export would specialise on a batch size of one.
    example = torch.zeros(2, *metadata["input"]["shape"][1:], dtype=torch.float32)
    content = FORMATS[file_format](folded_net(model), example, json.dumps(metadata, indent=1))
    write_atomically(path, lambda part: part.write_bytes(content))
    return metadata


def _metadata(model: Model, file_format: str, height: int, width: int) -> dict[str, Any]:
    shape = ["N", len(model.mean), height, width]
    return {
        "schema": SCHEMA,
        "format": file_format,
        "package": version_of("speedyresnet"),
        "torch": str(torch.__version__),
        "recipe": model.recipe.name,
        "input": {"dtype": "float32", "shape": shape, "range": [0, 1], "meaning": "pixel values / 255, NCHW"},
        "output": {"dtype": "float32", "shape": ["N", len(model.class_names)], "meaning": "logits"},
        "classes": list(model.class_names),
    }
