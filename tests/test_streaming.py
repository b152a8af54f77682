"""Networks and images for ImageNet: torchvision's counts and transforms, the same batches whatever reads them."""

import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image
from sklearn.metrics import top_k_accuracy_score
from torchvision.transforms.v2 import functional as tv

from bnlib import (
    Config,
    InputError,
    analysis,
    campaign,
    data,
    device,
    freeze,
    lbfgs,
    models,
    run,
    run_all,
    store,
    streaming,
    verdicts,
)
from bnlib.config import resolve
from bnlib.names import IMAGENET
from bnlib.profiles import profile
from bnlib.train import evaluate, evaluate_on_test_set
from bnlib.verify import verify
from tests.test_analysis import fake_run
from tests.test_train import same, stop_after

CPU = torch.device("cpu")
CLASSES = [f"class {letter}" for letter in "ABCDEFGHIJKL"]


def write_folder(place: Path, classes=CLASSES, train=5, val=2) -> Path:
    """A folder of small images of many sizes: in colour, grey, with a palette, with transparency; PNG and JPEG."""
    draws = np.random.default_rng(0)
    modes = itertools.cycle([("RGB", "png"), ("L", "png"), ("P", "png"), ("RGBA", "png"), ("RGB", "jpg")])
    for part, number in (("train", train), ("val", val)):
        for name in classes:
            (place / part / name).mkdir(parents=True)
            for index in range(number):
                height, width = draws.integers(20, 60, 2)
                image = Image.fromarray(draws.integers(0, 256, (height, width, 3), np.uint8))
                mode, kind = next(modes)
                image.convert(mode).save(place / part / name / f"{index}.{kind}")
    return place


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder / "photos")
    return folder


@pytest.fixture(autouse=True)
def found_there(root, monkeypatch):
    monkeypatch.setenv("BNLIB_DATA", str(root))
    monkeypatch.setenv("BNLIB_WORKERS", "0")
    data._load.cache_clear()
    yield
    data._load.cache_clear()


@pytest.fixture
def small() -> Config:
    """Seconds to train: 60 images, a ResNet-18."""
    return Config(dataset="photos", model="imagenet_resnet18", image_size=32, batch_size=16, epochs=2, lr=0.01)


def epoch_of(config: Config, epoch: int = 1, first: int = 0, indices=None) -> tuple[torch.Tensor, torch.Tensor]:
    """The pixels and labels of an epoch, in its order."""
    folder = data.load(config.dataset)
    indices = np.arange(folder.n_train) if indices is None else indices
    parts = list(folder.batches(indices, config, lambda images: images, CPU).epoch(epoch, first))
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def test_other_images_under_the_name_of_an_official_set_are_an_error(tmp_path):
    write_folder(tmp_path / "cifar10")
    with pytest.raises(InputError, match="cifar10: other images under the name of the official cifar10"):
        data.load("cifar10", tmp_path)


# ------------------------------------------------------------------------------------------- networks

def torchvisions(name: str):
    """torchvision's own weights entry of a network, which documents its parameters and operations."""
    return torchvision.models.get_model_weights(name.removeprefix("imagenet_")).IMAGENET1K_V1.meta


def on_paper(name: str, **options):
    with torch.device("meta"):
        return models.architecture(name, 1000, **options)


@pytest.mark.parametrize("name", [name for name in IMAGENET if name != "imagenet_resnet200"])
def test_parameters_and_operations_are_those_that_torchvision_documents(name):
    assert freeze.count(on_paper(name)) == torchvisions(name)["num_params"]
    assert models.multiply_adds(name) / 1e9 == pytest.approx(torchvisions(name)["_ops"], rel=0.02)


def test_the_200_layers_are_the_152_and_16_more_blocks_of_the_second_stage():
    block = (512 * 128 + 9 * 128 * 128 + 128 * 512) + 2 * (128 + 128 + 512)
    assert freeze.count(on_paper("imagenet_resnet200")) == torchvisions("imagenet_resnet152")["num_params"] + 16 * block


