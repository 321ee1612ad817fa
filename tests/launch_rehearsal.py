"""Launch every kernel as the engine does, without a GPU: Triton compiles for an H100, and nothing runs.

Print as JSON, by kernel, the hash of the PTX that was launched, and the hashes of what `speedyresnet kernels` compiles
for the same constants. Run it in a process of its own, without TRITON_INTERPRET.
"""

import dataclasses
import json
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from speedyresnet.engine.operations import shipped_operations
from speedyresnet.kernels.augment import Transforms, augmented_batch_triton, normalisation
from speedyresnet.kernels.batch_norm import batch_norm_act_backward_triton, batch_norm_act_triton
from speedyresnet.kernels.convolution_pool import convolution_pool_backward_triton, convolution_pool_triton
from speedyresnet.kernels.pool_batch_norm import (
    pool_batch_norm_act_backward_triton,
    pool_batch_norm_act_triton,
)
from speedyresnet.kernels.resources import compile_cases, compiled, ptx_hash, source_of
from speedyresnet.kernels.stem import stem_backward_triton, stem_triton

BATCH = 256
TRANSFORMS = Transforms(padding=2, flip="alternating")


class Hopper:
    """Stand-in for the driver that Triton queries before it compiles."""

    def get_current_target(self) -> GPUTarget:
        """Return the target of an H100 and an H200."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """Return the only device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0


found: dict[str, Any] = {}
"""What was compiled for each kernel that was launched."""


def compile_only(self: JITFunction, *arguments: object, grid: object, warmup: bool, **options: object) -> object:
    """Replacement for `JITFunction.run` that stops before the launch."""
    found[self.__name__] = made = launch(self, *arguments, grid=grid, warmup=True, **options)
    return made


def half(*shape: int) -> torch.Tensor:
    """Return float16 in channels_last; its values are never read."""
    return torch.zeros(shape, dtype=torch.float16).to(memory_format=torch.channels_last)


def main() -> None:
    """Launch each kernel once.

    The shapes are those of pocket, but of airbench94 for the convolution and the stem, which has a bias there.
    """
    weight, bias, mean, inverse = (torch.ones(1, 128) for _ in range(4))
    vectors = weight[0], bias[0]
    x, p = half(BATCH, 128, 15, 15), half(BATCH, 128, 7, 7)
    batch_norm_act_triton(p, *vectors, mean[0], inverse[0], None, "gelu", "none", 0.1, 1e-5, 1)
    batch_norm_act_backward_triton(p, p, *vectors, None, mean, inverse, "gelu", "none", 1)
    pool_batch_norm_act_triton(x, *vectors, mean[0], inverse[0], "gelu", 0.1, 1e-5, 1)
    pool_batch_norm_act_backward_triton(p, p, p.byte(), *vectors, mean, inverse, 15, 15, "gelu", 1)

    convolution_pool_triton(half(1024, 24, 31, 31), half(64, 24, 3, 3))
    p = half(1024, 64, 15, 15)
    convolution_pool_backward_triton(p, p.byte(), half(1024, 24, 31, 31))

    images, labels = torch.zeros(50_000, 32, 32, 3, dtype=torch.uint8), torch.zeros(50_000, dtype=torch.int64)
    scale, shift = normalisation((0.5,) * 3, (0.25,) * 3, torch.float32, images.device)
    at = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    augmented_batch_triton(images, labels, *at, scale, shift, TRANSFORMS, BATCH, 195, torch.float16)
    settings = dataclasses.astuple(TRANSFORMS)
    filters = half(24, 3, 2, 2)
    stem_triton(
        images, labels, *at, scale, shift, filters, filters[:, 0, 0, 0].contiguous(), BATCH, 195, torch.float16, "gelu",
        *settings,
    )  # fmt: skip
    stem_backward_triton(
        half(BATCH, 24, 31, 31), images, torch.zeros(2, dtype=torch.int64), scale, shift, filters,
        filters[:, 0, 0, 0].contiguous(), 195, "gelu", *settings,
    )  # fmt: skip


def checked(name: str) -> list[str]:
    """The hashes of the PTX of the cases of a kernel that have the constants with which it was launched."""
    cases = {case.code: case for case in compile_cases(shipped_operations(), name)}.values()
    alike = [case for case in cases if source_of(case).constants == found[name].src.constants]
    return [ptx_hash(compiled(case, "sm_90").asm["ptx"]) for case in alike]


if __name__ == "__main__":
    driver.set_active(Hopper())
    launch, JITFunction.run = JITFunction.run, compile_only
    main()
    launched = {name: ptx_hash(made.asm["ptx"]) for name, made in found.items()}
    print(json.dumps({name: [code, checked(name)] for name, code in launched.items()}))
