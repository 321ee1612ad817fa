import json
import os
import re
import shutil
import socket
from hashlib import sha256

import numpy as np
import pytest
import torch
from data_checks import CLASSES, assert_is_remedy, assert_same_pack, write_folder, write_images
from PIL import Image

from speedyresnet.engine import image_folders
from speedyresnet.engine.data import load_data, pack_source
from speedyresnet.engine.errors import Note, UserError
from speedyresnet.engine.pack_file import save_pack


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


def ants(folder, files):
    """Return the pixels in a pack of files {name: (image, options of its writer)}, [len(files), 8, 8, C]."""
    shutil.rmtree(folder / "test" / "ant")
    (folder / "test" / "ant").mkdir()
    for name, (image, options) in files.items():
        image.save(folder / "test" / "ant" / name, **options)
    pack = pack_source(str(folder))
    return pack.test_images[pack.test_labels == 0].int()


def test_all_kinds_of_images(tmp_path):
    solid = Image.new("RGB", (8, 8), (200, 100, 50))
    files = {f"solid.{suffix}": (solid, {}) for suffix in ("JPG", "jpeg", "webp", "BMP", "png")}
    files |= {"alpha.png": (solid.convert("RGBA"), {}), "palette.png": (solid.quantize(4), {})}
    files |= {"cmyk.jpg": (solid.convert("CMYK"), {})}
    found = ants(write_folder(tmp_path / "kinds"), files)
    assert found.shape == (8, 8, 8, 3)
    assert (found - torch.tensor([200, 100, 50])).abs().max() < 8


def test_transparent_parts_are_white(tmp_path):
    """Whatever the colour below them."""
    clear = Image.new("RGBA", (8, 8), (10, 200, 30, 0))
    black_half = Image.new("LA", (8, 8), (0, 128))
    keyed = Image.new("P", (8, 8), 3)
    keyed.putpalette([9] * 12)
    files = {"clear.png": (clear, {}), "clear.webp": (clear, {"lossless": True}), "half.png": (black_half, {})}
    files |= {
        "palette.png": (keyed, {"transparency": 3}),
        "key.png": (Image.new("RGB", (8, 8)), {"transparency": (0, 0, 0)}),
    }
    values = sorted(image.unique().tolist() for image in ants(write_folder(tmp_path / "clear"), files))
    assert values == [[127], [255], [255], [255], [255]]


def write_grey_folder(folder):
    """Write 8-bit, 16-bit, bilevel and half-transparent greys; 16-bit values are 256 times those of 8 bits."""
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    eight = Image.fromarray(ramp)
    wide = Image.fromarray(ramp.astype(np.uint16) * 256)
    for split in ("train", "test"):
        for name, image in (("ant", eight), ("bee", wide), ("cow", eight.convert("1")), ("dog", eight.convert("LA"))):
            (folder / split / name).mkdir(parents=True)
            image.save(folder / split / name / "0.png")
    return torch.from_numpy(ramp)


def test_greyscale_folders_have_one_channel(tmp_path):
    ramp = write_grey_folder(tmp_path / "greys")
    pack = pack_source(str(tmp_path / "greys"))
    assert (pack.channels, len(pack.mean)) == (1, 1)
    images = {pack.class_names[label]: pack.test_images[place, :, :, 0] for place, label in enumerate(pack.test_labels)}
    assert all(torch.equal(images[name], ramp) for name in ("ant", "bee", "dog"))
    assert images["cow"].unique().tolist() == [0, 255]
    assert pack_source(str(tmp_path / "greys"), size=4).train_images.shape == (4, 4, 4, 1)


def test_one_coloured_image_makes_all_rgb(tmp_path):
    ramp = write_grey_folder(tmp_path / "greys")
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "greys" / "test" / "cow" / "9.png")
    pack = pack_source(str(tmp_path / "greys"))
    (wide,) = pack.train_images[pack.train_labels == 1]
    assert torch.equal(wide, ramp[:, :, None].expand(8, 8, 3))


