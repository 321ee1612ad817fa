import json
import os
import warnings
from hashlib import sha256

import numpy as np
import pytest
import torch
from data_checks import CLASSES, assert_is_remedy, assert_same_pack, random_arrays, write_folder
from torch import nn

from speedyresnet.engine import data, synthetic
from speedyresnet.engine.data import default_data, load_data, pack_path, pack_source
from speedyresnet.engine.errors import Note, UserError
from speedyresnet.engine.files import write_atomically
from speedyresnet.engine.pack import make_pack
from speedyresnet.engine.pack_file import save_pack
from speedyresnet.engine.synthetic import make_synthetic


@pytest.fixture
def pack():
    return make_pack("small", CLASSES, *random_arrays())


# --- Packs


def test_mean_and_std_are_numpy_s(pack):
    scaled = pack.train_images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(pack.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(pack.std, scaled.std(axis=(0, 1, 2)), rtol=1e-13)


def test_sums_do_not_overflow():
    white = np.full((1000, 4, 4, 3), 255, dtype=np.uint8)
    labels = np.zeros(1000, dtype=np.int64)
    pack = make_pack("white", ["only"], white, labels, white, labels)
    assert pack.mean == (1.0, 1.0, 1.0)
    assert pack.std == (0.0, 0.0, 0.0)


def test_properties(pack):
    assert (pack.num_classes, pack.image_size, pack.channels) == (3, (6, 5), 3)
    assert pack.train_images.dtype == torch.uint8
    assert pack.train_labels.dtype == torch.int64


def test_order_of_the_source_does_not_matter(pack):
    images, labels, test_images, test_labels = random_arrays()
    order = np.random.default_rng(1).permutation(len(images))
    other = make_pack("small", CLASSES, images[order], labels[order], test_images, test_labels)
    assert_same_pack(pack, other)


def test_images_stand_in_the_order_of_their_hashes(pack):
    for split in ("train", "test"):
        pixels, labels = getattr(pack, f"{split}_images").numpy(), getattr(pack, f"{split}_labels").tolist()
        content = [image.tobytes() + label.to_bytes(8, "little") for image, label in zip(pixels, labels, strict=True)]
        assert content == sorted(content, key=lambda each: sha256(each).digest())


def test_strides_of_the_source_do_not_matter(pack):
    images, *others = random_arrays()
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    other = make_pack("small", CLASSES, channels_first.transpose(0, 2, 3, 1), *others)
    assert other.train_images.is_contiguous()
    assert_same_pack(other, pack)


def test_images_keep_their_labels(pack):
    images, labels, *_ = random_arrays()
    expected = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    found = {
        image.numpy().tobytes(): int(label) for image, label in zip(pack.train_images, pack.train_labels, strict=True)
    }
    assert found == expected


def test_classes_are_mixed():
    pack = make_pack("mixed", CLASSES, *random_arrays(counts=(3000, 30)))
    shares = pack.train_labels[:300].bincount(minlength=3) / 300
    assert shares.min() > 0.2


@pytest.mark.parametrize("changed", ["pixel", "label", "test label", "class name", "shape"])
def test_checksum_covers_everything(pack, changed):
    arrays = list(random_arrays())
    names = list(CLASSES)
    if changed == "pixel":
        arrays[2][3, 1, 1, 1] ^= 1
    elif changed == "label":
        arrays[1][4] = (arrays[1][4] + 1) % 3
    elif changed == "test label":
        arrays[3][4] = (arrays[3][4] + 1) % 3
    elif changed == "class name":
        names[1] = "wasp"
    else:
        arrays[0], arrays[2] = (array.reshape(-1, 5, 6, 3) for array in (arrays[0], arrays[2]))
    assert make_pack("small", names, *arrays).sha256 != pack.sha256


def test_checksum_is_pinned(pack):
    """A change of the canonical order or of the checksum would invalidate every record that stores one."""
    assert pack.sha256 == "7052d305f8ca8a1d8838ba1394ced2208663125b911272c858667d76db6e58bf"


def test_make_pack_refuses_labels_out_of_range():
    images, labels, test_images, test_labels = random_arrays()
    with pytest.raises(UserError, match=r"train labels are not all in 0\.\.1"):
        make_pack("small", CLASSES[:2], images, labels, test_images, test_labels)


# --- Files


def test_failing_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("old")

    def half_write(temporary):
        temporary.write_text("ne")
        assert temporary.parent == path.parent
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_atomically(path, half_write)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept.txt"]
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["kept.txt"]


def test_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("old")
    seen = []
    write_atomically(path, lambda temporary: seen.append((temporary.write_text("new"), path.read_text())))
    assert seen == [(3, "old")]


# --- Names


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SPEEDYRESNET_CACHE", str(tmp_path / "chosen"))
    assert pack_path("a.b_c-1") == tmp_path / "chosen" / "packs" / "a.b_c-1.safetensors"
    monkeypatch.delenv("SPEEDYRESNET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert data.cache_folder() == tmp_path / "shared" / "speedyresnet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data.cache_folder() == tmp_path / "home" / ".cache" / "speedyresnet"


@pytest.mark.parametrize("name", ["", "Upper", "../escape", "a b", "a/b", "ü", "line\n"])
def test_invalid_names(name):
    with pytest.raises(UserError, match="is no pack name"):
        pack_path(name)


def test_load_data_takes_names_files_and_folders(pack, tmp_path, cache):
    folder = write_folder(tmp_path / "beasts")
    save_pack(pack, pack_path("small"))
    save_pack(pack, tmp_path / "elsewhere.safetensors")
    assert_same_pack(load_data("small"), pack)
    assert_same_pack(load_data(tmp_path / "elsewhere.safetensors"), pack)
    assert_same_pack(load_data(str(folder)), pack_source(str(folder)))


def test_a_cached_name_wins_over_a_folder_and_a_folder_over_the_download(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "download", lambda *_, **__: pytest.fail("downloads"))
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "cifar10")
    from_folder = pack_source("./cifar10")
    with pytest.warns(Note):
        assert load_data("cifar10").sha256 == pack_source("cifar10").sha256 == from_folder.sha256 != pack.sha256
    save_pack(pack, pack_path("cifar10"))
    with pytest.warns(Note):
        assert load_data("cifar10").sha256 == pack.sha256
    assert load_data("./cifar10").sha256 == from_folder.sha256


def test_which_of_two_things_of_one_name_was_taken_is_told(pack, tmp_path, monkeypatch, speedyresnet):
    monkeypatch.setattr(data, "download", lambda *_, **__: pytest.fail("downloads"))
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "cifar10")
    for load in (load_data, pack_source):
        with pytest.warns(Note, match=rf"cifar10 is taken from the folder {tmp_path / 'cifar10'}, not from a download"):
            load("cifar10")
    save_pack(pack, pack_path("cifar10"))
    told = (
        rf"cifar10 is taken from the cached pack {pack_path('cifar10')}, not from {tmp_path / 'cifar10'}: for that give"
    )
    for load in (load_data, lambda name: default_data(name, None, pytest.fail)):
        with pytest.warns(Note, match=told):
            assert load("cifar10").sha256 == pack.sha256
    done = speedyresnet("data", "info", "cifar10", "--json")
    assert (done.returncode, json.loads(done.stdout)["sha256"]) == (0, pack.sha256)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"speedyresnet: {told}")
    assert line.endswith(" give ./cifar10, or pack it again with `speedyresnet data pack ./cifar10`")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data("./cifar10")
        monkeypatch.chdir(tmp_path.parent)
        load_data("cifar10")


