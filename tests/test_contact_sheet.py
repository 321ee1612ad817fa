import numpy as np
import pytest
from data_checks import assert_is_remedy
from PIL import Image

from speedyresnet.engine.contact_sheet import GAP, NAME_PIXELS, check_picture, contact_sheet, save_contact_sheet
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.pack import make_pack


def flat_pack(classes, per_class=3, shape=(32, 32, 3), names=None):
    """Images of one value each: 10 * class + number within the class, modulo 256."""
    labels = np.repeat(np.arange(classes), per_class)
    values = (10 * labels + np.tile(np.arange(per_class), classes)) % 256
    images = np.ones((len(labels), *shape), dtype=np.uint8) * values[:, None, None, None].astype(np.uint8)
    return make_pack("flat", names or [f"class {k:04d}" for k in range(classes)], images, labels, images, labels)


def tiles(sheet, rows, height, width):
    """Pixels of all places for images, [rows, 10, height, width, 3]."""
    pixels = np.asarray(sheet)
    assert pixels.shape == (rows * (height + GAP) + GAP, NAME_PIXELS + 10 * (width + GAP) + GAP, 3)
    places = pixels[GAP:, NAME_PIXELS + GAP :].reshape(rows, height + GAP, 10, width + GAP, 3)
    return places[:, :height, :, :width].transpose(0, 2, 1, 3, 4)


def test_each_class_has_a_row_of_its_training_images():
    found = tiles(contact_sheet(flat_pack(4)), 4, 64, 64)
    for label in range(4):
        shown = sorted(set(found[label, :3].ravel().tolist()))
        assert shown == [10 * label, 10 * label + 1, 10 * label + 2]
        assert (found[label, 3:] == 255).all()


def test_a_thousand_classes_are_sampled_evenly():
    found = tiles(contact_sheet(flat_pack(1000, per_class=1)), 20, 64, 64)
    assert found[:, 0, 5, 5, 0].tolist() == [10 * label % 256 for label in range(0, 1000, 50)]


def test_small_images_are_enlarged_pixel_for_pixel():
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    pack = make_pack("grey", ["a", "b"], images, [0, 1], images, [0, 1])
    found = tiles(contact_sheet(pack), 2, 84, 84)
    for label in range(2):
        (own,) = pack.train_images[pack.train_labels == label]
        assert (found[label, 0] == np.repeat(np.repeat(own.numpy(), 3, axis=0), 3, axis=1)).all()


def test_large_images_are_scaled_down():
    assert contact_sheet(flat_pack(2, shape=(600, 300, 3))).size == (NAME_PIXELS + 10 * (64 + GAP) + GAP, 2 * 132 + GAP)


def test_names_are_legible_and_stay_beside_the_images():
    names = ["short", "a name that is " + "very " * 50 + "long"]
    pixels = np.asarray(contact_sheet(flat_pack(2, names=names)).convert("L"))
    margin = pixels[:, :NAME_PIXELS]
    for row in (slice(0, 68), slice(68, 136)):
        assert (margin[row] < 100).sum() > 100
    assert (pixels[:, NAME_PIXELS - GAP : NAME_PIXELS + GAP] == 255).all()


@pytest.mark.parametrize("suffix", ["png", "JPG", "webp", "bmp"])
def test_the_name_tells_the_format(tmp_path, suffix):
    path = tmp_path / f"sheet.{suffix}"
    save_contact_sheet(flat_pack(2), path)
    with Image.open(path) as image:
        assert image.format in {"PNG", "JPEG", "WEBP", "BMP"}
        assert np.abs(np.asarray(image).astype(int) - np.asarray(contact_sheet(flat_pack(2)))).mean() < 3


@pytest.mark.parametrize("name", ["sheet", "sheet.xbm", "sheet.txt", "folder.png", "file/sheet.png"])
def test_no_place_for_a_picture(tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError) as error:
        check_picture(tmp_path / name)
    assert_is_remedy(error, "cannot write", str(tmp_path / name))
