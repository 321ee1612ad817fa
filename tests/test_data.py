import contextlib
import http.server
import io
import os
import pickle
import shutil
import socket
import tarfile
import threading
import time
from hashlib import md5, sha256

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import CIFAR10

from speedyresnet.engine import data, synthetic
from speedyresnet.engine.data import (
    DownloadError,
    default_data,
    is_reachable,
    load_data,
    make_pack,
    pack_path,
    pack_source,
)
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.files import write_atomically
from speedyresnet.engine.pack_file import read_pack, save_pack
from speedyresnet.engine.synthetic import make_synthetic

CLASSES = ("ant", "bee", "cow")


def random_arrays(seed=0, counts=(30, 12), shape=(6, 5, 3), classes=3):
    generator = np.random.default_rng(seed)
    for count in counts:
        yield generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        yield np.arange(count) % classes


@pytest.fixture
def pack():
    return make_pack("small", CLASSES, *random_arrays())


def write_images(folder, images, file_names):
    folder.mkdir(parents=True)
    for image, file_name in zip(images, file_names, strict=True):
        Image.fromarray(image).save(folder / file_name)


def write_folder(folder, classes=CLASSES, test="test", prefix="", backwards=False, size=8):
    """3 train and 2 test images of each class, as an image folder."""
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
    for key in data.DTYPES:
        assert torch.equal(getattr(first, key), getattr(second, key)), key
    for key in ("name", "class_names", "sha256", "mean", "std"):
        assert getattr(first, key) == getattr(second, key), key


def assert_is_remedy(error, *words):
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


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
    """A change of the canonical order or of the checksum would orphan every record that names one."""
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


# --- Image folders


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
    monkeypatch.setattr(data, "IMAGES_PER_TASK", 4)
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
    monkeypatch.setattr(data, "pack_from_torchvision_cifar10", lambda *_, **__: pytest.fail("downloads"))
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "cifar10")
    from_folder = pack_source("./cifar10")
    assert load_data("cifar10").sha256 == pack_source("cifar10").sha256 == from_folder.sha256 != pack.sha256
    save_pack(pack, pack_path("cifar10"))
    assert load_data("cifar10").sha256 == pack.sha256
    assert load_data("./cifar10").sha256 == from_folder.sha256


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
    with pytest.raises(UserError, match="--size 0"):
        pack_source(str(folder), size=0)