@pytest.mark.parametrize(("name", "blocks", "width"), [
    ("imagenet_resnet50", (3, 4, 6, 3), 1), ("imagenet_resnet200", (3, 24, 36, 3), 1),
    ("imagenet_wide_resnet101_2", (3, 4, 23, 3), 2)])
def test_gammas_and_betas_are_two_for_each_channel(name, blocks, width):
    """The first convolution, three in each block, and a shortcut in each stage."""
    channels = 64 + sum(n * (2 * width * 64 * 2**stage + 256 * 2**stage) + 256 * 2**stage
                        for stage, n in enumerate(blocks))
    assert freeze.count(on_paper(name), "bn") == 2 * channels


def test_vggs_gammas_and_betas_are_two_for_each_channel():
    assert freeze.count(on_paper("imagenet_vgg11_bn"), "bn") == 2 * (64 + 128 + 2 * 256 + 4 * 512)
    assert freeze.count(on_paper("imagenet_vgg16_bn"), "bn") == 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512)


@pytest.mark.parametrize("name", ["imagenet_resnet18", "imagenet_resnet50"])
def test_a_network_computes_what_torchvisions_own_does(name, seeded):
    ours = models.build(name, 10, seed=3).eval()
    theirs = torchvision.models.get_model(name.removeprefix("imagenet_"), num_classes=10).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_vgg_has_torchvisions_layers_and_no_dropout():
    ours, theirs = on_paper("imagenet_vgg11_bn"), torchvision.models.vgg11_bn(init_weights=False)
    assert {n: p.shape for n, p in ours.state_dict().items()} == {n: p.shape for n, p in theirs.state_dict().items()}
    assert all(m.p == 0 for m in ours.modules() if isinstance(m, torch.nn.Dropout))


def test_weights_are_drawn_by_the_seed_as_those_of_any_other_network():
    network = models.build("imagenet_resnet18", 10, seed=1)
    again, other = (models.build("imagenet_resnet18", 10, seed=s) for s in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(),
                                                 strict=True))
    assert not torch.equal(network.conv1.weight, other.conv1.weight)
    assert network.layer4[1].conv2.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    gamma = torch.cat([m.weight for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)])
    assert gamma.min() >= 0 and gamma.max() < 1 and gamma.mean().item() == pytest.approx(0.5, abs=0.02)


def test_shortcuts_are_found_and_nothing_else():
    chosen = freeze.select(on_paper("imagenet_resnet50"), "shortcut")
    named = {name for name, _ in on_paper("imagenet_resnet50").named_parameters() if ".downsample." in name}
    assert set(chosen) == named and len(named) == 4 * 3                # four of them: weight, γ, β
    assert set(freeze.select(on_paper("imagenet_vgg11_bn"), "output")) == {"classifier.6.weight", "classifier.6.bias"}


@pytest.mark.parametrize("name", ["imagenet_resnet101", "imagenet_vgg11_bn"])
def test_without_batch_norm_each_convolution_has_a_bias(name):
    network, with_bn = on_paper(name, norm="none"), on_paper(name)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert freeze.count(network, "bn") == 0 and all(len(conv.bias) == conv.out_channels for conv in convolutions)
    biases_before = 0 if "resnet" in name else sum(conv.out_channels for conv in convolutions)
    assert freeze.count(network) - freeze.count(with_bn) == (
        sum(conv.out_channels for conv in convolutions) - biases_before - freeze.count(with_bn, "bn"))


@pytest.mark.parametrize("changed", [
    {"trainable": "bn"}, {"trainable": "random2"}, {"norm": "none", "trainable": "all"}, {"norm": "none",
                                                                                          "trainable": "random1"},
    {"norm": "group"}, {"trainable": "output", "n_val": 10}, {"dataset": "digits", "n_train": 64, "image_size": 48},
    {"model": "resnet8", "image_size": 24}], ids=str)
