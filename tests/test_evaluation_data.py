"""What a model is evaluated on: images in its size, labels in its order, whatever the data set has."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from data_checks import CLASSES, random_arrays, write_folder, write_images
from PIL import Image

from speedyresnet.engine import UserError, evaluate, read_model, recipe
from speedyresnet.engine.data import pack_source
from speedyresnet.engine.errors import Note
from speedyresnet.engine.evaluation_data import Wanted, evaluation_data
from speedyresnet.engine.init import reset_parameters
from speedyresnet.engine.model_file import save_model
from speedyresnet.engine.nets import make_net
from speedyresnet.engine.pack import make_pack
from speedyresnet.engine.pack_file import save_pack

WANTED = Wanted(class_names=("cow", "ant", "bee"), channels=3, image_size=(8, 8))


def by_pixels(images, labels, class_names):
    """Class names by content of the image."""
    return {image.numpy().tobytes(): class_names[label] for image, label in zip(images, labels, strict=True)}


def of_pack(pack):
    return by_pixels(pack.test_images, pack.test_labels, pack.class_names)


def found(data, wanted=WANTED):
    return by_pixels(*evaluation_data(data, wanted), wanted.class_names)


@pytest.fixture
def beasts(tmp_path):
    return write_folder(tmp_path / "beasts")


def test_classes_are_matched_by_name(beasts):
    pack = pack_source(str(beasts))
    assert pack.class_names == ("ant", "bee", "cow")
    assert found(pack) == found(beasts) == of_pack(pack)


@pytest.mark.parametrize("name", ["test", "Val", "testing"])
def test_a_folder_needs_no_train_split(name, beasts, tmp_path):
    expected = of_pack(pack_source(str(beasts)))
    shutil.move(beasts / "test", tmp_path / "only" / name)
    assert found(tmp_path / "only") == expected
    assert found(str(tmp_path / "only" / name)) == expected


def test_the_train_split_is_not_read(beasts):
    expected = of_pack(pack_source(str(beasts)))
    (beasts / "train" / "ant" / "0.png").write_text("no image")
    assert found(beasts) == expected
    shutil.rmtree(beasts / "test")
    with pytest.raises(UserError, match=r"has a train split and no test split; give a folder test/CLASS"):
        evaluation_data(beasts, WANTED)


def test_a_validation_split_beside_a_test_split_is_not_used(beasts):
    expected = of_pack(pack_source(str(beasts)))
    write_images(beasts / "valid" / "ant", np.zeros((1, 8, 8, 3), dtype=np.uint8), ["0.png"])
    with pytest.warns(Note, match=r"test is taken as the test split of .*beasts; .*valid is not used"):
        assert found(beasts) == expected


def test_classes_without_images_are_told(beasts):
    shutil.rmtree(beasts / "test" / "bee")
    with pytest.warns(Note, match=r"test has no class bee: the accuracy is that of the other classes"):
        labels = evaluation_data(beasts, WANTED)[1]
    assert labels.tolist() == [1, 1, 0, 0]
    few = dataclasses.replace(pack_source(str(write_folder(beasts.parent / "two", CLASSES[:2]))), name="two")
    with pytest.warns(Note, match="the data two has no class cow"):
        assert set(evaluation_data(few, WANTED)[1].tolist()) == {1, 2}


def test_classes_that_the_model_does_not_know_are_refused(beasts):
    (beasts / "test" / "cow").rename(beasts / "test" / "Cow")
    (beasts / "test" / "ant" / "0.png").write_text("never read")
    with pytest.raises(UserError, match=r"knows 3 classes \(cow, ant, bee\), .*test has others \(Cow\); give other"):
        evaluation_data(beasts, WANTED)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_another_size_are_resized_as_in_packing(size, channels, tmp_path):
    folder = write_folder(tmp_path / "large", size=96)
    if channels == 1:
        for path in folder.rglob("*.png"):
            Image.open(path).convert("L").save(path)
    large, wanted = pack_source(str(folder)), dataclasses.replace(WANTED, channels=channels, image_size=size)
    with pytest.warns(Note, match=rf"images of 96x96 pixels are resized to {size[1]}x{size[0]}, the size that the mod"):
        from_pack = found(large, wanted)
    with pytest.warns(Note, match="are resized to"):
        assert found(folder, wanted) == from_pack
    if size == (32, 32):
        assert from_pack == of_pack(pack_source(str(folder), size=32))


def test_images_of_several_sizes_are_resized(tmp_path):
    folder = write_folder(tmp_path / "beasts", size=16)
    Image.new("RGB", (9, 7)).save(folder / "test" / "ant" / "0.png")
    with pytest.warns(Note, match="images of several sizes are resized to 8x8"):
        images, labels = evaluation_data(folder, WANTED)
    assert (images.shape, images.dtype, labels.dtype) == ((6, 8, 8, 3), torch.uint8, torch.int64)


def test_images_stay_as_they_are_where_the_size_is_not_known(beasts):
    wanted = dataclasses.replace(WANTED, image_size=None)
    assert evaluation_data(beasts, wanted)[0].shape == (6, 8, 8, 3)


def test_colours_for_a_model_of_greys(beasts):
    wanted = dataclasses.replace(WANTED, channels=1)
    with pytest.warns(Note, match="test are made grey, as the model takes them"):
        images, _ = evaluation_data(beasts, wanted)
    expected = np.asarray(Image.open(sorted((beasts / "test" / "ant").iterdir())[0]).convert("L"))
    np.testing.assert_array_equal(images[0, :, :, 0], expected)
    with pytest.raises(UserError, match="takes images of 1 channels, the data beasts has 3; give other --data"):
        evaluation_data(pack_source(str(beasts)), wanted)


def test_what_was_left_out_is_told(beasts):
    (beasts / "test" / "ant" / "notes.txt").write_text("no image")
    with pytest.warns(Note, match=r"left out of .*test: 1 \.txt"):
        evaluation_data(beasts, WANTED)


# --- Commands


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A model of CLASSES and images of 16x16 pixels whose weights are random."""
    pack = make_pack("small", CLASSES, *random_arrays(shape=(16, 16, 3)))
    made = recipe("pocket", ["width_multiplier=0.05", "dtype=float32"])
    net = make_net(made, classes=3, channels=3, dtype=torch.float32, device="cpu")
    reset_parameters(net, made.net, 0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, net.state_dict(), made, pack, torch.float32)
    return path