# --- CIFAR-10 and its absence


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content`; stops half-way for ever where `server.stalls`."""

    def do_HEAD(self):
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        half = len(self.server.content) // 2
        with contextlib.suppress(ConnectionError):
            self.wfile.write(self.server.content[:half])
            if self.server.stalls:
                self.wfile.flush()
                self.server.released.wait(30)
            self.wfile.write(self.server.content[half:])

    def log_message(self, *_):
        pass


@pytest.fixture
def web_server(monkeypatch):
    """A local web server that CIFAR10.url points at."""
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.content = 200, b"0" * 1000
    server.stalls, server.released = False, threading.Event()
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def silent_host(monkeypatch):
    """CIFAR10.url points at a socket that takes connections and never says a word."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        monkeypatch.setattr(CIFAR10, "url", url)
        yield url


@pytest.fixture
def closed_port(monkeypatch):
    """CIFAR10.url points at a port where nobody listens."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
    monkeypatch.setattr(CIFAR10, "url", url)
    return url


@pytest.fixture
def few_synthetic_images(monkeypatch):
    monkeypatch.setattr(synthetic, "make_synthetic", lambda **kw: make_synthetic(train_images=50, test_images=20, **kw))


@pytest.fixture
def small_cifar10(monkeypatch):
    """Content of an archive with CIFAR-10's layout and 4 images a batch, which torchvision is told to expect."""
    generator = np.random.default_rng(2)
    members = {"batches.meta": {"label_names": list(data.CIFAR10_CLASSES)}}
    for number, name in enumerate([f"data_batch_{index}" for index in range(1, 6)] + ["test_batch"]):
        pixels = generator.integers(0, 256, (4, 3072), dtype=np.uint8)
        members[name] = {"data": pixels, "labels": [number, 2, 5, 9]}
    buffer = io.BytesIO()
    sums = {}
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            raw = pickle.dumps(content)
            sums[name] = md5(raw).hexdigest()
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in list(members)[1:6]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(buffer.getvalue()).hexdigest())
    return buffer.getvalue(), members


def test_cifar10_is_downloaded_packed_and_cached(web_server, small_cifar10, monkeypatch, capsys):
    web_server.content, members = small_cifar10
    warnings = []
    pack = default_data(None, warnings.append)
    assert (pack.name, pack.class_names) == ("cifar10", data.CIFAR10_CLASSES)
    assert (len(pack.train_images), len(pack.test_images)) == (20, 4)
    expected = members["test_batch"]["data"].reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)
    last = torch.from_numpy(expected[3].copy())
    place = (pack.test_images == last).flatten(1).all(1).nonzero().item()
    assert pack.test_labels[place] == 9
    assert_same_pack(read_pack(pack_path("cifar10")), pack)
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/not-asked-again")
    assert_same_pack(default_data(None, warnings.append), pack)
    assert_same_pack(load_data("cifar10"), pack)
    resized = pack_source("cifar10", size=16)
    assert (resized.name, resized.image_size) == ("cifar10-16", (16, 16))
    assert warnings == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kept", ["archive", "files"])
def test_downloaded_cifar10_needs_no_network(cache, small_cifar10, closed_port, kept):
    archive, _ = small_cifar10
    downloads = cache / "downloads"
    downloads.mkdir(parents=True)
    (downloads / CIFAR10.filename).write_bytes(archive)
    if kept == "files":
        with tarfile.open(downloads / CIFAR10.filename) as opened:
            opened.extractall(downloads, filter="data")
        (downloads / CIFAR10.filename).unlink()
    assert len(load_data("cifar10").train_images) == 20


def test_half_an_archive_does_not_pass_for_a_download(cache, small_cifar10, closed_port):
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / CIFAR10.filename).write_bytes(small_cifar10[0][:500])
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1 does not answer"):
        load_data("cifar10")


def test_wrong_download_is_refused(web_server, small_cifar10):
    web_server.content = small_cifar10[0][:-1] + b"?"
    with pytest.raises(DownloadError) as error:
        load_data("cifar10")
    assert_is_remedy(error, "cannot download CIFAR-10", "speedyresnet data pack FOLDER --name cifar10")
    assert not pack_path("cifar10").exists()


def test_stalled_download_fails_and_restores_the_time_limit(web_server, monkeypatch):
    monkeypatch.setattr(data, "STALL_SECONDS", 0.5)
    web_server.stalls = True
    socket.setdefaulttimeout(77.0)
    started = time.monotonic()
    try:
        with pytest.raises(DownloadError, match="timed out"):
            load_data("cifar10")
        assert socket.getdefaulttimeout() == 77.0
    finally:
        socket.setdefaulttimeout(None)
    assert time.monotonic() - started < 5


def test_offline_default_is_synthetic_with_one_warning(closed_port, few_synthetic_images):
    warnings = []
    started = time.monotonic()
    pack = default_data(None, warnings.append)
    assert time.monotonic() - started < 5
    assert pack.name == "synthetic"
    (warning,) = warnings
    assert "\n" not in warning
    assert "synthetic" in warning
    assert "speedyresnet data pack FOLDER --name cifar10" in warning
    assert not pack_path("cifar10").exists()


def test_silent_host_does_not_hold_up_the_default(silent_host, few_synthetic_images):
    warnings = []
    started = time.monotonic()
    assert default_data(None, warnings.append).name == "synthetic"
    assert time.monotonic() - started < 15
    assert len(warnings) == 1


def test_name_lookup_that_hangs_is_given_up(monkeypatch):
    released = threading.Event()

    def hang(*_, **__):
        released.wait(20)
        raise OSError("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    started = time.monotonic()
    assert not is_reachable("http://example.org/", 0.5)
    assert time.monotonic() - started < 3
    released.set()


def test_probe_and_one_stall_fit_into_twenty_seconds():
    assert data.PROBE_SECONDS <= 15
    assert data.PROBE_SECONDS + data.STALL_SECONDS < 20


def test_host_that_answers_is_reachable(web_server, closed_port):
    assert is_reachable(f"http://127.0.0.1:{web_server.server_port}/", 5)
    web_server.status = 404
    assert is_reachable(f"http://127.0.0.1:{web_server.server_port}/", 5)
    assert not is_reachable(closed_port, 5)


# --- Synthetic data


@pytest.fixture(scope="module")
def drawn():
    return make_synthetic(train_images=6000, test_images=1000)


@pytest.fixture
def one_thread():
    """Two threads on two busy cores wait for each other longer than they compute."""
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
    """A convnet of 28,000 weights, trained on batches that are flipped half of the time."""
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
    """The outlines of one half of a class differ from the mirrored other half as much as from the other half."""
    images = drawn.train_images.float().mean(dim=3)
    outlines = (images - images.mean(dim=(1, 2), keepdim=True)).abs()
    for label in range(10):
        one, other = (half.mean(dim=0) for half in outlines[drawn.train_labels == label].chunk(2))
        plain, mirrored = ((one - half).abs().mean() for half in (other, other.flip(1)))
        assert mirrored < 1.15 * plain


def test_synthetic_at_another_size_is_still_called_synthetic():
    pack = pack_source("synthetic", name="shapes", size=8)
    assert (pack.name, pack.image_size, len(pack.train_images)) == ("synthetic", (8, 8), 20_000)


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