def test_links_and_nested_folders_are_followed_and_hidden_ones_are_not(tmp_path):
    folder = write_folder(tmp_path / "beasts")
    plain = pack_source(str(folder), name="same")
    (tmp_path / "elsewhere").mkdir()
    (folder / "train" / "ant").rename(tmp_path / "elsewhere" / "ant")
    (folder / "train" / "ant").symlink_to(tmp_path / "elsewhere" / "ant")
    bees = folder / "train" / "bee"
    (tmp_path / "elsewhere" / "more").mkdir()
    (bees / "images").mkdir()
    (bees / "images" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (bees / "0.png").rename(bees / "images" / "more" / "0.PNG")
    (bees / "images" / "again").symlink_to(bees / "images" / "more")
    (bees / ".thumbnails").mkdir()
    (bees / ".thumbnails" / "1.png").write_text("no image")
    assert_same_pack(pack_source(str(folder), name="same"), plain)


# --- Links


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/cow/all", ".."),
        ("train/cow/root", "{root}"),
        ("train/cow/above", "{root}/.."),
        ("train/cow/deeper/loop", "{root}/train/cow"),
        ("train/dog", "."),
        ("test/dog", "{root}"),
        ("train/cow/pair/other/back", "{root}/../pair"),
    ],
)
def test_links_to_a_folder_above_are_refused(link, target, tmp_path):
    folder = write_folder(tmp_path / "beasts", (*CLASSES, "dog") if "dog" in link else CLASSES)
    path = folder / link
    if "dog" in link:
        shutil.rmtree(path)
    if "pair" in link:  # two folders elsewhere, each with a link to the other
        write_images(tmp_path / "pair" / "other", np.ones((1, 8, 8, 3), dtype=np.uint8), ["0.png"])
        (folder / "train" / "cow" / "pair").symlink_to(tmp_path / "pair")
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target.format(root=folder))
    for read in (pack_source, load_data):
        with pytest.raises(UserError) as error:
            read(str(folder))
        assert_is_remedy(error, f"{path} is a link to ", "a folder above itself", "; take the link away")


def test_a_split_that_is_a_link_to_the_whole_is_refused(tmp_path):
    folder = write_single_folder(tmp_path / "beasts", {"ant": 2, "bee": 2})
    (folder / "train").symlink_to(".")
    with pytest.raises(UserError, match=r"beasts/train is a link to .*, a folder above itself"):
        pack_source(str(folder), holdout=0.5)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/cow/more", "test/cow"),  # test images in the training split
        ("test/cow/more", "train/cow"),
        ("train/cow/more", "train/ant"),  # ants labelled as cows
        ("train/cow/9.png", "train/ant/0.png"),
        ("test/cow/9.png", "train/cow/0.png"),
        ("test", "train"),
        ("train/dog", "train/cow"),
    ],
)
def test_no_image_belongs_to_two_classes_or_splits(link, target, tmp_path):
    folder = write_folder(tmp_path / "beasts", (*CLASSES, "dog") if "dog" in link else CLASSES)
    if link in ("test", "train/dog"):
        shutil.rmtree(folder / link)
    (folder / link).symlink_to(folder / target)
    with pytest.raises(UserError) as error:
        pack_source(str(folder))
    assert_is_remedy(error, "is, through a link, the same file as one in", "take the link away")


def test_links_that_lead_nowhere_are_no_images(tmp_path):
    folder = write_folder(tmp_path / "beasts")
    for name, target in (("circle", "circle"), ("gone", "nowhere")):
        (folder / "train" / "ant" / name).symlink_to(target)
    assert pack_source(str(folder)).skipped == {"without suffix": 2}
    (folder / "train" / "ant" / "circle.png").symlink_to("circle.png")
    with pytest.raises(UserError, match=r"cannot read image .*circle\.png"):
        pack_source(str(folder))


# --- Skipped files


