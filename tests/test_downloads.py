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
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from data_checks import assert_is_remedy, assert_same_pack
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, Imagenette

from speedyresnet.engine import data, downloads
from speedyresnet.engine.data import default_data, load_data, pack_path, pack_source
from speedyresnet.engine.downloads import DownloadError, is_reachable
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.pack_file import read_pack
from speedyresnet.engine.synthetic import make_synthetic

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Handler(http.server.BaseHTTPRequestHandler):
    """Handler that serves `server.content`, or stops halfway forever if `server.stalls`."""

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


def come_from(monkeypatch, site):
    """Make torchvision look for its data sets at `site`."""
    monkeypatch.setattr(CIFAR10, "url", f"{site}/cifar-10-python.tar.gz")
    monkeypatch.setattr(CIFAR100, "url", f"{site}/cifar-100-python.tar.gz")
    _, checksum = Imagenette._ARCHIVES["160px"]
    monkeypatch.setitem(Imagenette._ARCHIVES, "160px", (f"{site}/imagenette2-160.tgz", checksum))


@pytest.fixture
def web_server(monkeypatch):
    """Yield a local web server that every data set comes from."""
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.content = 200, b"0" * 1000
    server.stalls, server.released = False, threading.Event()
    come_from(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def silent_host(monkeypatch):
    """Point CIFAR10.url at a socket that accepts connections and never answers."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        monkeypatch.setattr(CIFAR10, "url", url)
        yield url


@pytest.fixture
def closed_port(monkeypatch):
    """Make every data set come from a port without a listener."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    come_from(monkeypatch, url)
    return url


@pytest.fixture
def few_synthetic_images(monkeypatch):
    monkeypatch.setattr(data, "make_synthetic", lambda **kw: make_synthetic(train_images=50, test_images=20, **kw))


def archived(files):
    """Return a tar.gz of {name: bytes}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def small_archive(monkeypatch, dataset, members):
    """Return the content of an archive with these members; torchvision then expects it for `dataset`."""
    raw = {name: pickle.dumps(content) for name, content in members.items()}
    sums = {name: md5(content).hexdigest() for name, content in raw.items()}
    content = archived({f"{dataset.base_folder}/{name}": each for name, each in raw.items()})
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(dataset, part, [[name, sums[name]] for name, _ in getattr(dataset, part)])
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": sums[dataset.meta["filename"]]})
    monkeypatch.setattr(dataset, "tgz_md5", md5(content).hexdigest())
    return content


@pytest.fixture
def small_cifar10(monkeypatch):
    """Return an archive with CIFAR-10's layout and 4 images per batch, and its members."""
    generator = np.random.default_rng(2)
    members = {"batches.meta": {"label_names": list(CIFAR10_CLASSES)}}
    for number, name in enumerate([f"data_batch_{index}" for index in range(1, 6)] + ["test_batch"]):
        pixels = generator.integers(0, 256, (4, 3072), dtype=np.uint8)
        members[name] = {"data": pixels, "labels": [number, 2, 5, 9]}
    return small_archive(monkeypatch, CIFAR10, members), members


@pytest.fixture
def small_cifar100(monkeypatch):
    """Return an archive with CIFAR-100's layout, an image of each fine class and split, and its members."""
    generator = np.random.default_rng(2)
    members = {"meta": {"fine_label_names": [f"class {k:03d}" for k in range(100)], "coarse_label_names": ["all"]}}
    for name in ("train", "test"):
        pixels = generator.integers(0, 256, (100, 3072), dtype=np.uint8)
        members[name] = {"data": pixels, "fine_labels": list(range(100)), "coarse_labels": [0] * 100}
    return small_archive(monkeypatch, CIFAR100, members), members


@pytest.fixture
def small_imagenette(monkeypatch):
    """Return an archive with Imagenette's layout: for each class, an image of its own grey value in both splits."""
    files = {"imagenette2-160/noisy_imagenette.csv": b"path"}
    for grey, number in enumerate(sorted(Imagenette._WNID_TO_CLASS)):
        buffer = io.BytesIO()
        Image.new("RGB", (200 + grey, 160), (20 * grey,) * 3).save(buffer, "JPEG", quality=100)
        files |= {f"imagenette2-160/{split}/{number}/{number}_1.JPEG": buffer.getvalue() for split in ("train", "val")}
    content = archived(files)
    url, _ = Imagenette._ARCHIVES["160px"]
    monkeypatch.setitem(Imagenette._ARCHIVES, "160px", (url, md5(content).hexdigest()))
    return content


def test_cifar10_is_downloaded_packed_and_cached(web_server, small_cifar10, monkeypatch, capsys):
    web_server.content, members = small_cifar10
    warnings = []
    pack = default_data("cifar10", None, warnings.append)
    assert (pack.name, pack.class_names) == ("cifar10", CIFAR10_CLASSES)
    assert (len(pack.train_images), len(pack.test_images)) == (20, 4)
    expected = members["test_batch"]["data"].reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)
    last = torch.from_numpy(expected[3].copy())
    place = (pack.test_images == last).flatten(1).all(1).nonzero().item()
    assert pack.test_labels[place] == 9
    assert_same_pack(read_pack(pack_path("cifar10")), pack)
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/not-asked-again")
    assert_same_pack(default_data("cifar10", None, warnings.append), pack)
    assert_same_pack(load_data("cifar10"), pack)
    resized = pack_source("cifar10", size=16)
    assert (resized.name, resized.image_size) == ("cifar10-16", (16, 16))
    assert warnings == []
    assert capsys.readouterr().out == ""