def labelled_by(model, folder):
    """A folder test/CLASS/* of 48x48 noise in which the class is what the model says of the image at 16x16."""
    generator = np.random.default_rng(3)
    for number in range(24):
        tint = generator.integers(0, 256, 3)
        image = Image.fromarray((tint * generator.random((48, 48, 1)) ** 0.5).astype(np.uint8))
        small = torch.from_numpy(np.array(image.resize((16, 16), Image.Resampling.BILINEAR)))
        normalised = (small / 255 - torch.tensor(model.mean)) / torch.tensor(model.std)
        with torch.no_grad():
            label = int(model.net.eval()(normalised.permute(2, 0, 1)[None]).argmax())
        (folder / "test" / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        image.save(folder / "test" / CLASSES[label] / f"{number}.png")
    return folder


def test_images_of_another_size_are_classified_as_in_training(model_file, tmp_path, speedyresnet):
    folder = labelled_by(read_model(model_file), tmp_path / "large")
    assert len(list((folder / "test").iterdir())) > 1
    done = speedyresnet("evaluate", model_file, "--data", folder, "--device", "cpu", "--json")
    assert (done.returncode, json.loads(done.stdout)["accuracy"]["single_view"]) == (0, 1.0), done.stderr
    resized = "speedyresnet: test images of 48x48 pixels are resized to 16x16, the size that the model was trained on"
    assert resized in done.stderr.splitlines()
    with pytest.warns(Note, match="48x48 pixels are resized"):
        assert evaluate(model_file, folder / "test", device="cpu").single_view == 1.0


def test_evaluate_takes_a_pack_too(model_file, tmp_path, speedyresnet):
    write_folder(tmp_path / "beasts", size=16)
    pack = pack_source(str(tmp_path / "beasts"))
    save_pack(pack, tmp_path / "beasts.safetensors")
    done = [
        speedyresnet("evaluate", model_file, "--data", data, "--device", "cpu")
        for data in (tmp_path / "beasts", tmp_path / "beasts.safetensors")
    ]
    assert [each.returncode for each in done] == [0, 0]
    assert done[0].stdout == done[1].stdout
    assert done[0].stderr == done[1].stderr == ""