def test_what_is_left_out_is_counted(tmp_path, speedyresnet):
    folder = write_folder(tmp_path / "beasts")
    plain = pack_source(str(folder), name="beasts")
    assert plain.skipped == {}
    ants = folder / "train" / "ant"
    for name in ("notes.txt", "more.TXT", "raw.heic", "README", ".DS_Store"):
        (ants / name).write_text("no image")
    (folder / "test" / "cow" / "deep").mkdir()
    os.mkfifo(folder / "test" / "cow" / "deep" / "pipe.png")
    (folder / "test" / "cow" / "device.jpg").symlink_to("/dev/null")
    shutil.copy(ants / "0.png", folder / "train" / "lost.png")
    (folder / "train" / "labels.csv").write_text("no image")
    skipped = {".txt": 2, ".heic": 1, "without suffix": 1, "hidden": 1, "no regular file": 2, ".csv": 1}
    skipped |= {"outside class folders": 1}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "train" / "bee" / "s.png"))
        skipped["no regular file"] += 1
        pack = pack_source(str(folder), name="beasts")
        assert pack.skipped == skipped
        assert_same_pack(pack, plain)
        packed = json.loads(speedyresnet("data", "pack", folder, "--json").stdout)
        assert (packed["skipped"], packed["train_images"]) == (skipped, 9)
        told = "1 .csv, 1 .heic, 2 .txt, 1 hidden, 3 no regular file, 1 outside class folders, 1 without suffix"
        assert ["skipped", told] in [
            line.split(maxsplit=1) for line in speedyresnet("data", "pack", folder).stdout.splitlines()
        ]
        with pytest.warns(Note, match=f"left out of {folder}: {re.escape(told)}"):
            load_data(folder)


def test_every_suffix_that_can_be_read_is(tmp_path):
    folder = write_folder(tmp_path / "beasts")
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    for suffix in ("tif", "TIFF", "ppm", "pgm", "pbm", "pnm", "jfif", "gif", "bmp"):
        {"pgm": image.convert("L"), "pbm": image.convert("1")}.get(suffix, image).save(
            folder / "train" / "ant" / f"x.{suffix}"
        )
    pack = pack_source(str(folder))
    assert (len(pack.train_labels), pack.skipped) == (9 + 9, {})


# --- Splits


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("TRAIN", "VAL"), ("training", "testing"), ("train", "valid"), ("Training", "Validation"),
     ("seg_train", "seg_test"), ("seg_train/seg_train", "seg_test/seg_test"), ("train/Train", "test")],
)  # fmt: skip
def test_splits_have_many_names(train, test, tmp_path):
    plain = pack_source(str(write_folder(tmp_path / "beasts")), name="same")
    for old, new in (("train", train), ("test", test)):
        (tmp_path / "other" / new).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "beasts" / old).rename(tmp_path / "other" / new)
    assert_same_pack(pack_source(str(tmp_path / "other"), name="same"), plain)
    with pytest.raises(UserError, match="has a test split"):
        pack_source(str(tmp_path / "other"), holdout=0.5)


def test_of_validation_and_test_the_test_split_is_taken_and_told(tmp_path, speedyresnet):
    folder = write_folder(tmp_path / "beasts")
    plain = pack_source(str(folder), name="same")
    write_images(folder / "Valid" / "ant", np.zeros((1, 8, 8, 3), dtype=np.uint8), ["0.png"])
    with pytest.warns(Note, match="beasts/test is taken as the test split of .*beasts/Valid is not used"):
        assert_same_pack(pack_source(str(folder), name="same"), plain)
    done = speedyresnet("data", "pack", folder, "--json")
    assert (done.returncode, json.loads(done.stdout)["test_images"]) == (0, 6)
    (line,) = done.stderr.splitlines()
    assert line.startswith("speedyresnet: ")
    assert line.endswith("Valid is not used")