def test_unknown_data_names_the_nearest(pack):
    save_pack(pack, pack_path("flowers17"))
    with pytest.raises(UserError) as error:
        load_data("flower17")
    assert_is_remedy(error, "flower17", "nearest: flowers17", "speedyresnet data pack FOLDER --name flower17")


def test_unknown_source_lists_the_possibilities(tmp_path):
    with pytest.raises(UserError) as error:
        pack_source(str(tmp_path / "nowhere"))
    assert_is_remedy(error, "nowhere", "cifar10", "synthetic", "folder")


def test_other_data_cannot_pass_for_synthetic(tmp_path):
    with pytest.raises(UserError, match="kept for drawn images"):
        pack_source(str(write_folder(tmp_path / "beasts")), name="synthetic")
    with pytest.raises(UserError, match="kept for drawn images"):
        pack_source(str(write_folder(tmp_path / "synthetic")))


def test_bad_arguments_are_refused_before_the_work(tmp_path):
    folder = write_folder(tmp_path / "beasts")
    (folder / "train" / "ant" / "0.png").write_text("never read")
    with pytest.raises(UserError, match="is no pack name"):
        pack_source(str(folder), name="Bad Name")
    for size in (0, -1, 5000):
        with pytest.raises(UserError, match=f"--size {size} is no image size; give 1 to 4096"):
            pack_source(str(folder), size=size)
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(UserError, match=f"--holdout {share} is no share"):
            pack_source(str(folder), holdout=share)


