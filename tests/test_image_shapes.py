"""The net follows what a data set is: height, width, channels and classes."""

import numpy as np
import pytest
import torch

from speedyresnet.engine import UserError, evaluate, export_model, read_model, recipe, train
from speedyresnet.engine.data import make_pack
from speedyresnet.engine.step import REFERENCE_KERNELS
from speedyresnet.kernels.language import AVAILABLE

NARROW = ["width_multiplier=0.125", "dtype=float32", "evaluation.every=0"]


def shaped_pack(height, width, channels, classes, images):
    """Noise over stripes: across in even classes, along in odd ones."""
    generator = np.random.default_rng(4)

    def split(count):
        labels = np.arange(count) % classes
        rows, columns = np.indices((height, width)) // 2 % 2
        stripes = np.where(labels[:, None, None] % 2, rows, columns)[..., None] * 120
        noise = generator.integers(0, 120, (count, height, width, channels))
        return (stripes + noise).astype(np.uint8), labels

    return make_pack("shaped", [f"{label}" for label in range(classes)], *split(images), *split(max(classes, 12)))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("airbench94", (28, 28, 1, 2)),
        ("hlb-v0.7", (28, 28, 1, 2)),
        ("pocket", (28, 28, 1, 2)),
        ("airbench94", (24, 40, 3, 2)),
        ("hlb-v0.7", (40, 24, 1, 2)),
        ("pocket", (64, 64, 3, 2)),
    ],
)
def test_every_recipe_learns_images_of_other_shapes(name, shape, tmp_path):
    pack = shaped_pack(*shape, images=64)
    few_steps = ["batch_size=16", "epochs=2", "optimizer.learning_rate=0.2"]
    run = train(recipe(name, [*NARROW, *few_steps]), pack, device="cpu", seed=2)
    assert run.record.status == "finished"
    assert run.record.accuracy.single_view > 0.9
    run.save(tmp_path / "model.safetensors")
    assert evaluate(tmp_path / "model.safetensors", pack, device="cpu") == run.record.accuracy


def test_the_largest_images():
    pack = shaped_pack(128, 128, 3, 2, images=8)
    run = train(recipe("airbench94", [*NARROW, "batch_size=4", "epochs=1"]), pack, device="cpu")
    assert run.record.status == "finished"
    assert run.net.stem.whitening.weight.shape == (24, 3, 2, 2)
    assert run.record.accuracy.six_view is not None


def test_a_thousand_classes():
    pack = shaped_pack(28, 28, 3, 1000, images=1000)
    run = train(recipe("pocket", [*NARROW, "batch_size=250", "epochs=1"]), pack, device="cpu")
    assert run.record.status == "finished"
    assert run.net.head.weight.shape[0] == 1000
    assert run.record.history[-1].loss == pytest.approx(np.log(1000), abs=0.5)


@pytest.mark.skipif(not AVAILABLE, reason="needs Triton")
def test_kernels_and_reference_agree_on_one_channel():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pack = shaped_pack(12, 20, 1, 3, images=8)
    settings = [*NARROW, "batch_size=4", "epochs=1"]
    runs = [
        train(recipe("airbench94", [*settings, f"kernels={kernels}"]), pack, device=device, backend="eager", seed=1)
        for kernels in ("triton", "reference")
    ]
    assert runs[0].record.kernels == dict.fromkeys(REFERENCE_KERNELS, "triton")
    losses = [run.record.history[-1].loss for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_an_exported_net_takes_one_channel(tmp_path):
    pack = shaped_pack(28, 28, 1, 2, images=64)
    run = train(recipe("airbench94", [*NARROW, "batch_size=8", "epochs=2"]), pack, device="cpu")
    run.save(tmp_path / "model.safetensors")
    model, path = read_model(tmp_path / "model.safetensors"), tmp_path / "net.pt2"
    metadata = export_model(model, path, "pt2")
    assert metadata["input"]["shape"] == ["N", 1, 28, 28]
    logits = torch.export.load(path).module()(pack.test_images.permute(0, 3, 1, 2) / 255)
    normalised = (pack.test_images.permute(0, 3, 1, 2) / 255 - model.mean[0]) / model.std[0]
    with torch.no_grad():
        torch.testing.assert_close(logits, model.net.eval()(normalised), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "fault"),
    [((28, 28, 3, 2), "takes images of 1 channels, the data shaped has 3"), ((4, 28, 1, 2), "too small")],
)
def test_a_model_refuses_images_that_do_not_fit(shape, fault, tmp_path):
    run = train(recipe("pocket", [*NARROW, "batch_size=8", "epochs=1"]), shaped_pack(28, 28, 1, 2, 16), device="cpu")
    run.save(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=fault):
        evaluate(tmp_path / "model.safetensors", shaped_pack(*shape, 16), device="cpu")