def test_a_split_under_another_name_is_not_ignored_in_silence(tmp_path, recwarn):
    folder = write_folder(tmp_path / "beasts")
    plain = pack_source(str(folder), name="same")
    assert not recwarn.list
    shutil.copytree(folder / "test", folder / "extra")
    with pytest.warns(Note, match="beasts/test is taken as the test split of .*beasts/extra is not used"):
        assert_same_pack(pack_source(str(folder), name="same"), plain)
    shutil.rmtree(folder / "test")
    with pytest.raises(
        UserError, match=r"has no folder test or val; if .*extra is its test split, call it test"
    ) as error:
        pack_source(str(folder))
    assert "--holdout" not in str(error.value)
    with pytest.warns(Note, match="beasts/train is taken as the split of .*beasts/extra is not used"):
        assert len(pack_source(str(folder), holdout=0.3).train_labels) == 6


@pytest.mark.parametrize("name", ["val/cow", "Validation/whale", "valid"])
def test_a_validation_split_beside_a_test_split_is_told_whatever_is_in_it(name, tmp_path):
    folder = write_folder(tmp_path / "beasts")
    write_images(folder / name, np.zeros((1, 8, 8, 3), dtype=np.uint8), ["0.png"])
    (folder / "annotations").mkdir()
    with pytest.warns(Note, match=rf"beasts/test is taken as .*; .*{name.split('/')[0]} is not used$"):
        pack_source(str(folder))


def test_classes_beside_a_class_called_train_are_not_dropped_in_silence(tmp_path):
    folder = write_single_folder(tmp_path / "vehicles", {"train/steam": 2, "train/electric": 2, "bus": 2, "car": 2})
    with pytest.warns(Note, match=r"vehicles/train is taken as the split of .*/bus and .*/car are not used"):
        assert pack_source(str(folder), holdout=0.5).class_names == ("electric", "steam")


def test_a_class_called_test_is_refused_with_the_way_out(tmp_path):
    folder = write_single_folder(tmp_path / "study", {"control": 2, "test": 2})
    with pytest.raises(
        UserError, match=r"study has a test split, .*test, and no folder train; .*; if test is a class,"
    ):
        pack_source(str(folder), holdout=0.5)


def test_two_folders_of_one_split_are_refused(tmp_path):
    folder = write_folder(tmp_path / "beasts")
    shutil.copytree(folder / "test", folder / "Testing")
    with pytest.raises(UserError, match="has Testing and test, two test splits; keep one"):
        pack_source(str(folder))


@pytest.mark.parametrize("names", [("my_train", "my_test"), ("train2017", "val2017"), ("trainset", "Evaluation")])
@pytest.mark.parametrize("holdout", [None, 0.5])
def test_splits_under_other_names_do_not_become_classes(names, holdout, tmp_path):
    folder = write_folder(tmp_path / "beasts")
    for old, new in zip(("train", "test"), names, strict=True):
        (folder / old).rename(folder / new)
    with pytest.raises(UserError) as error:
        pack_source(str(folder), holdout=holdout)
    assert_is_remedy(error, "look like splits, not classes; call them train and test")
    assert "--holdout" not in str(error.value)


# --- Hold-out


def write_single_folder(folder, counts, prefix="", seed=3):
    """Write FOLDER/CLASS/*.png with `counts` different images of each class."""
    generator = np.random.default_rng(seed)
    for name, count in counts.items():
        images = generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        write_images(folder / name, images, [f"{prefix}{number * 7919 % 104729}.png" for number in range(count)])
    return folder


def contents(images):
    return [image.numpy().tobytes() for image in images]


def test_holding_out_is_stratified_and_keyed_by_pixels(tmp_path):
    counts = {"ant": 40, "bee": 25, "cow": 4}
    pack = pack_source(str(write_single_folder(tmp_path / "one", counts)), name="same", holdout=0.2)
    assert pack.test_labels.bincount().tolist() == [8, 5, 1]
    assert pack.train_labels.bincount().tolist() == [32, 20, 3]
    held = [sha256(content).digest() for content in contents(pack.test_images[pack.test_labels == 0])]
    kept = [sha256(content).digest() for content in contents(pack.train_images[pack.train_labels == 0])]
    assert max(held) < min(kept)
    renamed = write_single_folder(tmp_path / "two" / "train", counts, prefix="other-")
    assert_same_pack(pack_source(str(renamed.parent), name="same", holdout=0.2), pack)