def test_cifar100_has_its_fine_classes(web_server, small_cifar100, capsys):
    web_server.content, members = small_cifar100
    pack = load_data("CIFAR100")
    assert (pack.name, pack.class_names) == ("cifar100", tuple(members["meta"]["fine_label_names"]))
    assert pack.test_labels.bincount().tolist() == [1] * 100
    expected = members["test"]["data"][37].reshape(3, 32, 32).transpose(1, 2, 0)
    assert torch.equal(pack.test_images[pack.test_labels == 37][0], torch.from_numpy(expected.copy()))
    assert_same_pack(read_pack(pack_path("cifar100")), pack)
    assert capsys.readouterr().out == ""


def test_imagenette_is_resized_and_has_names_of_words(web_server, small_imagenette, cache, monkeypatch, capsys):
    web_server.content = small_imagenette
    pack = load_data("imagenette")
    assert (pack.name, pack.image_size, pack.channels) == ("imagenette", (64, 64), 3)
    assert (pack.class_names[0], pack.class_names[2], pack.class_names[9]) == ("tench", "cassette player", "parachute")
    assert [int(pack.test_images[pack.test_labels == k].float().mean().round()) for k in range(10)] == list(
        range(0, 200, 20)
    )
    assert sorted(os.listdir(cache / "downloads")) == [".lock", "imagenette2-160.tgz"]
    assert_same_pack(read_pack(pack_path("imagenette")), pack)
    come_from(monkeypatch, "http://127.0.0.1:9")
    larger = pack_source("imagenette", size=96)
    assert (larger.name, larger.image_size) == ("imagenette-96", (96, 96))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", downloads.DOWNLOADS)
def test_offline_says_what_to_do(closed_port, cache, name):
    started = time.monotonic()
    with pytest.raises(DownloadError) as error:
        load_data(name)
    assert time.monotonic() - started < 5
    url, _ = downloads.DOWNLOADS[name].archive()
    assert_is_remedy(error, "does not answer", f"put {url} into {cache / 'downloads'}", f"FOLDER --name {name}`")


@pytest.mark.parametrize("name", downloads.DOWNLOADS)
@pytest.mark.parametrize("part", ["", "packs", "downloads"])
def test_cache_that_cannot_be_written_is_found_before_the_download(web_server, cache, name, part):
    web_server.status = 500  # a request would be a different error
    cache.parent.mkdir(exist_ok=True)
    if part:
        cache.mkdir()
    (cache / part).write_text("in the way")
    with pytest.raises(UserError) as error:
        load_data(name)
    assert_is_remedy(error, "cannot write", str(cache / part), "SPEEDYRESNET_CACHE=FOLDER")
    assert (cache / part).read_text() == "in the way"


