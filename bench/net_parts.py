"""Parts of a net by their common names: stem, group1.conv1 31x31, pool, norm+activation, head+loss."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from speedyresnet.engine.nets import Convolution, ConvolutionGroup, KernelPlace, PreActivationBlock, SpeedyResNet, Stem
from speedyresnet.engine.parts import part
from speedyresnet.kernels.contract import registered


def part_of_module(path: str, module: nn.Module) -> str | None:
    """Return the part that `module` (at `path` in its net) begins; None if it belongs to the part around it."""
    if isinstance(module, Stem):
        return "stem"
    if isinstance(module, nn.MaxPool2d):
        return "pool"
    if isinstance(module, ConvolutionGroup | PreActivationBlock):
        return "norm+activation"
    if isinstance(module, SpeedyResNet):
        return "head+loss"
    if isinstance(module, Convolution) and path.startswith("groups."):
        _, group, place, *_, name = path.split(".")
        if place == "convolutions":
            return f"group{int(group) + 1}.conv{int(name) + 1}"
        return f"group{int(group) + 1}.block{int(place) + 1}.{name}"
    return None


class _SplitConvolution(torch.autograd.Function):
    """Convolution whose backward pass computes its two gradients separately, each as its own part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, name: str, options: list[Any]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.name, ctx.options = name, options
        result: Tensor = torch.ops.aten.convolution(x, weight, None, *options)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        found: list[Tensor | None] = [None, None]
        for index, kind in enumerate(("dgrad", "wgrad")):
            if ctx.needs_input_grad[index]:
                wanted = [index == 0, index == 1, False]
                with part(f"{ctx.name} {kind}"):
                    results = torch.ops.aten.convolution_backward(gradients[0], x, weight, None, *ctx.options, wanted)
                found[index] = results[index]
        return found[0], found[1], None, None


def _split_forward(module: Convolution, name: str, x: Tensor) -> Tensor:
    """Run `module` as its own part, with the size of its map in the name."""
    sized = f"{name} {x.shape[2]}x{x.shape[3]}"
    options = [module.stride, module.padding, module.dilation, False, [0, 0], module.groups]
    with part(f"{sized} forward"):
        result: Tensor = _SplitConvolution.apply(x, module.weight.to(x.dtype), sized, options)
    return result


def _convolving_kernels(path: str, module: KernelPlace) -> dict[str, Callable[..., Tensor]]:
    """Return the kernels of a group that begin with its first convolution, each as its own part.

    Their backward passes are all called wgrad.
    """
    found: dict[str, Callable[..., Tensor]] = {}
    for name, function in module.kernels.items():
        if any(group.startswith("convolution") for group in registered()[name].gpu_functions.values()):
            layer = f"group{int(path.split('.')[1]) + 1}.conv1+{name.removeprefix('convolution_')}"
            found[name] = functools.partial(_in_part, layer, function)
    return found


def _in_part(layer: str, function: Callable[..., Tensor], x: Tensor, *others: Any, **options: Any) -> Tensor:
    with part(f"{layer} {x.shape[2]}x{x.shape[3]} forward"):
        return function(x, *others, **options)


@contextmanager
def parts_of_net(net: SpeedyResNet, *, whitening_bias: bool) -> Iterator[None]:
    """Within the context, enter a part for each module of the net that begins one, and split convolutions.

    Args:
        net: the net to split into parts.
        whitening_bias: as in `training_step`. If it is frozen, the bias requires no gradient within the context,
            because a split convolution cannot see that its input gradient is not needed.
    """
    entered: list[AbstractContextManager[object]] = []

    def enter(name: str) -> None:
        entered.append(part(name))
        entered[-1].__enter__()

    def leave() -> None:
        entered.pop().__exit__(None, None, None)

    with ExitStack() as stack:
        bias = net.stem.whitening.bias
        if bias is not None and not whitening_bias:
            stack.callback(bias.requires_grad_, bias.requires_grad)
            bias.requires_grad_(False)
        for path, module in net.named_modules():
            name = part_of_module(path, module)
            if isinstance(module, KernelPlace):
                stack.callback(setattr, module, "kernels", module.kernels)
                module.kernels = module.kernels | _convolving_kernels(path, module)
            if isinstance(module, Convolution) and name is not None:
                module.forward = functools.partial(_split_forward, module, name)  # type: ignore[method-assign]
                stack.callback(module.__dict__.pop, "forward")
            elif name is not None:
                for handle in (
                    module.register_forward_pre_hook(lambda *_, n=name: enter(n)),
                    module.register_forward_hook(lambda *_: leave()),
                ):
                    stack.callback(handle.remove)
        yield
