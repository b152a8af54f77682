"""Datasets: one canonical order and fingerprint, whatever file they came from; augmentation against torchvision's."""

import functools
import hashlib
import http.server
import os
import pickle
import tarfile
import threading

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from bnlib import Config, InputError, data, native, streaming

needs_cpp = pytest.mark.skipif(bool(native.why_not()), reason=f"C++ operation {native.why_not()}")
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def arrays():
    draws = np.random.default_rng(0)
    return {"x_train": draws.integers(0, 256, (40, 32, 32, 3), np.uint8), "y_train": np.arange(40) % 10,
            "x_test": draws.integers(0, 256, (20, 32, 32, 3), np.uint8), "y_test": np.arange(20) % 10}


@pytest.fixture(autouse=True)
def unofficial(monkeypatch, tmp_path):
    """The small sets below stand in for CIFAR-10, so its fingerprint is not asked for."""
    monkeypatch.delitem(data.FINGERPRINTS, "cifar10")
    monkeypatch.setenv("BNLIB_DATA", str(tmp_path))
    data._load.cache_clear()
    yield
    data._load.cache_clear()


def write_npz(folder, arrays, **changed):
    np.savez(folder / "cifar10.npz", classes=np.array(CLASSES), **(arrays | changed))


@pytest.fixture
def server(tmp_path):
    """The address of a web server on this machine that serves `tmp_path`."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def write_torchvision(folder, arrays, url, monkeypatch):
    """torchvision's files for the small set, and a CIFAR10 class that knows their address and checksums."""
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    for file, part in (("data_batch_1", "train"), ("test_batch", "test")):
        rows = arrays[f"x_{part}"].transpose(0, 3, 1, 2).reshape(-1, 3072)
        (base / file).write_bytes(pickle.dumps({"data": rows, "labels": arrays[f"y_{part}"].tolist()}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}))
    with tarfile.open(folder / "small.tar.gz", "w:gz") as tar:
        tar.add(base, base.name)

    def md5(path):
        return hashlib.md5(path.read_bytes()).hexdigest()

    small = type("CIFAR10", (torchvision.datasets.CIFAR10,), {
        "url": url, "filename": "small.tar.gz", "tgz_md5": md5(folder / "small.tar.gz"),
        "train_list": [["data_batch_1", md5(base / "data_batch_1")]],
        "test_list": [["test_batch", md5(base / "test_batch")]],
        "meta": {"filename": "batches.meta", "key": "label_names", "md5": md5(base / "batches.meta")}})
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", small)


def write_images(folder, arrays):
    for part in ("train", "test"):
        for i, (image, label) in enumerate(zip(arrays[f"x_{part}"], arrays[f"y_{part}"], strict=True)):
            place = folder / "cifar10" / part / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i}.png")


def test_all_four_sources_give_the_same_arrays(arrays, tmp_path, monkeypatch, server):
    npz, tv_files, images, download = (tmp_path / name for name in ("npz", "torchvision", "images", "download"))
    npz.mkdir()
    write_npz(npz, arrays)
    write_images(images, arrays)
    write_torchvision(tv_files, arrays, f"{server}/torchvision/small.tar.gz", monkeypatch)
    found = [data.load("cifar10", folder) for folder in (npz, tv_files, images, download)]
    assert len({f.fingerprint for f in found}) == 1
    for part in ("x_train", "y_train", "x_test", "y_test"):
        assert all(torch.equal(getattr(found[0], part), getattr(f, part)) for f in found[1:])
    assert {f.classes for f in found} == {tuple(CLASSES)}
    assert [p.name for p in download.iterdir()] == ["cifar10.npz"]