@pytest.mark.parametrize("kept", ["archive", "files"])
def test_downloaded_cifar10_needs_no_network(cache, small_cifar10, closed_port, kept):
    archive, _ = small_cifar10
    folder = cache / "downloads"
    folder.mkdir(parents=True)
    (folder / CIFAR10.filename).write_bytes(archive)
    if kept == "files":
        with tarfile.open(folder / CIFAR10.filename) as opened:
            opened.extractall(folder, filter="data")
        (folder / CIFAR10.filename).unlink()
    assert len(load_data("cifar10").train_images) == 20


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenette"])
@pytest.mark.parametrize("content", [b"", b"half an archive", None])
def test_a_damaged_archive_is_called_so(cache, closed_port, name, content):
    url, _ = downloads.DOWNLOADS[name].archive()
    archive = cache / "downloads" / Path(url).name
    archive.parent.mkdir(parents=True)
    archive.mkdir() if content is None else archive.write_bytes(content)
    with pytest.raises(DownloadError) as error:
        load_data(name)
    assert_is_remedy(error, f"(127.0.0.1 does not answer, and {archive} is damaged: delete it); put {url} into")


@pytest.mark.parametrize("damage", ["cut", "folder", "file"])
def test_a_damaged_file_of_an_unpacked_archive_is_called_so(cache, small_cifar10, closed_port, damage):
    folder = cache / "downloads" / CIFAR10.base_folder
    folder.parent.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(small_cifar10[0])) as opened:
        opened.extractall(folder.parent, filter="data")
    damaged = folder / "data_batch_3"
    if damage == "cut":
        damaged.write_bytes(damaged.read_bytes()[:-1])
    elif damage == "folder":
        damaged.unlink()
        damaged.mkdir()
    else:
        shutil.rmtree(folder)
        folder.write_text("no folder")
        damaged = folder
    with pytest.raises(DownloadError) as error:
        load_data("cifar10")
    assert_is_remedy(error, f"(127.0.0.1 does not answer, and {damaged} is damaged: delete it)")


def test_an_archive_mends_what_was_unpacked_from_it(cache, small_cifar10, closed_port):
    folder = cache / "downloads"
    (folder / CIFAR10.base_folder).mkdir(parents=True)
    (folder / CIFAR10.filename).write_bytes(small_cifar10[0])
    (folder / CIFAR10.base_folder / "data_batch_3").write_text("damaged")
    assert len(load_data("cifar10").train_images) == 20


@pytest.mark.parametrize("content", [b"?", b""])
def test_wrong_download_is_refused(web_server, small_cifar10, cache, content):
    web_server.content = small_cifar10[0][:-1] + content
    with pytest.raises(DownloadError) as error:
        load_data("cifar10")
    archive = cache / "downloads" / CIFAR10.filename
    assert_is_remedy(error, "cannot download CIFAR-10", f"{archive} is damaged: delete it", "FOLDER --name cifar10")
    assert not pack_path("cifar10").exists()


def test_a_damaged_archive_is_downloaded_again(web_server, small_cifar10, cache):
    web_server.content = small_cifar10[0]
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / CIFAR10.filename).write_bytes(small_cifar10[0][:500])
    assert len(load_data("cifar10").train_images) == 20


@pytest.mark.parametrize("name", downloads.DOWNLOADS)
def test_a_folder_called_as_the_data_is_not_in_the_way(cache, closed_port, name):
    (cache / "downloads" / name).mkdir(parents=True)
    for load in (load_data, pack_source):
        with pytest.raises(DownloadError, match="does not answer"):
            load(name)


@pytest.mark.parametrize("place", ["downloads/.lock", "packs/cifar10.safetensors"])
def test_a_folder_where_a_file_belongs_is_to_be_deleted(cache, small_cifar10, place, monkeypatch, speedyresnet):
    monkeypatch.setattr(data, "download", lambda *_, **__: pytest.fail("downloads"))
    (cache / place).mkdir(parents=True)
    for arguments in (["data", "pack", "cifar10"], ["data", "info", "cifar10"]):
        done = speedyresnet(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert f"{cache / place} " in line
        assert "is a folder where a " in line
        assert "belongs; delete it" in line


def test_stalled_download_fails_and_restores_the_time_limit(web_server, monkeypatch):
    monkeypatch.setattr(downloads, "STALL_SECONDS", 0.5)
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
    pack = default_data("cifar10", None, warnings.append)
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
    assert default_data("cifar10", None, warnings.append).name == "synthetic"
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
    assert downloads.PROBE_SECONDS <= 15
    assert downloads.PROBE_SECONDS + downloads.STALL_SECONDS < 20


def test_host_that_answers_is_reachable(web_server, closed_port):
    assert is_reachable(f"http://127.0.0.1:{web_server.server_port}/", 5)
    web_server.status = 404
    assert is_reachable(f"http://127.0.0.1:{web_server.server_port}/", 5)
    assert not is_reachable(closed_port, 5)
