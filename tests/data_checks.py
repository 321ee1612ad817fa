"""Helpers for the tests of packs and of their sources."""

import numpy as np
import torch
from PIL import Image

from speedyresnet.engine.pack import DTYPES

CLASSES = ("ant", "bee", "cow")


def random_arrays(seed=0, counts=(30, 12), shape=(6, 5, 3), classes=3):
    generator = np.random.default_rng(seed)
    for count in counts:
        yield generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        yield np.arange(count) % classes


def write_images(folder, images, file_names):
    folder.mkdir(parents=True)
    for image, file_name in zip(images, file_names, strict=True):
        Image.fromarray(image).save(folder / file_name)


def write_folder(folder, classes=CLASSES, test="test", prefix="", backwards=False, size=8):
    """Write 3 train and 2 test images of each class, as an image folder."""
    generator = np.random.default_rng(5)
    work = []
    for split, count in (("train", 3), (test, 2)):
        for name in classes:
            images = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
            work.append((folder / split / name, images))
    for path, images in reversed(work) if backwards else work:
        names = [f"{prefix}{number}.png" for number in range(len(images))]
        write_images(path, images, reversed(names) if backwards else names)
    return folder


def assert_same_pack(first, second):
    for key in DTYPES:
        assert torch.equal(getattr(first, key), getattr(second, key)), key
    for key in ("name", "class_names", "sha256", "mean", "std"):
        assert getattr(first, key) == getattr(second, key), key


def assert_is_remedy(error, *words):
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