def test_a_run_comes_back_from_its_record(changed, small, tmp_path):
    r = run(dataclasses.replace(small, **changed), results=tmp_path / "results", precision="fp32")
    found = evaluate_on_test_set(r.network(), r.config, "cpu")
    assert found.correct == r.metrics["test_correct"] and (found.predicted == r.predictions["predicted"]).all()
    assert bool(r.gamma) == (r.config.norm != "none")
    if r.config.dataset == "photos":
        assert found.top5 / 24 == r.metrics["test_top5_accuracy"] == pytest.approx(
            r.history["test_top5_accuracy"].iloc[-1])


# ----------------------------------------------------------------------------------------------- top-5

def test_top_5_is_that_of_scikit_learn_and_only_where_there_are_more_than_ten_classes(seeded):
    logits, labels = torch.randn(300, 12), torch.randint(0, 12, (300,))

    class Given(torch.nn.Module):
        def forward(self, numbers):
            return self.logits[numbers]

    network = Given()
    network.logits = logits
    batches = data.in_order(torch.arange(300), labels, 70)
    found = evaluate(network, batches, lambda numbers: numbers, "fp32")
    assert found.top5 / 300 == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    assert found.row("test")["test_top5_accuracy"] == found.top5 / 300
    network.logits = logits * float("nan")
    assert evaluate(network, batches, lambda numbers: numbers, "fp32").top5 == 0
    network.logits = logits[:, :10]
    few = evaluate(network, data.in_order(torch.arange(300), labels % 10, 70), lambda numbers: numbers, "fp32")
    assert list(few.row("test")) == ["test_loss", "test_accuracy"]


# --------------------------------------------------------------------------------------------- batches

def test_batches_are_the_same_with_and_without_workers_and_from_any_batch_on(small, monkeypatch):
    images, labels = epoch_of(small, epoch=2)
    rest, rest_labels = epoch_of(small, epoch=2, first=2)
    assert torch.equal(rest, images[32:]) and torch.equal(rest_labels, labels[32:])
    monkeypatch.setenv("BNLIB_WORKERS", "2")
    again, labels_again = epoch_of(small, epoch=2)
    assert torch.equal(again, images) and torch.equal(labels_again, labels)


