"""Kernels from the user's own files, `my_file.py:KERNEL`: loaded, compared with their references, and then used."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from ..kernels.agreement import agreements, worst
from ..kernels.contract import REFERENCE, Kernel, Operation, add_outside_kernel, kernel_called, registered
from .errors import UserError, nearest_names
from .operations import operations_of
from .python_files import failures_explained, module_of_file
from .recipe import Recipe
from .step import KernelChoice

FORM = "my_file.py:KERNEL"


def load_kernel(reference: str, operation: str | None = None) -> tuple[str, str]:
    """Load a kernel from a file.

    Args:
        reference: FILE:NAME of a `kernels.contract.Kernel`.
        operation: required operation; None: any known operation.

    Returns:
        The operation, and the provider: the file's name, the kernel's name, and the SHA-256 of the file.

    Raises:
        UserError: the file or kernel does not exist, or is for another operation.
    """
    module, name = module_of_file(reference, "kernel", FORM)
    kernel = getattr(module, name, None)
    if not isinstance(kernel, Kernel):
        raise UserError(f"{reference} is no speedyresnet.kernels.contract.Kernel; give {FORM}")
    wanted = operation or kernel.operation
    if wanted not in registered():
        raise UserError(f"unknown operation {wanted!r}: {nearest_names(wanted, registered())}")
    if kernel.operation != wanted:
        raise UserError(f"{reference} is a kernel of {kernel.operation}, not of {wanted}")
    file = Path(reference.rpartition(":")[0])
    provider = f"{file.name}:{name}@sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    add_outside_kernel(provider, kernel)
    return wanted, provider


def load_kernels(references: Mapping[str, str]) -> dict[str, str]:
    """Load kernels from their references and return their providers, by operation; see `load_kernel`."""
    return dict(load_kernel(reference, operation) for operation, reference in references.items())


def kernel_references(options: Iterable[str]) -> dict[str, str]:
    """Parse texts OPERATION=my_file.py:KERNEL into references by operation; raise UserError for any other text."""
    found = {}
    for option in options:
        operation, equals, reference = option.partition("=")
        if not equals or ".py:" not in reference:
            raise UserError(f"--kernel {option}: write it as OPERATION={FORM}")
        if operation in found:
            raise UserError(f"--kernel {operation} is given twice; give it once")
        found[operation] = reference
    return found


def check_outside_kernel(operations: Iterable[Operation], name: str, provider: str, device: torch.device) -> None:
    """Compare a kernel with its reference on all `operations` called `name`.

    Raises:
        UserError: the kernel differs, or supports none of them.
    """
    own, kernel = [each for each in operations if each.name == name], kernel_called(name, provider)
    told = provider.partition("@")[0]
    if not own:
        raise UserError(f"--kernel {name}={told}: the recipe has no {name}; leave it out")
    refusals = [kernel.fits(each) for each in own]
    if all(refusals):
        raise UserError(f"{told} {refusals[0]}: it takes no {name} of the recipe, such as {own[0]}")
    for each in (each for each, refusal in zip(own, refusals, strict=True) if refusal is None):
        with failures_explained(f"{told} for {each}"):
            found = worst(agreements(kernel, each, device))
        if not found.holds:
            raise UserError(
                f"{told} differs from the reference for {each}: {found.tensor} is off by {found.error:.2g}, "
                f"{found.allowed:.2g} is allowed; mend it"
            )


def with_outside_kernels(
    choice: KernelChoice, providers: Mapping[str, str], recipe: Recipe, images: Sequence[int], device: torch.device,
    dtype: torch.dtype, backend: str,
) -> KernelChoice:  # fmt: skip
    """Return `choice` with kernels from outside, each compared with its reference, in all places where they fit.

    Raises:
        UserError: a kernel differs or is of no use, or the backend only runs PyTorch's own operations.
    """
    if not providers:
        return choice
    if backend == "torchscript":
        raise UserError("--backend torchscript is plain PyTorch and takes no --kernel; use --backend eager")
    operations = operations_of(recipe, images, dtype)
    for name, provider in providers.items():
        check_outside_kernel(operations, name, provider, device)
    # The stem's kernel makes the batches itself, so an augment kernel from outside excludes it.
    apart = {"stem": REFERENCE} if "augment" in providers else {}
    made = KernelChoice(choice | apart | dict(providers))
    made.refused = frozenset(pair for pair in choice.refused if pair[1] not in providers)
    return made
