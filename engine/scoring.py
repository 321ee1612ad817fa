"""The net as the scorer of a run evaluates it: the same mathematics in fewer and cheaper passes.

- Kernels that the steps use and that need no statistics of a batch serve in evaluation too: `convolution_pool` writes a
  pooled map instead of one that is four times as large.
- For compiled backends the running statistics of a batch norm are folded into its scale and its shift, once an
  evaluation. Inductor fuses pooling, norm and activation into one kernel anyway, but otherwise that kernel computes a
  square root and a reciprocal for every value of the map.

The scale stays out of the weights of the convolution before it. There it would save one multiplication of a kernel that
waits for memory, round the weights once more in half precision, and need a rule for what stands between the two:
pooling, squeeze-and-excite, several convolutions, none. As it is, every net is folded.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from .nets import BatchNorm, KernelPlace, SpeedyResNet


def scoring_net(net: SpeedyResNet, *, folded: bool) -> SpeedyResNet:
    """A copy of `net` in evaluation mode on the meta device, for `torch.func.functional_call` with values from outside.

    Args:
        net: stays as it is, so that whoever calls it gets plain PyTorch in evaluation.
        folded: the values will be those of `folded_state`.
    """
    with torch.no_grad():
        made = copy.deepcopy(net).to("meta").eval()
    for module in made.modules():
        if isinstance(module, KernelPlace):
            module.scores = True
        if isinstance(module, BatchNorm):
            module.folded = folded
    return made


def folded_state(net: SpeedyResNet, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with scale and shift, in float32 or wider, as weight and bias of every batch norm.

    Args:
        net: whose modules are called as in `state`.
        state: parameters and buffers by name, live or averaged.
    """
    found = dict(state)
    for path, module in net.named_modules():
        if not isinstance(module, BatchNorm):
            continue
        names = ("weight", "bias", "running_mean", "running_var")
        wide = torch.promote_types(state[f"{path}.weight"].dtype, torch.float32)
        weight, bias, mean, variance = (state[f"{path}.{name}"].to(wide) for name in names)
        scale = weight * (variance + module.epsilon).rsqrt()
        found |= {f"{path}.weight": scale, f"{path}.bias": bias - mean * scale}
    return found