def test_an_image_is_cut_by_seed_epoch_and_index_alone(small):
    """Not by the batch it is in, by the images beside it, or by torch's global state, which stays as it was."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    images, labels = epoch_of(small)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(epoch_of(dataclasses.replace(small, batch_size=7))[0], images)
    few, few_labels = epoch_of(small, indices=np.arange(0, 60, 7))
    for image, label in zip(few, few_labels, strict=True):
        assert (images == image).all((1, 2, 3)).any() and label in labels
    for other in ({"epoch": 2}, {"config": dataclasses.replace(small, seed=1)}):
        different = epoch_of(**{"config": small} | other)[0]
        assert not any((images == image).all((1, 2, 3)).any() for image in different)


def test_every_image_is_in_every_epoch_once(small):
    """Without augmentation, so that images can be told apart: those of the evaluation, in another order."""
    plain = dataclasses.replace(small, augment="none")
    in_order = torch.cat([images for images, _ in data.load("photos").in_order("train", CPU, 32)])
    for epoch in (1, 2):
        images, labels = epoch_of(plain, epoch)
        where = [int((in_order == image).all((1, 2, 3)).nonzero()) for image in images]
        assert sorted(where) == list(range(60)) != where
        assert (labels == data.load("photos").y_train[where]).all()


def test_half_of_the_images_are_mirrored(small):
    config = dataclasses.replace(small, dataset="photos", augment="crop")
    cropped = epoch_of(config)[0]
    flipped = epoch_of(dataclasses.replace(config, augment="crop+flip"))[0]
    mirrored = [torch.equal(a, b.flip(1)) for a, b in zip(flipped, cropped, strict=True)]
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, flipped, cropped, strict=True))
    assert 18 <= sum(mirrored) <= 42                                   # of 60: within 3 deviations


def test_evaluation_sees_what_torchvisions_preset_makes(root):
    """Shorter side 256, middle 224, normalised; grey images in three channels."""
    folder, preset = data.load("photos"), torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    normalise = data.Normalise(folder, CPU, torch.float32)
    ours = torch.cat([normalise(images) for images, _ in folder.in_order("test", CPU)])
    theirs = torch.stack([preset(Image.open(root / "photos" / os.fsdecode(file)).convert("RGB"))
                          for file in folder.test])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours[1, 0] * 0.229 + 0.485).sub(ours[1, 1] * 0.224 + 0.456).abs().max() < 1e-4          # the second is grey


def test_images_in_memory_are_enlarged_bilinearly():
    digits = data.load("digits")
    plain, large = (data.Normalise(digits, CPU, torch.float32, size)(digits.x_test[:8]) for size in (None, 96))
    torch.testing.assert_close(large, tv.resize(plain, [96, 96], antialias=False))
    assert large.is_contiguous(memory_format=torch.channels_last)


def test_a_run_stopped_within_an_epoch_ends_as_if_it_had_not_been(small, tmp_path, monkeypatch):
    """Whatever the number of workers; four steps an epoch."""
    whole = run(small, results=tmp_path / "whole/results")
    monkeypatch.setenv("BNLIB_WORKERS", "2")
    for steps in (1, 2, 3):
        stop_after(steps, small, tmp_path / "stopped/results", monkeypatch)
    assert same(run(small, results=tmp_path / "stopped/results"), whole)


def test_lbfgs_holds_batches_of_streamed_images_too(small, tmp_path, monkeypatch):
    config = dataclasses.replace(small, optimizer="lbfgs", lr=None, batch_size=30, momentum=None, weight_decay=None,
                                 milestones=None, optimizer_options="max_iter=3 history_size=2")
    assert run(config, results=tmp_path / "results").status == "done"
    pairs = 2 * 2 * 4 * 9600                         # two pairs of float32 for each γ and β of ImageNet's ResNet-18
    for memory, what in ((pairs - 1, "history_size=2: .* at most 1"), (pairs, "batch_size=30: .* not one fits")):
        monkeypatch.setattr(lbfgs, "memory", lambda device, memory=memory: memory)
        with pytest.raises(InputError, match=what):
            run(dataclasses.replace(config, seed=1), results=tmp_path / "results")


def test_validation_images_are_not_trained_on(small, tmp_path):
    config = dataclasses.replace(small, n_val=12, n_train=30)
    trained, held_out = data.split(config, data.load("photos").n_train)
    assert (len(trained), len(held_out)) == (30, 12) and not set(trained) & set(held_out)
    assert len(epoch_of(config, indices=trained)[1]) == 30
    r = run(config, results=tmp_path / "results")
    assert np.allclose(r.history["val_accuracy"] * 12, (r.history["val_accuracy"] * 12).round(), atol=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_no_workers_traceback(number, small, root, tmp_path):
    """It reaches all processes of the terminal, as a shell sends Ctrl-C and a queue the end of a job."""
    config = Config(dataset="photos", model=small.model, image_size=64, batch_size=4, epochs=500)
    arguments = ["train", config.model, "--dataset=photos", "--image-size=64", "--batch-size=4", "--epochs=500",
                 f"--results={tmp_path}/results", "--precision=fp32"]
    process = subprocess.Popen([sys.executable, "-m", "bnlib", *arguments], start_new_session=True, text=True,
                               stderr=subprocess.PIPE, env=os.environ | {"BNLIB_WORKERS": "2"}, cwd=resolve("."))
    deadline, checkpoint = time.time() + 120, store.checkpoint_file(config, tmp_path / "results")
    while not checkpoint.exists() and time.time() < deadline and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, said
    assert f"stopped by {number.name}" in said and "Traceback" not in said
    assert checkpoint.exists()


def test_a_process_ends_although_batches_are_under_way(root):
    """Python asks the workers to end by SIGTERM and waits: they may leave unheard only what others send."""
    code = ("import torch; from bnlib import data; from bnlib.streaming import InOrder; "
            "begun = iter(data.load('photos').in_order('train', torch.device('cpu'), 32)); print(len(next(begun)[1]))")
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"BNLIB_WORKERS": "2"}, cwd=resolve("."),
                          capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "60\n") and "Traceback" not in done.stderr


# --------------------------------------------------------------------------------------------- folders

@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_broken_image_is_one_line_that_names_it(workers, small, root, tmp_path, monkeypatch):
    monkeypatch.setenv("BNLIB_WORKERS", workers)
    place = root / f"broken{workers}"
    write_folder(place)
    whole = (place / "train/class C/1.png").read_bytes()
    (place / "train/class C/1.png").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(InputError, match=r"train/class C/1\.png is damaged or no image") as error:
        run(dataclasses.replace(small, dataset=place.name), results=tmp_path / "results")
    assert "\n" not in str(error.value)


def test_train_and_val_must_have_the_same_classes_and_images_in_each(root):
    for name, broken, said in (("lacking", "val/class D", "train alone has class D"),
                               ("extra", "train/class D", "val alone has class D")):
        place = write_folder(root / name, train=1, val=1)
        (place / broken).rename(root / f"{name}-moved")
        with pytest.raises(InputError, match=said) as error:
            data.load(name)
        assert "\n" not in str(error.value)
    place = write_folder(root / "empty", train=1, val=1)
    for file in (place / "val/class B").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"class B.*expected {train,val}/<class>/") as error:
        data.load("empty")
    assert "\n" not in str(error.value)


def test_two_parts_to_test_on_are_an_error(root, tmp_path):
    shutil.copytree(root / "photos", tmp_path / "photos")
    (tmp_path / "photos/test/images").mkdir(parents=True)                  # without classes, as ImageNet's
    assert streaming.find("photos", tmp_path / "photos") is not None
    (tmp_path / "photos/test/class B").mkdir()
    with pytest.raises(InputError, match="has classes in train, val and test, and would be tested on val"):
        streaming.find("photos", tmp_path / "photos")


def test_the_fingerprint_is_that_of_paths_and_sizes_wherever_the_folder_lies(root):
    first = data.load("photos").fingerprint
    elsewhere = write_folder(root / "elsewhere")
    assert data.load("elsewhere").fingerprint == first
    file = elsewhere / "train/class A/0.png"
    content = file.read_bytes()
    for change in (lambda: file.write_bytes(content + b"\0"),
                   lambda: (file.write_bytes(content), file.rename(file.with_name("9.png")))):
        change()
        data._load.cache_clear()
        assert data.load("elsewhere").fingerprint != first


def test_a_record_of_other_images_is_not_taken_for_one_of_these(small, root, tmp_path):
    place = write_folder(root / "changing", train=2)
    config = dataclasses.replace(small, dataset="changing", epochs=1)
    run(config, results=tmp_path / "results")
    Image.new("RGB", (30, 30)).save(place / "train/class A/new.png")
    data._load.cache_clear()
    with pytest.raises(InputError, match="trained on other images than changing now has"):
        run(config, results=tmp_path / "results")
    with pytest.raises(InputError, match="trained on other images than changing now has"):
        run_all([config], results=tmp_path / "results")
    (finding,) = verify(tmp_path / "results")
    assert "trained on other images" in finding.faults[0]
    place.rename(root / "gone")
    data._load.cache_clear()
    assert run(config, results=tmp_path / "results").status == "done"       # nothing here to compare with


def test_imagenet_is_asked_for_in_one_line():
    with pytest.raises(InputError, match=r"imagenet not found.*train/ and val/, a folder of images for each class"):
        data.load("imagenet")


@pytest.mark.parametrize(("quota", "expected"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 16)])
def test_a_container_has_as_many_cores_as_it_may_keep_busy(quota, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(device, "QUOTA", tmp_path / "cpu.max")
    assert device.cores() == 16
    device.QUOTA.write_text(quota + "\n")
    assert device.cores() == expected


def test_the_number_of_workers_is_asked_for_or_follows_from_the_cores(monkeypatch):
    monkeypatch.setenv("BNLIB_WORKERS", "7")
    assert streaming.workers() == 7
    monkeypatch.setenv("BNLIB_WORKERS", "many")
    with pytest.raises(InputError, match="BNLIB_WORKERS='many': must be a number of processes"):
        streaming.workers()
    monkeypatch.delenv("BNLIB_WORKERS")
    assert 1 <= streaming.workers() <= os.cpu_count()


def test_the_demos_folder_is_made_whole_and_with_all_its_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = data.load("large_digits")
    assert digits.y_train.bincount().tolist() == [24] * 20 and digits.y_test.bincount().tolist() == [8] * 20
    assert [f.name for f in (tmp_path / "build").iterdir()] == ["large_digits"]
    sizes = {Image.open(file).size for file in (tmp_path / "build/large_digits").rglob("*.png")}
    assert len(sizes) > 100
    data._load.cache_clear()
    assert data.load("large_digits").fingerprint == digits.fingerprint


# ---------------------------------------------------------------------------------------- Stanford Cars

def write_cars(root: Path) -> dict[str, np.ndarray]:
    """torchvision's layout: photographs of noise, and in the box of each a car of one colour; those colours by part."""
    draws, place, colours = np.random.default_rng(0), root / "stanford_cars", {}
    kind = [(f"bbox_{side}", "i4") for side in ("x1", "y1", "x2", "y2")] + [("class", "i4"), ("fname", "O")]
    for part, file, n in (("train", "devkit/cars_train_annos.mat", 6), ("test", "cars_test_annos_withlabels.mat", 4)):
        (place / f"cars_{part}").mkdir(parents=True)
        (place / "devkit").mkdir(exist_ok=True)
        notes, colours[part] = np.zeros(n, kind), draws.integers(0, 256, (n, 3), np.uint8)
        for number, colour in enumerate(colours[part]):
            left, top = draws.integers(1, 40, 2)
            right, bottom = left + draws.integers(30, 80), top + draws.integers(20, 60)
            photo = draws.integers(0, 256, (120, 140, 3), np.uint8)
            photo[top - 1:bottom, left - 1:right] = colour
            Image.fromarray(photo).save(place / f"cars_{part}" / f"{number:05d}.png")
            notes[number] = (left, top, right, bottom, number % 3 + 1, f"{number:05d}.png")
        scipy.io.savemat(place / file, {"annotations": notes})
    scipy.io.savemat(place / "devkit/cars_meta.mat", {"class_names": np.array(["Audi", "BMW", "Fiat"], object)})
    return colours