def test_a_pickle_is_not_read_before_its_checksum_matches(arrays, tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "run"),))

    write_torchvision(tmp_path, arrays, "", monkeypatch)
    for file in ("data_batch_1", "test_batch", "batches.meta"):
        whole = (tmp_path / "cifar-10-batches-py" / file).read_bytes()
        (tmp_path / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(InputError, match="damaged or incomplete"):
            data.load("cifar10", tmp_path)
        assert not (tmp_path / "run").exists()
        (tmp_path / "cifar-10-batches-py" / file).write_bytes(whole)


def test_another_order_of_the_files_gives_the_same_arrays(arrays, tmp_path):
    write_npz(tmp_path, arrays)
    first = data.load("cifar10")
    order = np.random.default_rng(1).permutation(40)
    write_npz(tmp_path, arrays, x_train=arrays["x_train"][order], y_train=arrays["y_train"][order])
    data._load.cache_clear()
    second = data.load("cifar10")
    assert torch.equal(first.x_train, second.x_train) and torch.equal(first.y_train, second.y_train)
    assert first.fingerprint == second.fingerprint


def test_images_keep_their_labels(arrays, tmp_path):
    write_npz(tmp_path, arrays)
    found = data.load("cifar10")
    label = {image.tobytes(): y for image, y in zip(arrays["x_train"], arrays["y_train"], strict=True)}
    assert all(label[x.numpy().tobytes()] == y for x, y in zip(found.x_train, found.y_train, strict=True))


def swap(y):
    return np.concatenate([y[1::-1], y[2:]])


def brighten(x):
    x = x.copy()
    x[3, 5, 7, 1] ^= 1
    return x


@pytest.mark.parametrize("change", [{"y_train": swap}, {"x_test": brighten}])
def test_a_wrong_pixel_or_a_swapped_label_is_an_error(change, arrays, tmp_path, monkeypatch):
    write_npz(tmp_path, arrays)
    monkeypatch.setitem(data.FINGERPRINTS, "cifar10", data.load("cifar10").fingerprint)
    data._load.cache_clear()
    write_npz(tmp_path, arrays, **{part: mend(arrays[part]) for part, mend in change.items()})
    with pytest.raises(InputError, match=r"cifar10\.npz is not the official cifar10: fingerprint .* expected"):
        data.load("cifar10")


def test_a_download_with_a_wrong_checksum_is_an_error_and_leaves_nothing(arrays, tmp_path, monkeypatch, server):
    write_torchvision(tmp_path / "files", arrays, f"{server}/files/small.tar.gz", monkeypatch)
    (tmp_path / "files/small.tar.gz").write_bytes(b"something else")
    with pytest.raises(InputError, match="the download failed"):
        data.load("cifar10", tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(("damage", "said"), [
    (lambda f: f.write_bytes(f.read_bytes()[:5000]), "is damaged"),
    (lambda f: f.write_bytes(b""), "is damaged"),
    (lambda f: np.savez(f, x_train=np.zeros(3)), "is damaged"),
])
def test_a_damaged_file_is_named(damage, said, arrays, tmp_path):
    write_npz(tmp_path, arrays)
    damage(tmp_path / "cifar10.npz")
    with pytest.raises(InputError, match=rf"cifar10\.npz {said}"):
        data.load("cifar10")


@pytest.mark.parametrize("n", [0, 39])
def test_labels_must_be_as_many_as_the_images_and_there_must_be_some(n, arrays, tmp_path):
    write_npz(tmp_path, arrays, x_train=arrays["x_train"][:n and 40], y_train=arrays["y_train"][:n])
    with pytest.raises(InputError, match=r"train holds .* expected uint8"):
        data.load("cifar10")


def test_labels_outside_the_classes_are_an_error(arrays, tmp_path):
    write_npz(tmp_path, arrays, y_test=arrays["y_test"] + 1)
    with pytest.raises(InputError, match="labels 1 to 10; expected 0 to 9"):
        data.load("cifar10")


@pytest.mark.parametrize(("changed", "said"), [
    ({"y_train": np.array(["cat"] * 40)}, "<U3 labels"), ({"y_test": np.full(20, 0.9)}, "float64 labels"),
    ({"x_test": np.zeros((20, 16, 16, 3), np.uint8)}, r"test images \(16, 16, 3\); expected one size"),
    ({"x_test": np.zeros((20, 32, 32), np.uint8)}, r"test images \(32, 32, 1\); expected one size"),
    ({"classes": np.array("cat")}, r"classes has the shape \(\)")])
def test_arrays_of_another_kind_are_refused_in_one_line(changed, said, arrays, tmp_path):
    np.savez(tmp_path / "cifar10.npz", **{"classes": np.array(CLASSES)} | arrays | changed)
    with pytest.raises(InputError, match=said):
        data.load("cifar10")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written .*BNLIB_DATA"):
        data.load("cifar10", tmp_path / "file")


def test_an_image_of_sixteen_bits_is_refused_rather_than_made_white(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="more than 8 bits"):
        streaming.read_image(tmp_path / "deep.png")


def test_a_download_that_fails_says_where_it_looked_and_leaves_nothing(tmp_path, monkeypatch, server):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{server}/gone.tar.gz")
    with pytest.raises(InputError, match=r"looked in .*empty \(\$BNLIB_DATA\), .*`python -m bnlib data cifar10` where"):
        data.load("cifar10", tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_disk_that_fills_while_images_are_kept_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="No space left on device"):
        data._keep("kept", tmp_path, [np.zeros(1)] * 4, ["a", "b"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../x", "tiny-imagenet", "a b", ""])
def test_what_is_no_name_is_so_wherever_images_are_asked_for(name, tmp_path):
    (tmp_path / "tiny-imagenet/train").mkdir(parents=True)
    with pytest.raises(InputError, match="a name of letters, digits and _"):
        data.load(name, tmp_path)


def test_images_too_narrow_for_crops_are_an_error():
    """A sequence padded by four rows above and four below: of nine crops eight would be empty."""
    found = data.load("sequences")
    with pytest.raises(InputError, match=r"images of 1×128 pixels are padded by 4 .* give augment='none'"):
        found.batches(np.arange(8), Config(dataset="sequences", model="resnet1d14"), lambda x: x, torch.device("cpu"))


def test_an_unknown_dataset_is_named_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        data.load("cifar11")


def test_images_of_two_sizes_are_an_error(arrays, tmp_path):
    write_images(tmp_path, arrays)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "cifar10/train/cat/odd.png")
    with pytest.raises(InputError, match="must have one size"):
        data.load("cifar10")


def test_augmentation_equals_torchvisions_pad_crop_and_flip():
    draws = np.random.default_rng(2)
    images = torch.from_numpy(draws.integers(0, 256, (6, 32, 32, 3), np.uint8))
    top, left = torch.tensor([0, 8, 4, 3, 7, 1]), torch.tensor([8, 0, 4, 5, 2, 6])
    flip = torch.tensor([True, False, True, False, True, False])
    padded = torch.nn.functional.pad(images, (0, 0, 4, 4, 4, 4))
    ours = data.crop_and_flip(padded, top, left, flip, (32, 32))
    for i in range(6):
        theirs = tv.crop(tv.pad(images[i].permute(2, 0, 1), [4]), int(top[i]), int(left[i]), 32, 32)
        theirs = tv.horizontal_flip(theirs) if flip[i] else theirs
        assert torch.equal(ours[i].permute(2, 0, 1), theirs)


@needs_cpp
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch rounds twice without AVX2")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("height, width", [(32, 32), (8, 8), (5, 7), (1, 187)])
@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_operation_augments_a_batch_to_the_bits_of_torchs(channels, height, width, border, dtype):
    draws = np.random.default_rng(3)
    images = torch.from_numpy(draws.integers(0, 256, (40, height, width, channels), np.uint8))
    dataset = data.Dataset("drawn", images, torch.zeros(40, dtype=torch.int64), images, images, ("a",), "")
    normalise = data.Normalise(dataset, torch.device("cpu"), dtype)
    index, top, left = (torch.from_numpy(draws.integers(0, end, 33)) for end in (40, 2 * border + 1, 2 * border + 1))
    flip = torch.from_numpy(draws.random(33) < 0.5)
    padded = torch.nn.functional.pad(images[index], (0, 0, *4 * (border,)))
    expected = normalise(data.crop_and_flip(padded, top, left, flip, (height, width)))
    found = torch.ops.bnlib.augment(images, index, top, left, flip, border, normalise.scale, normalise.shift, dtype)
    assert torch.equal(found, expected) and found.is_contiguous(memory_format=torch.channels_last)


@needs_cpp
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch rounds twice without AVX2")
@pytest.mark.parametrize("changed", [{}, {"augment": "none"}, {"image_size": 48}, {"inputs": "raw"}], ids=str)
def test_batches_are_the_same_to_the_bit_without_our_operation(changed, monkeypatch):
    dataset, cpu, found = data.load("digits"), torch.device("cpu"), []
    config = Config(**{"dataset": "digits", "augment": "crop+flip", "n_train": 70, "batch_size": 32} | changed)
    normalise = data.Normalise(dataset, cpu, torch.bfloat16, config.image_size, config.inputs)
    for why_not in ("", "not built"):
        monkeypatch.setattr(native, "why_not", lambda reason=why_not: reason)
        batches = dataset.batches(data.split(config, dataset.n_train)[0], config, normalise, cpu)
        found.append(torch.cat([images for images, _ in batches.epoch(1)]))
    assert torch.equal(*found)


GIVEN = {"images": torch.zeros(6, 8, 8, 3, dtype=torch.uint8), "index": torch.tensor([0, 5]),
         "top": torch.tensor([0, 8]), "left": torch.tensor([8, 0]), "flip": torch.tensor([True, False]), "border": 4,
         "scale": torch.ones(3), "shift": torch.ones(3), "type": torch.float32}


@needs_cpp
@pytest.mark.parametrize("wrong", [{"index": torch.tensor([0, 6])}, {"index": torch.tensor([0, -1])},
                                   {"top": torch.tensor([0, 9])}, {"top": torch.tensor([-1, 0])},
                                   {"left": torch.tensor([9, 0])}, {"left": torch.tensor([-1, 0])}], ids=str)
def test_an_image_or_a_cut_that_is_not_there_is_not_read(wrong):
    with pytest.raises(IndexError, match="beyond"):
        torch.ops.bnlib.augment(*(GIVEN | wrong).values())


@needs_cpp
@pytest.mark.parametrize("wrong", [{"images": GIVEN["images"].float()}, {"images": GIVEN["images"][:, :, ::2]},
                                   {"images": GIVEN["images"][..., :2].contiguous()}, {"scale": torch.ones(1)},
                                   {"index": torch.tensor([0, 5], dtype=torch.int32)}, {"top": torch.tensor([0])},
                                   {"flip": torch.tensor([1, 0])}, {"border": -1}, {"border": 2**62},
                                   {"type": torch.float64}], ids=lambda wrong: next(iter(wrong)))
def test_what_the_operation_would_read_wrongly_is_refused(wrong):
    with pytest.raises(RuntimeError, match="augment: takes"):
        torch.ops.bnlib.augment(*(GIVEN | wrong).values())


def test_an_epoch_shows_every_image_once_and_depends_on_seed_and_epoch_alone(arrays, tmp_path):
    write_npz(tmp_path, arrays)
    dataset, cpu = data.load("cifar10"), torch.device("cpu")
    normalise = data.Normalise(dataset, cpu, torch.float32)

    def labels_and_images(seed, epoch):
        config = Config(seed=seed, batch_size=16, n_train=40)
        batches = data.TrainingBatches(dataset.x_train, torch.arange(40), config, normalise, cpu)
        images, numbers = zip(*batches.epoch(epoch), strict=True)
        return torch.cat(numbers), torch.cat(images)

    numbers, images = labels_and_images(0, 1)
    assert torch.equal(numbers.sort()[0], torch.arange(40))
    again = labels_and_images(0, 1)
    assert torch.equal(again[0], numbers) and torch.equal(again[1], images)
    assert not torch.equal(labels_and_images(0, 2)[0], numbers)
    assert not torch.equal(labels_and_images(1, 1)[0], numbers)


def test_normalised_training_images_have_mean_0_and_deviation_1(arrays, tmp_path):
    write_npz(tmp_path, arrays)
    dataset = data.load("cifar10")
    normalised = data.Normalise(dataset, torch.device("cpu"), torch.float32)(dataset.x_train)
    assert normalised.shape == (40, 3, 32, 32)
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_the_validation_split_is_drawn_by_the_seed_and_shares_no_image_with_training():
    config = Config(n_train=30_000, n_val=5000)
    train, val = data.split(config, 50_000)
    assert (len(train), len(val)) == (30_000, 5000) and not set(train) & set(val)
    assert not np.array_equal(val, data.split(Config(n_train=30_000, n_val=5000, seed=1), 50_000)[1])


def test_the_digits_come_with_scikit_learn():
    digits = data.load("digits")
    assert (len(digits.x_train), len(digits.x_test), digits.x_train.shape[1:]) == (1437, 360, (32, 32, 1))
    assert digits.fingerprint == data.FINGERPRINTS["digits"]


def test_a_channel_that_is_the_same_in_all_images_becomes_zero():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8))
    images[..., 2] = 7
    constant = data.Dataset("two colours", images, torch.zeros(8).long(), images, torch.zeros(8).long(), ("a",), "")
    floats = data.Normalise(constant, torch.device("cpu"), torch.float32)(images)
    assert floats[:, 2].abs().max() < 1e-6 and floats[:, :2].std((0, 2, 3), correction=0) == pytest.approx(1, abs=1e-4)


def test_batches_that_are_augmented_together_are_those_augmented_one_by_one(arrays, tmp_path):
    """As on a GPU; the last batch and the last few taken together are smaller, and an epoch may begin among them."""
    write_npz(tmp_path, arrays)
    dataset, cpu = data.load("cifar10"), torch.device("cpu")
    normalise, found = data.Normalise(dataset, cpu, torch.float32), {}
    config = Config(batch_size=9, n_train=40)
    for together in (1, 2):
        batches = data.TrainingBatches(dataset.x_train, torch.arange(40), config, normalise, cpu)
        batches.together = together
        found[together] = [list(batches.epoch(1)), list(batches.epoch(1, first=1))]
    for ours, theirs in zip(*found.values(), strict=True):
        assert [len(labels) for _, labels in ours] == [9, 9, 9, 9, 4][5 - len(ours):]
        assert all(torch.equal(a, b) for one, other in zip(ours, theirs, strict=True)
                   for a, b in zip(one, other, strict=True))
