"""Kernels from files of the user's own: the example of CONTRIBUTING.md, what is checked, and what is recorded."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from speedyresnet.engine import UserError, recipe, train
from speedyresnet.engine.outside_kernels import check_outside_kernel, kernel_references, load_kernel
from speedyresnet.engine.synthetic import make_synthetic
from speedyresnet.kernels.agreement import agreements, worst
from speedyresnet.kernels.contract import Operation, registered
from speedyresnet.kernels.language import AVAILABLE

CPU, NAME = torch.device("cpu"), "pool_batch_norm_act"
OPERATION = Operation(
    NAME, (4, 16, 7, 6), torch.float32, options=(("activation", "gelu"), ("groups", 2), ("precision", "float32"))
)
SETTINGS = ["batch_size=4", "width_multiplier=0.125", "epochs=2", "dtype=float32", "kernels=reference"]


def example():
    """The file `my_kernel.py` of CONTRIBUTING.md."""
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
    (found,) = re.findall(r"```python\n(\"\"\"Max-pooling of my own.*?)```", text, flags=re.DOTALL)
    return found


@pytest.fixture
def write(tmp_path):
    """A function that writes the example, changed, and gives its reference."""

    def make(*changes, file="my_kernel.py"):
        text = example()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / file).write_text(text)
        return f"{tmp_path / file}:KERNEL"

    return make


@pytest.fixture(scope="module")
def tiny_pack():
    return make_synthetic(train_images=8, test_images=8)


def test_the_example_trains_and_the_record_names_its_file(write, tiny_pack, tmp_path):
    reference = write()
    runs = [
        train(recipe("airbench94", SETTINGS), tiny_pack, device="cpu", backend="eager", kernels=kernels)
        for kernels in (None, {NAME: reference})
    ]
    digest = hashlib.sha256((tmp_path / "my_kernel.py").read_bytes()).hexdigest()
    kernels = runs[1].record.kernels
    assert kernels.pop(NAME) == f"my_kernel.py:KERNEL@sha256:{digest}"
    assert set(kernels.values()) == {"reference"}
    losses = [[row.loss for row in run.record.history] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


GRADIENT = "return unpooled(gradient, *ctx.saved_tensors, *ctx.sides)"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (GRADIENT, GRADIENT + " * 1.01", "gradient of x is off by 0.01"),
        ("batch_norm_act_plain(MyPool", "1.001 * batch_norm_act_plain(MyPool", "result is off by 0.001"),
        ("running_mean, running_variance, **options)\n\n\nKERNEL",
         "running_mean, running_variance.clone(), **options)\n\n\nKERNEL", "running_variance afterwards is off"),
        (GRADIENT, "return None", "gives no gradient of x"),
        ("batch_norm_act_plain(MyPool.apply(x)", "batch_norm_act_plain(MyPool.apply(x.detach())", "no gradient of x"),
        ("batch_norm_act_plain(MyPool.apply(x)", "batch_norm_act_plain(x", "gives {"),
        ("batch_norm_act_plain(MyPool.apply(x)", "torch.nan * batch_norm_act_plain(MyPool.apply(x)", "off by nan"),
        ("batch_norm_act_plain(MyPool.apply(x)", "undefined(x", "NameError"),
    ],
)  # fmt: skip
def test_a_kernel_that_differs_is_one_line_with_what_and_where(write, old, new, words):
    name, provider = load_kernel(write((old, new)))
    with pytest.raises(UserError) as refused:
        check_outside_kernel([OPERATION], name, provider, CPU)
    told = str(refused.value)
    assert words in told
    assert "my_kernel.py:KERNEL" in told
    assert "pool_batch_norm_act of 4x16x7x6, float32, activation gelu, groups 2" in told


def test_nothing_passes_that_was_not_compared(write):
    name, provider = load_kernel(write())
    with pytest.raises(UserError, match="the recipe has no pool_batch_norm_act"):
        check_outside_kernel([], name, provider, CPU)
    other = Operation(NAME, OPERATION.shape, OPERATION.dtype, "contiguous", OPERATION.options)
    with pytest.raises(UserError, match="takes activations in channels_last, not contiguous"):
        check_outside_kernel([other], name, provider, CPU)


def test_the_command_refuses_in_one_line(write, speedyresnet, tmp_path):
    reference = write()
    (tmp_path / "other.py").write_text("KERNEL = 3\n")
    for option, words in (
        ("pool=no.py:KERNEL", "unknown operation 'pool'|does not exist"),
        (f"stem={reference}", "is a kernel of pool_batch_norm_act, not of stem"),
        (f"stem={tmp_path}/other.py:KERNEL", "is no speedyresnet.kernels.contract.Kernel"),
        ("stem", "write it as OPERATION=my_file.py:KERNEL"),
    ):
        done = speedyresnet("train", "--device", "cpu", "--data", "synthetic", "--kernel", option)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert re.search(words, done.stderr)
    with pytest.raises(UserError, match="given twice"):
        kernel_references([f"stem={reference}", f"stem={reference}"])


def test_a_run_goes_on_with_the_same_file_only(write, tiny_pack, tmp_path):
    made, file = recipe("airbench94", SETTINGS), tmp_path / "run.checkpoint"
    options = {"device": "cpu", "backend": "eager"}
    train(made, tiny_pack, **options, kernels={NAME: write()}, checkpoint=file)
    train(made, tiny_pack, **options, kernels={NAME: write()}, resume=file)
    changed = write((GRADIENT, GRADIENT + "  # again"))
    for kernels, words in ((None, "not none"), ({NAME: changed}, "go on with the same")):
        with pytest.raises(UserError, match=words):
            train(made, tiny_pack, **options, kernels=kernels, resume=file)


def test_the_example_is_timed_beside_the_reference(write, speedyresnet):
    settings = [
        word for each in ("batch_size=4", "width_multiplier=0.125", "dtype=float32") for word in ("--set", each)
    ]
    done = speedyresnet(
        "bench", "kernels", "--recipe", "airbench94", *settings, "--device", "cpu", "--operation", NAME,
        "--provider", write(), "--provider", "reference", "--list", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    providers = {row["provider"].partition("@")[0] for row in json.loads(done.stdout)["cases"]}
    assert providers == {"my_kernel.py:KERNEL", "reference"}


@pytest.mark.skipif(not AVAILABLE, reason="needs Triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_shipped_kernels_agree_with_their_references(dtype):
    options = dict(OPERATION.options)
    operations = {
        NAME: OPERATION.options,
        "batch_norm_act": tuple((options | {"residual": "before_activation"}).items()),
    }
    for name, own in operations.items():
        operation = Operation(name, OPERATION.shape, dtype, options=own)
        found = agreements(registered()[name], operation, CPU)
        assert worst(found).holds, worst(found)
        assert {each.tensor for each in found} >= {"result", "gradient of x", "running_mean afterwards"}