@pytest.mark.parametrize(("name", "shape"), [("stanford_cars_64x96", (64, 96)), ("stanford_cars_96x96", (96, 96))])
def test_a_car_is_cut_out_by_its_box_in_grey_at_the_size_of_the_name(name, shape, tmp_path):
    colours = write_cars(tmp_path)
    cars = data.load(name, tmp_path)
    assert cars.x_train.shape == (6, *shape, 1) and cars.classes == ("Audi", "BMW", "Fiat")
    for part, x in (("train", cars.x_train), ("test", cars.x_test)):
        greys = np.round(colours[part] @ [0.299, 0.587, 0.114])                     # ITU-R 601, as PIL's grey is
        assert (x == x[:, :1, :1]).all()                                            # nothing but the car
        assert np.abs(np.sort(x[:, 0, 0, 0].numpy().astype(int)) - np.sort(greys)).max() <= 1
    mean, std = cars.moments
    values = cars.x_train.double() / 255
    assert mean == pytest.approx([values.mean().item()]) and std == pytest.approx([values.std(correction=0).item()])


def test_cars_are_read_once_and_then_from_an_array(tmp_path):
    write_cars(tmp_path)
    first = data.load("stanford_cars_64x96", tmp_path).fingerprint
    (tmp_path / "stanford_cars").rename(tmp_path / "away")
    data._load.cache_clear()
    assert data.load("stanford_cars_64x96", tmp_path).fingerprint == first


