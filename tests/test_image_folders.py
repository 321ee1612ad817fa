import shutil

import numpy as np
import pytest
import torch
from data_checks import assert_is_remedy, write_folder, write_images
from PIL import Image

from speedyresnet.engine import image_folders
from speedyresnet.engine.data import pack_source, save_pack
from speedyresnet.engine.errors import UserError


def test_two_copies_of_a_folder_give_the_same_file(tmp_path):
    first = write_folder(tmp_path / "first")
    second = write_folder(tmp_path / "second", prefix="photo ", backwards=True, test="val")
    contents = []
    for folder in (first, second):
        path = tmp_path / f"{folder.name}.safetensors"
        save_pack(pack_source(str(folder), name="same"), path)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_folder_images_and_labels_are_those_of_the_files(tmp_path):
    folder = write_folder(tmp_path / "Some Beasts", classes=("cow", "ant", "bee"))
    for clutter in (".hidden.png", "notes.txt", "Thumbs.db"):
        (folder / "train" / "ant" / clutter).write_text("no image")
    (folder / "train" / ".cache").mkdir()
    pack = pack_source(str(folder))
    assert pack.name == "some-beasts"
    assert pack.class_names == ("ant", "bee", "cow")
    assert (len(pack.train_images), len(pack.test_images)) == (9, 6)
    for image, label in zip(pack.test_images, pack.test_labels, strict=True):
        files = (folder / "test" / pack.class_names[label]).glob("*.png")
        assert any(np.array_equal(np.asarray(Image.open(file)), image.numpy()) for file in files)


def test_all_kinds_of_images(tmp_path):
    folder = write_folder(tmp_path / "kinds")
    solid = Image.new("RGB", (8, 8), (200, 100, 50))
    for suffix in ("JPG", "jpeg", "webp", "BMP"):
        solid.save(folder / "train" / "ant" / f"solid.{suffix}")
    solid.convert("L").save(folder / "train" / "ant" / "grey.png")
    solid.convert("RGBA").save(folder / "train" / "ant" / "alpha.png")
    solid.quantize(4).save(folder / "train" / "ant" / "palette.png")
    pack = pack_source(str(folder))
    ants = pack.train_images[pack.train_labels == 0].float()
    assert len(ants) == 3 + 7
    close = (ants - torch.tensor([200.0, 100.0, 50.0])).abs().amax(dim=(1, 2, 3)) < 8
    assert close.sum() == 6


def test_exif_orientation_is_applied(tmp_path):
    folder = write_folder(tmp_path / "turned")
    half_white = np.zeros((8, 8, 3), dtype=np.uint8)
    half_white[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: to be shown rotated clockwise by 90 degrees
    shutil.rmtree(folder / "test" / "ant")
    (folder / "test" / "ant").mkdir()
    Image.fromarray(half_white).save(folder / "test" / "ant" / "0.png", exif=exif)
    pack = pack_source(str(folder))
    (image,) = pack.test_images[pack.test_labels == 0]
    assert image[:, 4:].eq(255).all()
    assert image[:, :4].eq(0).all()


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
def test_class_missing_in_one_split(tmp_path, split, other):
    folder = write_folder(tmp_path / "beasts")
    shutil.rmtree(folder / split / "bee")
    with pytest.raises(UserError) as error:
        pack_source(str(folder))
    assert_is_remedy(error, "class bee is missing", str(folder / split))
    assert str(folder / other) not in str(error.value)


def test_wrong_layouts(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no folder train; expected FOLDER/train/CLASS"):
        pack_source(str(tmp_path / "empty"))
    folder = write_folder(tmp_path / "beasts")
    shutil.rmtree(folder / "train" / "ant")
    (folder / "train" / "ant").mkdir()
    with pytest.raises(UserError, match=r"train/ant has no images; expected FOLDER/train/CLASS"):
        pack_source(str(folder))
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    with pytest.raises(UserError, match="train has no class folders; expected"):
        pack_source(str(folder))
    shutil.rmtree(folder / "test")
    with pytest.raises(UserError, match="no folder val; expected"):
        pack_source(str(folder))


@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_unreadable_image_is_named(tmp_path, damage):
    folder = write_folder(tmp_path / "beasts")
    bad = folder / "test" / "bee" / "1.png"
    bad.write_bytes(b"not an image" if damage == "text" else bad.read_bytes()[:100])
    with pytest.raises(UserError) as error:
        pack_source(str(folder))
    assert_is_remedy(error, f"cannot read image {bad}", "repair it")


def test_images_of_several_sizes(tmp_path):
    folder = write_folder(tmp_path / "beasts")
    odd = folder / "train" / "cow" / "1.png"
    Image.new("RGB", (9, 7)).save(odd)
    Image.new("RGB", (5, 5)).save(folder / "test" / "ant" / "0.png")
    with pytest.raises(UserError) as error:
        pack_source(str(folder))
    assert_is_remedy(error, f"{odd} is 9x7", "is 8x8", "--size")
    assert pack_source(str(folder), size=6).image_size == (6, 6)


def test_resizing_averages_over_all_pixels(tmp_path):
    folder = write_folder(tmp_path / "beasts", size=64)
    checkers = (np.indices((64, 48)).sum(axis=0) % 2 * 255).astype(np.uint8)
    shutil.rmtree(folder / "test" / "ant")
    write_images(folder / "test" / "ant", [np.stack([checkers] * 3, axis=2)], ["0.png"])
    pack = pack_source(str(folder), size=8)
    (image,) = pack.test_images[pack.test_labels == 0].float()
    assert image.shape == (8, 8, 3)
    assert (image - 127.5).abs().max() < 12


def test_progress_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(image_folders, "IMAGES_PER_TASK", 4)
    calls = []
    pack_source(str(write_folder(tmp_path / "beasts")), progress=lambda *call: calls.append(call))
    assert calls == [(done, 15, "reading images") for done in (4, 8, 12, 15)]


def test_real_images(real_folder, tmp_path):
    for split in ("train", "test"):
        for folder in (path for path in (real_folder / split).iterdir() if path.is_dir()):
            (tmp_path / "real" / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:20]:
                shutil.copy(image, tmp_path / "real" / split / folder.name)
    pack = pack_source(str(tmp_path / "real"))
    assert list(pack.class_names) == sorted(pack.class_names)
    assert pack.train_labels.bincount().tolist() == [20] * pack.num_classes
    assert all(0.1 < value < 0.9 for value in pack.mean + pack.std)
    first = sorted((tmp_path / "real" / "train" / pack.class_names[3]).iterdir())[0]
    pixels = torch.from_numpy(np.array(Image.open(first).convert("RGB")))
    place = (pack.train_images == pixels).flatten(1).all(1).nonzero().item()
    assert pack.train_labels[place] == 3
