"""The net follows what a data set is: height, width, channels and classes."""

import dataclasses

import numpy as np
import pytest
import torch
from trainers import trainer_of

from speedyresnet.engine import UserError, evaluate, export_model, read_model, recipe, train
from speedyresnet.engine.fit import check_fit
from speedyresnet.engine.pack import make_pack
from speedyresnet.engine.step import REFERENCE_KERNELS, pasted_share
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


@pytest.mark.parametrize(("crop", "flops"), [(16, 1_761_088), (26, 6_003_904), (0, 7_898_944)])
def test_windows_train_and_whole_images_are_evaluated(crop, flops):
    """The record has the FLOPs of a training image; here they are counted by hand."""
    pack, seen = shaped_pack(24, 40, 3, 2, images=64), []
    settings = [*NARROW, "batch_size=16", "epochs=2", "optimizer.learning_rate=0.2", f"augmentation.crop={crop}"]
    trainer = trainer_of(recipe("hlb-v0.7", settings), pack)
    trainer.net.stem.register_forward_pre_hook(
        lambda stem, given: seen.append((stem.training, tuple(given[0].shape[2:])))
    )
    record = trainer.run(seed=2)
    assert set(seen) == {(True, (crop, crop) if crop else (24, 40)), (False, (24, 40))}
    assert record.accuracy.mirror > 0.9
    assert record.model["forward_flops_per_image"] == flops


@pytest.mark.parametrize(
    ("crop", "shape", "fault"),
    [
        (29, (24, 40), "augmentation.crop=29 exceeds images of 24 x 40 pixels padded to 28 x 44"),
        (8, (24, 40), "images of 8 x 8 pixels are too small"),
        (10, (8, 40), "images of 8 x 40 pixels are too small"),
    ],
)
def test_neither_windows_nor_images_may_be_too_small(crop, shape, fault):
    with pytest.raises(UserError, match=fault):
        check_fit(recipe("airbench94", [f"augmentation.crop={crop}"]), *shape)


@pytest.mark.parametrize(("crop", "pixels"), [(0, 8 * 12), (10, 100), (5, 25)])
def test_pasted_squares_are_a_share_of_the_window(make_state, crop, pixels):
    state = make_state("airbench94", f"augmentation.crop={crop}", "augmentation.cutmix=3", device="meta")
    state.images = torch.empty(8, 8, 12, 3, dtype=torch.uint8, device="meta")
    assert pasted_share(state) == pytest.approx(9 / pixels)


@pytest.mark.exhaustive
@pytest.mark.skipif(not AVAILABLE, reason="needs Triton")
def test_kernels_and_reference_agree_on_one_channel():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pack = shaped_pack(12, 20, 1, 3, images=8)
    settings = [*NARROW, "batch_size=4", "epochs=1"]
    runs = [
        train(recipe("airbench94", [*settings, f"kernels={kernels}"]), pack, device=device, backend="eager", seed=1)
        for kernels in ("triton", "reference")
    ]
    expected = dict.fromkeys(REFERENCE_KERNELS, "triton") | {"convolution_pool": "reference"}  # of 8 filters
    assert runs[0].record.kernels == expected
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


def test_a_model_refuses_images_that_do_not_fit(tmp_path):
    run = train(recipe("pocket", [*NARROW, "batch_size=8", "epochs=1"]), shaped_pack(28, 28, 1, 2, 16), device="cpu")
    run.save(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="takes images of 1 channels, the data shaped has 3"):
        evaluate(tmp_path / "model.safetensors", shaped_pack(28, 28, 3, 2, 16), device="cpu")
    unsized = dataclasses.replace(read_model(tmp_path / "model.safetensors"), image_size=None)
    with pytest.raises(UserError, match="too small"):
        evaluate(unsized, shaped_pack(4, 28, 1, 2, 16), device="cpu")