def test_cars_that_lack_a_part_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"stanford_cars_96x96 not found.*torchvision's folder stanford_cars/"):
        data.load("stanford_cars_96x96", tmp_path)
    write_cars(tmp_path)
    (tmp_path / "stanford_cars/cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(InputError, match=r"damaged or incomplete.*expected torchvision's layout") as error:
        data.load("stanford_cars_96x96", tmp_path)
    assert "\n" not in str(error.value)


def test_cars_train_without_batch_norm(tmp_path, monkeypatch):
    write_cars(tmp_path)
    monkeypatch.setenv("BNLIB_DATA", str(tmp_path))
    config = Config(dataset="stanford_cars_64x96", model="imagenet_resnet101", norm="none", trainable="output",
                    epochs=1, lr=1e-6, batch_size=3)
    r = run(config, results=tmp_path / "results", precision="fp32")
    assert r.metrics["parameters_trained"] == 2048 * 3 + 3 and r.record["bn_layers"] == {}


# ------------------------------------------------------------------------------------ grid and verdict

def test_the_grid_is_what_can_be_run_here(root, tmp_path, monkeypatch):
    notebook = resolve("notebooks/07_large_images.ipynb")
    assert campaign.notebook_configs(notebook, profile_name="paper") == []
    assert "Put the folders" in analysis.about_images("imagenet")[0]
    monkeypatch.setenv("BNLIB_DATA", str(tmp_path))
    (tmp_path / "imagenet/train").mkdir(parents=True)
    configs = campaign.notebook_configs(notebook, profile_name="paper")
    assert {c.model for c in configs} == set(IMAGENET) and {c.epochs for c in configs} == {90}
    assert {c.trainable for c in configs} == {"all", "bn", "output", "random2"}


def test_a_recorded_run_is_in_the_grid_also_where_its_images_are_not(small, tmp_path, monkeypatch):
    r = run(dataclasses.replace(small, epochs=1), results=tmp_path / "results")
    monkeypatch.setenv("BNLIB_DATA", str(tmp_path))
    assert campaign.possible([r.config, small], tmp_path / "results") == [r.config]
    anybodys = [Config(), Config(dataset="cifar100"), Config(dataset="digits")]
    assert not data.at_hand("cifar10") and campaign.possible([*anybodys, small], tmp_path / "empty") == anybodys


@pytest.mark.parametrize(("top5", "epochs", "verdict"), [
    (0.325, 90, "reproduced"), (0.20, 90, "not reproduced"), (0.325, 16, "not yet run")])
def test_the_papers_number_of_imagenet_is_judged_after_its_epochs(top5, epochs, verdict):
    protocol = profile("paper").large | {"epochs": epochs}
    runs = [fake_run(0.1, model="imagenet_resnet200", seed=seed, **protocol) for seed in range(3)]
    for each in runs:
        each.metrics["test_top5_accuracy"] = top5
    row = verdicts.table(runs).set_index("claim").loc["ImageNet ResNet-200, BN only: top-5 accuracy"]
    assert row["verdict"] == verdict and row["published"] == "32 %"