def test_each_side_keeps_an_image(tmp_path):
    folder = write_single_folder(tmp_path / "beasts", {"ant": 2, "bee": 3})
    for share, held in ((0.01, [1, 1]), (0.99, [1, 2])):
        assert pack_source(str(folder), holdout=share).test_labels.bincount().tolist() == held


def test_equal_images_stay_on_one_side(tmp_path):
    folder = write_single_folder(tmp_path / "beasts", {"ant": 30, "bee": 30})
    for number, image in enumerate(sorted((folder / "ant").iterdir())[:20]):
        shutil.copy(image, folder / "ant" / f"copy {number}.png")
        shutil.copy(image, folder / "bee" / f"copy {number}.png")
    pack = pack_source(str(folder), holdout=0.3)
    assert len(pack.train_labels) + len(pack.test_labels) == 100
    assert not set(contents(pack.train_images)) & set(contents(pack.test_images))


@pytest.mark.parametrize("counts", [{"ant": 1, "bee": 9}, {"ant": 9, "bee": 1}])
def test_class_with_nothing_to_hold_out(tmp_path, counts):
    folder = write_single_folder(tmp_path / "beasts", counts)
    few = min(counts, key=counts.get)
    shutil.copy(next((folder / few).iterdir()), folder / few / "copy.png")
    with pytest.raises(UserError, match=f"class {few} has too few different images"):
        pack_source(str(folder), holdout=0.5)


def test_folder_without_a_test_split_needs_holdout(tmp_path):
    single = write_single_folder(tmp_path / "single", {"ant": 3, "bee": 3})
    shutil.copytree(single, tmp_path / "half" / "train")
    for folder in (single, tmp_path / "half"):
        for load in (pack_source, load_data):
            with pytest.raises(UserError) as error:
                load(str(folder))
            assert_is_remedy(error, f"`speedyresnet data pack {folder} --holdout 0.1 --name NAME`")


def test_holdout_where_there_is_a_test_split(tmp_path):
    folder = write_folder(tmp_path / "beasts")
    for source in (str(folder), "cifar100", "synthetic"):
        with pytest.raises(UserError, match=r"has a test split.*; leave out --holdout"):
            pack_source(source, holdout=0.1)


def test_a_class_may_be_called_train(tmp_path):
    folder = write_single_folder(tmp_path / "vehicles", {"car": 5, "train": 5})
    assert pack_source(str(folder), holdout=0.2).class_names == ("car", "train")


def test_exif_orientation_is_applied(tmp_path):
    folder = write_folder(tmp_path / "turned")
    half_white = np.zeros((8, 8, 3), dtype=np.uint8)
    half_white[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: to be shown turned clockwise by 90 degrees
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
    with pytest.raises(UserError, match="empty has no class folders; expected FOLDER/train/CLASS"):
        pack_source(str(tmp_path / "empty"))
    (tmp_path / "empty" / "test").mkdir()
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
    one_too_high = tmp_path / "above"
    write_folder(one_too_high / "beasts")
    with pytest.raises(UserError, match="above has one class only, beasts; expected"):
        pack_source(str(one_too_high), holdout=0.2)


@pytest.mark.parametrize("damage", ["text", "truncated", "dangling link"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_unreadable_image_is_named(tmp_path, damage, suffix):
    folder = write_folder(tmp_path / "beasts")
    bad = folder / "test" / "bee" / f"bad.{suffix}"
    if damage == "dangling link":
        bad.symlink_to("nowhere")
    elif damage == "text":
        bad.write_text("not an image")
    else:
        noise = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(bad)
        bad.write_bytes(bad.read_bytes()[: bad.stat().st_size * 2 // 3])
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
