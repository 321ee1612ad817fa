"""What a GPU kernel does, told from its name alone: ours, cuDNN's, cuBLAS's, Inductor's and PyTorch's own.

cuDNN writes the pass of a convolution into every name, as `fprop`, `dgrad` or `wgrad`; in mangled C++ names it stands
in those of iterators, as in `Conv2dWgradOutputGradientTileAccessIterator`. Inductor lists the aten operations that it
fused and numbers kernels in the order of the code that it writes. cuBLAS's kernels are called gemm, nvjet or cutlass.
"""

import re
from dataclasses import dataclass
from typing import Literal

from speedyresnet.kernels.contract import registered

Role = Literal["own", "convolution", "before", "after", "product", "after_product", "fill", "words", "inductor",
               "native", "unknown"]  # fmt: skip
PASSES = ("forward", "dgrad", "wgrad")
_FORMER_KERNELS = dict.fromkeys(("combine_statistics_kernel", "combine_gradient_sums_kernel"), "norm+pool")
"""In tables from before reductions combined their own partial results."""
OWN_KERNELS = _FORMER_KERNELS | {
    name: group for kernel in registered().values() for name, group in kernel.gpu_functions.items()
}
"""Groups of the kernels of this package, by name."""

_CUDNN_PASSES = {"fprop": "forward", "dgrad": "dgrad", "wgrad": "wgrad"}
_OLD_CONVOLUTIONS = re.compile("convolve|winograd|conv2d|conv_depthwise|implicit_conv")
_PRODUCTS = re.compile("gemm|nvjet|gemv|cutlass::kernel|cublas")
_REDUCTIONS = re.compile("splitkreduce|reducesplitk|execute_split_k_kernel")
_WORDS = (
    ("head+loss", re.compile("softmax|nll_loss|argmax")),
    ("norm+activation", re.compile("batch_?norm|bn_fw|bn_bw|gelu|silu|celu|relu|elu_")),
    ("pool", re.compile("max_?pool|pooling")),
    ("optimizer", re.compile("vector_norm|foreach|multi_tensor|_stack_|_eye_")),
    ("augment", re.compile("bitwise|remainder|reflection_pad")),
)
"""Parts by words in the name of a kernel of Inductor or PyTorch; the first that fits counts."""
_PADDING = re.compile("constant_pad.*_stack_")
"""Muon puts all matrices into one tensor."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a name says."""

    role: Role
    """`before` and `after`: a helper of the next, or of the last, convolution; `fill`: of whatever comes next; `words`:
    the operations in the name tell its part; `inductor` and `native`: nothing in the name does."""
    what: str = ""
    """Of `own` its name; of a convolution and its helpers the pass, empty if it is unknown; of `words` the part."""
    number: int = 0
    """Inductor's."""


def _part_in(name: str) -> str:
    """The part that the words in a lower-case name tell; empty if none does."""
    return next((part for part, words in _WORDS if words.search(name)), "")


def _inductor(name: str) -> Kernel:
    number = int(found[-1]) if (found := re.findall(r"_(\d{1,9})\b", name)) else 0
    part = "optimizer" if _PADDING.search(name) else _part_in(name)
    return Kernel("words" if part else "inductor", part, number)


def kernel_of(name: str) -> Kernel:
    """What the kernel called `name` by the profiler does."""
    if name in OWN_KERNELS:
        return Kernel("own", name)
    lower = name.lower()
    if lower.startswith(("memset", "memcpy")):
        return Kernel("fill")
    if lower.startswith("triton_"):
        return _inductor(lower)
    of_cudnn, found = "cudnn" in lower, re.search("|".join(_CUDNN_PASSES), lower)
    which = _CUDNN_PASSES[found.group()] if found else ""
    if _REDUCTIONS.search(lower):
        return Kernel("after", which) if which or of_cudnn else Kernel("after_product")
    if "init_device_workspace" in lower:
        return Kernel("before", which)
    if which or _OLD_CONVOLUTIONS.search(lower):
        return Kernel("convolution", which or "forward")
    if _PRODUCTS.search(lower):
        return Kernel("product")
    if part := _part_in(lower):
        return Kernel("words", part)
    if of_cudnn:  # changes of layout, padding
        return Kernel("before")
    return Kernel("native" if "at::native" in lower else "unknown")