# --- Synthetic data


@pytest.fixture(scope="module")
def drawn():
    return make_synthetic(train_images=6000, test_images=1000)


@pytest.fixture
def one_thread():
    """Two threads on two busy cores would wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs(pack, split):
    images = getattr(pack, f"{split}_images").permute(0, 3, 1, 2).float() / 255
    return (images - 0.5) / 0.25, getattr(pack, f"{split}_labels")


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model.eval()(images).argmax(dim=1) == labels).float().mean().item()


def train_convnet(images, labels, epochs, batch_size=50):
    """Return a convnet of 28,000 weights, trained on batches of which half are flipped."""
    torch.manual_seed(0)
    layers = []
    for before, after in ((3, 8), (8, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    steps = len(images) // batch_size * epochs
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(batch_size):
            pixels = images[batch].flip(3) if torch.rand(()) < 0.5 else images[batch]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return model


def test_synthetic_is_reproducible():
    first, again, other = (make_synthetic(60, 20, size=16, seed=seed) for seed in (3, 3, 4))
    assert_same_pack(first, again)
    assert first.sha256 != other.sha256
    assert first.name == "synthetic"
    assert first.image_size == (16, 16)


def test_synthetic_is_the_same_on_every_machine():
    assert make_synthetic(60, 20).sha256 == "993a1078a0cd1f738cf821837f33a26fb1d49fafd9e840a79e354502cf567e00"


def test_synthetic_does_not_depend_on_the_chunk_size(monkeypatch):
    whole = make_synthetic(100, 30)
    monkeypatch.setattr(synthetic, "PIXELS_PER_CHUNK", 3 * 32 * 32)
    assert_same_pack(make_synthetic(100, 30), whole)


def test_synthetic_classes_are_balanced_and_images_distinct(drawn):
    assert drawn.train_labels.bincount().tolist() == [600] * 10
    assert drawn.test_labels.bincount().tolist() == [100] * 10
    images = torch.cat([drawn.train_images, drawn.test_images])
    assert len({image.numpy().tobytes() for image in images}) == 7000
    equal_counts = make_synthetic(100, 100)
    assert not torch.equal(equal_counts.train_images, equal_counts.test_images)


def test_synthetic_classes_are_their_own_mirror_images(drawn):
    """Outlines of one half of a class differ from the other half as much as from its mirror image."""
    images = drawn.train_images.float().mean(dim=3)
    outlines = (images - images.mean(dim=(1, 2), keepdim=True)).abs()
    for label in range(10):
        one, other = (half.mean(dim=0) for half in outlines[drawn.train_labels == label].chunk(2))
        plain, mirrored = ((one - half).abs().mean() for half in (other, other.flip(1)))
        assert mirrored < 1.15 * plain


def test_synthetic_at_another_size_is_still_called_synthetic():
    pack = pack_source("synthetic", name="shapes", size=8)
    assert (pack.name, pack.image_size, len(pack.train_images)) == ("synthetic", (8, 8), 20_000)


@pytest.mark.exhaustive
def test_convnet_learns_synthetic(drawn, one_thread):
    model = train_convnet(*inputs(drawn, "train"), epochs=8)
    images, labels = inputs(drawn, "test")
    assert 0.85 < accuracy(model, images, labels) < 0.995
    assert accuracy(model, images.flip(3), labels) > 0.85
    shifted = nn.functional.pad(images, (3, -3, -2, 2), mode="replicate")
    assert accuracy(model, shifted, labels) > 0.8


def test_convnet_learns_nothing_from_shuffled_labels(drawn, one_thread):
    images, labels = inputs(drawn, "train")
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    model = train_convnet(images, shuffled, epochs=2)
    assert accuracy(model, *inputs(drawn, "test")) < 0.16


def test_logistic_regression_does_not_learn_synthetic(drawn, one_thread):
    images, labels = inputs(drawn, "train")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    scores = []
    for step in range(1, 101):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[:4000]), labels[:4000]).backward()
        optimizer.step()
        if step % 20 == 0:
            scores.append(accuracy(model, *inputs(drawn, "test")))
    assert accuracy(model, images[:4000], labels[:4000]) > 0.5
    assert max(scores) < 0.4
