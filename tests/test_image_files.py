import os
import threading

import numpy as np
import pytest
from data_checks import assert_is_remedy, write_folder
from image_kinds import COLOURS, KINDS, RAMP, UNKNOWN_RANGES, saved
from PIL import Image

from speedyresnet.engine import UserError, read_image
from speedyresnet.engine.data import pack_source
from speedyresnet.engine.image_files import is_grey


def written(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize("name", [name for name, (_, pixels) in KINDS.items() if pixels is not None])
def test_every_kind_of_file_has_the_right_pixels(name, tmp_path):
    content, pixels = KINDS[name]
    found = read_image(written(tmp_path, name, content))
    assert (found.dtype, found.shape) == (np.uint8, pixels.shape)
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("turned-")])
def test_a_pack_has_the_same_pixels(name, tmp_path):
    folder = write_folder(tmp_path / "beasts", size=16)
    for old in (folder / "test" / "ant").iterdir():
        old.unlink()
    path = written(folder / "test" / "ant", name, KINDS[name][0])
    pack = pack_source(str(folder), size=6)
    (image,) = pack.test_images[pack.test_labels == 0].numpy()
    np.testing.assert_array_equal(read_image(path, size=(6, 6)), image)


def test_ink_is_no_light(tmp_path):
    image = read_image(written(tmp_path, "ink.jfif", KINDS["ink.jfif"][0]))
    assert np.abs(image[:, :5].astype(int) - (255, 0, 0)).max() < 12
    assert image[:, 10:].max() < 12


def test_one_channel_and_another_size(tmp_path):
    path = written(tmp_path, "plain.png", KINDS["plain.png"][0])
    assert read_image(path, channels=1).shape == (5, 7, 1)
    weights = (0.299, 0.587, 0.114)
    assert np.abs(read_image(path, channels=1)[..., 0] - COLOURS @ weights).max() <= 1
    large = np.asarray(Image.fromarray(COLOURS).resize((10, 4), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(read_image(str(path), size=(4, 10)), large)


@pytest.mark.parametrize("name", UNKNOWN_RANGES)
def test_samples_of_unknown_range_are_refused(name, tmp_path):
    path = written(tmp_path, name, UNKNOWN_RANGES[name])
    with pytest.raises(UserError) as error:
        read_image(path)
    assert_is_remedy(error, f"cannot read image {path}: its pixels", "repair it or take it away")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"channels": 4}, "4 channels; choose 1 or 3"), ({"size": (0, 5)}, r"\(0, 5\) is no image size"),
     ({"size": (5,)}, r"\(5,\) is no image size"), ({"size": 32}, "32 is no image size"),
     ({"size": (1.5, 2)}, "is no image size"), ({"size": (4097, 2)}, "each from 1 to 4096"),
     ({"size": "ab"}, "'ab' is no image size")],
)  # fmt: skip
def test_wrong_arguments_are_refused(options, words, tmp_path):
    path = written(tmp_path, "plain.png", KINDS["plain.png"][0])
    with pytest.raises(UserError, match=words):
        read_image(path, **options)


@pytest.mark.parametrize("kind", ["pipe", "folder", "nothing"])
def test_what_is_no_regular_file_is_refused_at_once(kind, tmp_path):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    refused = []

    def read():
        with pytest.raises(UserError) as error:
            read_image(path)
        refused.append(str(error.value))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert [text.startswith(f"cannot read image {path}: ") for text in refused] == [True]


def test_what_pillow_knows_beside_the_kinds_that_are_promised_is_refused(tmp_path):
    for kind in ("EPS", "PCX", "TGA"):  # of a PostScript file Pillow would have Ghostscript run the program in it
        path = written(tmp_path, "a.png", saved(Image.fromarray(COLOURS), kind))
        with pytest.raises(UserError) as error:
            read_image(path)
        assert_is_remedy(
            error, f"cannot read image {path}: it is no png, jpg, webp, bmp, gif, tif or ppm file", "; repair"
        )


def test_grey_is_told_by_the_file_and_not_by_how_pillow_gives_it(tmp_path):
    grey = {"alpha16.png", "half.png", "wide.png", "wide.tif", "bits.pbm", "two.png", "key4.png"}
    for name in grey | {"plain.png", "palette.png", "black-bar.png", "key48.png", "ink.tif"}:
        assert is_grey(written(tmp_path, name, KINDS[name][0])) == (name in grey), name


def test_ramp_is_a_test_of_all_upper_bits():
    assert len(np.unique(RAMP)) == 35
    assert len(np.unique(RAMP >> 4)) > 12
