"""A dataset as uint8 tensors on the device; augmentation there, batch by batch."""

import contextlib
import difflib
import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bnlib import native, sequences, streaming
from bnlib.config import Config, generator, resolve
from bnlib.names import DATASETS, InputError, dataset_name

PAD = 4        # pixels on each side before the random crop (He et al. 2015, Sec. 4.2)
AHEAD = 2**21  # pixels, at most, that a GPU augments at once: of small images it waits longer for launches

#: SHA-256 over the arrays in canonical order, as `Dataset.fingerprint` gives them for the official files.
FINGERPRINTS = {
    "cifar10": "7aa67db8bf6001034c0c7c11f0fad8cc575081e907ddbff3487d32ee64562550",
    "cifar100": "be7484328bed033a315ff987fa25a53652d00e35eb35a8786b7f97ccc8a1d3cf",
    "mnist": "164126bda9277e11cca23956a53ec66c2f47d2a4e10bb7d9225124a41aca2208",
    "sequences": "9e08e911ac1c468dd243e23ba274587140a4a231394d0d1a4bbe5ad0774ccf87",
    "digits": "c7cde17d7f5d3fa719db0a978904c0728c9ec9670d29667f7fb4361735983504",
}

#: Test images that are training images too, as the official files have them; of Stanford Cars that is not known here.
OVERLAP = {"cifar100": 10, "stanford_cars_64x96": 8_041, "stanford_cars_96x96": 8_041}

#: The folders of torchvision's own files.
TORCHVISION = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "mnist": "MNIST",
               "stanford_cars_64x96": "stanford_cars", "stanford_cars_96x96": "stanford_cars"}

#: What to do for sets that nobody can download without an account, or at all.
_CARS = "put torchvision's folder stanford_cars/ (devkit, cars_train, cars_test and the labels of the test set) there"
MISSING = {"imagenet": "put its folders train/ and val/, a folder of images for each class, into {folder}/imagenet",
           "stanford_cars_64x96": _CARS, "stanford_cars_96x96": _CARS}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in canonical order: sorted by the images' bytes, whatever file they came from."""

    name: str
    x_train: torch.Tensor     # uint8, (N, H, W, C)
    y_train: torch.Tensor     # int64, (N,), indices into `classes`
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: tuple[str, ...]
    fingerprint: str          # SHA-256 over the four arrays

    @property
    def n_train(self) -> int:
        return len(self.x_train)

    def batches(self, indices: np.ndarray, config: Config, normalise: "Normalise",
                device: torch.device) -> "TrainingBatches":
        """The training images at `indices` for the epochs of one run."""
        return TrainingBatches(*self.part(indices), config, normalise, device)

    def in_order(self, part: str, device: torch.device, image_size: int | None = None,
                 indices: np.ndarray | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The images and labels of `train` (those at `indices`) or `test` in their order, on the device, in batches.

        As they are; `Normalise` enlarges those that a network wants at another `image_size`.
        """
        images, labels = ((self.x_test, self.y_test) if part == "test" else
                          self.part(np.arange(self.n_train) if indices is None else indices))
        return in_order(images.to(device), labels.to(device))

    def part(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The training images and labels at `indices`; all of them without a copy."""
        if np.array_equal(indices, np.arange(len(self.x_train))):
            return self.x_train, self.y_train
        return self.x_train[indices], self.y_train[indices]

    @cached_property
    def moments(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over all training images, in [0, 1]; exact, from counts."""
        value, mean, std = np.arange(256) / 255, [], []
        for channel in self.x_train.numpy().transpose(3, 0, 1, 2):
            parts = np.array_split(channel, 50)                     # bincount widens its input: keep that small
            share = sum(np.bincount(part.ravel(), minlength=256) for part in parts) / channel.size
            mean.append(float(share @ value))
            std.append(float(np.sqrt(max(0, share @ value**2 - mean[-1] ** 2))))
        return mean, std


def in_order(images: torch.Tensor, labels: torch.Tensor, size: int = 500) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels cut into batches without a copy, as `train.evaluate` takes them."""
    return list(zip(images.split(size), labels.split(size), strict=True))


# ------------------------------------------------------------------------------------------- loading

def load(name: str, root: str | Path | None = None) -> Dataset | streaming.Folder:
    """The dataset `name` from the first place that has it, in canonical order and checked.

    Looks in `root` (else `$BNLIB_DATA`, else `data/`) for `<name>.npz`, torchvision's own files, and an image
    folder `<name>/{train,test}/<class>/` of one size; CIFAR and MNIST are downloaded last of all. `digits` comes with
    scikit-learn, `sequences` with this library. A folder `<name>/{train,val}/<class>/` of any sizes, such as ImageNet,
    is not held in memory but streamed from disk.
    Raises InputError for what is no name, where nothing is found or may be read, or where what is found is not the
    official set.
    """
    return _load(dataset_name(name), _root(root))


@lru_cache(maxsize=1)
def _load(name: str, folder: Path) -> Dataset | streaming.Folder:
    try:
        if found := _streamed(name, folder):
            if name in FINGERPRINTS:
                raise InputError(f"{folder / name}: other images under the name of the official {name}; give the "
                                 "folder another name")
            return found
        for source in (_from_scikit_learn, _from_sequences, _from_npz, _from_torchvision, _from_stanford_cars,
                       _from_image_folder, _from_download):
            found = source(name, folder)
            if found is not None:
                return _canonical(name, *found)
    except PermissionError as error:
        raise InputError(f"{error.filename}: may not be read; $BNLIB_DATA must be a folder that may") from None
    except ModuleNotFoundError as error:
        raise InputError(f"{name}: not at {folder / name}.npz, and other sources need {error.name}: "
                         "`pip install -e '.[report]'` has it") from None
    if name in MISSING:
        raise InputError(f"{name} not found: looked in {_where(folder)}; {MISSING[name].format(folder=folder)}")
    near = difflib.get_close_matches(name, DATASETS, n=1)
    raise InputError(f"dataset={name!r}: neither one of {', '.join(DATASETS)} nor found as {name}.npz or as the folder "
                     f"{name}/train in {folder}" + (f"; did you mean {near[0]!r}?" if near else ""))


def at_hand(name: str) -> bool:
    """Whether `load(name)` finds the set here, without a download."""
    places = (f"{name}.npz", TORCHVISION.get(name, f"{name}/train"), f"{name}/train")
    return name in ("digits", "sequences", "large_digits") or any(
        os.path.exists(_root() / place) for place in places)         # Path.exists raises if not allowed


def obtainable(name: str) -> bool:
    """Whether `load(name)` finds the set here or downloads it, as anybody may."""
    return at_hand(name) or (name in TORCHVISION and name not in MISSING)


def _root(root: str | Path | None = None) -> Path:
    return resolve(root or os.environ.get("BNLIB_DATA") or "data")


def _where(folder: Path) -> str:
    """Where a set was looked for, and by whose word."""
    return f"{folder} ($BNLIB_DATA)" if os.environ.get("BNLIB_DATA") else f"$BNLIB_DATA (unset) and {folder}"


def _streamed(name, folder) -> streaming.Folder | None:
    if name == "large_digits":
        place = resolve("build") / name
        if not place.exists():
            streaming.make_digits(place)
        return streaming.find(name, place)
    return streaming.find(name, folder / name)


def _from_scikit_learn(name, folder):
    if name != "digits":
        return None
    from sklearn.datasets import load_digits
    digits = load_digits()
    images = np.kron(digits.images, np.ones((4, 4))) * (255 / 16)          # 8×8 pixels of 0–16 → 32×32 of 0–255
    images, labels = images.round().astype(np.uint8), digits.target
    test = np.arange(len(images)) % 5 == 0
    return "scikit-learn", (images[~test], labels[~test], images[test], labels[test]), map(str, range(10))


def _from_sequences(name, folder):
    return ("bnlib.sequences", *sequences.make()) if name == "sequences" else None


def _from_npz(name, folder):
    file = folder / f"{name}.npz"
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as npz:
            arrays = [npz[key] for key in ("x_train", "y_train", "x_test", "y_test")]
            return file, arrays, npz["classes"]
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file} is damaged ({error}); expected arrays x_train, y_train, x_test, y_test and "
                         "classes: remove it and fetch it again") from None


def _torchvision_class(name):
    from torchvision import datasets
    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "mnist": datasets.MNIST}.get(name)


def _from_torchvision(name, folder):
    inside = TORCHVISION.get(name)
    if inside in (None, "stanford_cars") or not (folder / inside).is_dir():
        return None
    try:                     # of CIFAR torchvision compares each file's checksum first, of MNIST it looks for the files
        train, test = (_torchvision_class(name)(folder, train=train, download=False) for train in (True, False))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{folder / inside} is damaged or incomplete ({error}); expected torchvision's own files: "
                         "remove it and fetch it again") from None
    return folder / inside, _arrays(train, test), train.classes


def _arrays(train, test) -> list[np.ndarray]:
    """Images and labels of torchvision's two parts of a set: x_train, y_train, x_test, y_test."""
    return [np.asarray(a) for a in (train.data, train.targets, test.data, test.targets)]


def _keep(name, folder, arrays, classes) -> Path:
    """The arrays as `<name>.npz`, which is there whole or not at all."""
    file = folder / f"{name}.npz"
    with _within(folder) as partial:
        try:
            np.savez(Path(partial) / file.name, classes=np.array(classes),
                     **dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True)))
            os.replace(Path(partial) / file.name, file)
        except OSError as error:
            raise InputError(f"{file}: cannot be written ({error.strerror}); it needs room there") from None
    return file


@contextlib.contextmanager
def _within(folder) -> Iterator[str]:
    """A folder for the time being inside this one, which is made where it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); set $BNLIB_DATA to a folder that can"
                         ) from None
    with partial as name:
        yield name


def _from_stanford_cars(name, folder):
    """Stanford Cars (Krause et al. 2013): each car cut out by its box, grey, resized to the pixels that `name` ends in.

    Through torchvision's loader; the box is what the loader leaves out. Kept as `<name>.npz`, since to read 16,185
    photographs takes minutes.
    """
    if TORCHVISION.get(name) != "stanford_cars" or not (folder / "stanford_cars").is_dir():
        return None
    from scipy.io import loadmat
    from torchvision.datasets import StanfordCars
    height, width = map(int, name.removeprefix("stanford_cars_").split("x"))
    arrays = []
    for part, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        try:
            cars = StanfordCars(folder, split=part, loader=Path)           # gives where an image is, and its label
            notes = loadmat(folder / "stanford_cars" / file, squeeze_me=True)["annotations"]
            boxes = {str(note["fname"]): [int(note[f"bbox_{side}"]) for side in ("x1", "y1", "x2", "y2")]
                     for note in notes}
        except (RuntimeError, OSError, LookupError, ValueError) as error:
            raise InputError(f"{folder / 'stanford_cars'} is damaged or incomplete ({error}); expected torchvision's "
                             "layout: devkit/, cars_train/, cars_test/, cars_test_annos_withlabels.mat") from None
        arrays += [np.stack([_cut_out(image, boxes[image.name], (width, height)) for image, _ in cars]),
                   np.array([label for _, label in cars])]
    return _keep(name, folder, arrays, cars.classes), arrays, cars.classes


def _cut_out(file, box: list[int], size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W): the box (x1, y1, x2, y2, counted from 1, both corners in it) of a photograph, in grey."""
    left, top, right, bottom = box
    return np.asarray(streaming.read_image(file).convert("L").crop((left - 1, top - 1, right, bottom)).resize(
        size, resample=2))                                                   # bilinear, over all pixels


def _from_image_folder(name, folder):
    if not (folder / name / "train").is_dir():
        return None
    from torchvision.datasets import ImageFolder
    try:
        train, test = (ImageFolder(folder / name / part, loader=lambda file: np.asarray(
            streaming.read_image(file, keep_grey=True))) for part in ("train", "test"))
    except FileNotFoundError as error:
        raise InputError(f"{folder / name}: {error}; expected {{train,test}}/<class>/*.png") from None
    if train.classes != test.classes:
        raise InputError(f"{folder / name}: train has the classes {', '.join(train.classes)}; test has "
                         f"{', '.join(test.classes)}; they must be the same")
    arrays, shapes = [], {}
    for part in (train, test):
        images = [image for image, _ in part]
        shapes |= {image.shape: file for image, (file, _) in zip(images, part.samples, strict=True)}
        if len(shapes) > 1:
            raise InputError(f"{folder / name}: images must have one size and be all grey or all in colour; found "
                             + ", ".join(f"{shape} ({file})" for shape, file in sorted(shapes.items())))
        arrays += [np.stack(images), np.array(part.targets)]
    return folder / name, arrays, train.classes


def _from_download(name, folder):
    if _torchvision_class(name) is None:
        return None
    with _within(folder) as partial:                   # nothing half-written is left behind
        try:
            train, test = (_torchvision_class(name)(partial, train=train, download=True) for train in (True, False))
        except (OSError, RuntimeError) as error:
            raise InputError(f"{name} not found: looked in {_where(folder)}, and the download failed ({error}); run "
                             f"`python -m bnlib data {name}` where there is a network, or put {name}.npz or "
                             "torchvision's files there yourself") from None
    arrays = _arrays(train, test)
    return _keep(name, folder, arrays, train.classes), arrays, train.classes


def _canonical(name, place, arrays, classes) -> Dataset:
    """The arrays sorted and checked against the known fingerprint, so that a seed sees the same batches everywhere."""
    if isinstance(classes, np.ndarray) and classes.ndim != 1:
        raise InputError(f"{place}: classes has the shape {np.shape(classes)}; expected the name of each class")
    classes, tensors, digest, seen = tuple(map(str, classes)), [], hashlib.sha256(), []
    for part, x, y in (("train", *arrays[:2]), ("test", *arrays[2:])):
        shaped = x.ndim in (3, 4) and x.shape[3:] in ((), (1,), (3,)) and y.shape == x.shape[:1] and len(x) > 0
        if x.dtype != np.uint8 or y.dtype.kind not in "iu" or not shaped:
            raise InputError(f"{place}: {part} holds {x.dtype} images {x.shape} and {y.dtype} labels {y.shape}; "
                             "expected uint8, (N, H, W) or (N, H, W, 3), and whole numbers, (N,), N at least 1")
        x, y = x.reshape(*x.shape[:3], -1), y.astype(np.int64)
        if y.min() < 0 or y.max() >= len(classes):
            raise InputError(f"{place}: {part} has labels {y.min()} to {y.max()}; expected 0 to {len(classes) - 1}")
        rows = np.hstack([x.reshape(len(x), -1), y.astype(">u2").view(np.uint8).reshape(-1, 2)])
        order = np.argsort(rows.view(f"S{rows.shape[1]}").ravel(), kind="stable")
        x, y = np.ascontiguousarray(x[order]), y[order]
        seen.append({hashlib.blake2b(image.data).digest() for image in x})
        digest.update(f"{x.shape}".encode() + x.tobytes() + y.tobytes())
        tensors += [torch.from_numpy(x), torch.from_numpy(y)]
    sizes = [tuple(tensor.shape[1:]) for tensor in tensors[::2]]
    if sizes[0] != sizes[1]:
        raise InputError(f"{place}: training images are {sizes[0]}, test images {sizes[1]}; expected one size, all "
                         "grey or all in colour")
    expected = FINGERPRINTS.get(name, digest.hexdigest())
    if digest.hexdigest() != expected:
        raise InputError(f"{place} is not the official {name}: fingerprint {digest.hexdigest()[:16]}…, expected "
                         f"{expected[:16]}…; some pixel or label differs: remove it and fetch it again")
    if (overlap := len(seen[0] & seen[1])) > OVERLAP.get(name, 0):
        raise InputError(f"{place}: {overlap} test images are training images too; accuracy on them is no test")
    return Dataset(name, *tensors, classes, digest.hexdigest())


# ------------------------------------------------------------------------------------------- batches

def split(config: Config, available: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, validation) into the training set, drawn by the seed; both sorted."""
    config.check_sizes(available)
    n_train = config.n_train or available - config.n_val
    order = generator(config.seed, "split").permutation(available)
    return np.sort(order[config.n_val:config.n_val + n_train]), np.sort(order[:config.n_val])


class Normalise:
    """uint8 images (N, H, W, C) → floats (N, 3, H, W), channels-last.

    inputs: `own`: mean 0 and deviation 1 over the training set, or 0 of a channel that is the same in all images; of a
    streamed set with ImageNet's moments;
    `imagenet`: with ImageNet's moments (for grey images those of red); `unit`: from 0 to 1; `raw`: from 0 to 255. Grey
    images are repeated over three channels, so that one network takes every set. image_size: pixels a side to which
    images of another size are enlarged, bilinearly.
    """

    def __init__(self, dataset: Dataset | streaming.Folder, device: torch.device, dtype: torch.dtype,
                 image_size: int | None = None, inputs: str = "own"):
        self.dtype, self.image_size = dtype, image_size
        moments = {"own": dataset.moments, "imagenet": streaming.MOMENTS, "unit": ([0.0], [1.0]),
                   "raw": ([0.0], [1 / 255])}
        channels = len(dataset.moments[0])
        mean, std = ((torch.tensor(moment, device=device) * torch.ones(3, device=device))[:channels]
                     for moment in moments[inputs])
        std = torch.where(std > 1e-6, std, 1)
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        width = images.shape[2]                     # whole rows at a time: broadcasting over 3 values is slow on a CPU
        rows = torch.addcmul(self.shift.repeat(width), images.flatten(2).float(), self.scale.repeat(width))
        floats = rows.to(self.dtype).view(images.shape)
        floats = floats.expand(-1, -1, -1, 3).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        if self.keeps(floats.shape[2:]):
            return floats
        return F.interpolate(floats, (self.image_size, self.image_size), mode="bilinear")

    def keeps(self, size: tuple[int, int]) -> bool:
        """Whether images of this size stay as large as they are."""
        return self.image_size is None or tuple(size) == (self.image_size, self.image_size)


def crop_and_flip(padded: torch.Tensor, top, left, flip, size: tuple[int, int]) -> torch.Tensor:
    """Each image i of `padded` (N, H', W', C) cut at (`top[i]`, `left[i]`) to `size`, mirrored where `flip[i]`.

    One gather for the whole batch; equals torchvision's pad, crop and flip at the same offsets.
    """
    (height, width), image = size, torch.arange(len(padded), device=padded.device)
    rows = image[:, None] * padded.shape[1] + top[:, None] + torch.arange(height, device=padded.device)
    columns = torch.arange(width, device=padded.device).expand(len(padded), width)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)
    pixels = rows[:, :, None] * padded.shape[2] + columns[:, None, :]
    return padded.view(-1, padded.shape[3]).index_select(0, pixels.view(-1)).view(*pixels.shape, -1)


class TrainingBatches:
    """The training images of one run, on the device; iterating over `epoch(k)` gives (images, labels) batches.

    Order, crops and flips of an epoch are drawn by (seed, epoch) alone, so that a resumed run goes on with the
    same batches. Where the set is augmented once, each image has the crop and flip of epoch 0 in every epoch.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, config: Config, normalise: Normalise,
                 device: torch.device):
        self.config, self.normalise, self.device = config, normalise, device
        self.size, self.pad = tuple(images.shape[1:3]), PAD if "crop" in config.augment else 0
        if self.pad >= min(self.size):                 # most crops would hold nothing of an image
            raise InputError(f"augment={config.augment!r}: images of {self.size[0]}×{self.size[1]} pixels are padded "
                             f"by {PAD} on each side, and crops hold little of them; give augment='none'")
        self.images, self.labels = images.to(device).contiguous(), labels.to(device)
        pixels = config.batch_size * max(self.size[0] * self.size[1], (config.image_size or 0)**2)
        self.together = max(1, AHEAD // pixels) if device.type == "cuda" else 1            # batches augmented at once

    def __len__(self) -> int:
        return -(-len(self.labels) // self.config.batch_size)

    def draw(self, epoch: int) -> tuple[np.ndarray, ...]:
        """The order of the images in an epoch; and in this order row and column at which each is cut, and its flip."""
        draws, n = generator(self.config.seed, "batches", epoch), len(self.labels)
        order = draws.permutation(n)
        top, left = draws.integers(0, 2 * self.pad + 1, (2, n))
        flip = draws.random(n) < 0.5 * ("flip" in self.config.augment)
        if epoch and "once" in self.config.augment:
            top, left, flip = (drawn[order] for drawn in self.draw(0)[1:])
        return order, top, left, flip

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch (1, 2, …), from batch number `first` on (0, 1, …)."""
        done = first * self.config.batch_size
        columns = [torch.from_numpy(a[done:]).to(self.device, non_blocking=True) for a in self.draw(epoch)]
        size = self.config.batch_size
        for index, *offsets in zip(*(c.split(self.together * size) for c in columns), strict=True):
            yield from zip(self.augment(index, *offsets).split(size), self.labels[index].split(size), strict=True)

    def augment(self, index: torch.Tensor, top, left, flip) -> torch.Tensor:
        """The images at `index`, (N,), padded, cut, mirrored and normalised: (N, 3, H, W). On a CPU, unless they are to
        be enlarged, by one operation of ours (`native/layers.cpp`), to the bits of torch's with AVX2 or AVX-512."""
        normalise = self.normalise
        if self.device.type == "cpu" and normalise.keeps(self.size) and not native.why_not():
            return torch.ops.bnlib.augment(self.images, index, top, left, flip, self.pad, normalise.scale,
                                           normalise.shift, normalise.dtype)
        padded = F.pad(self.images.index_select(0, index), (0, 0, *4 * (self.pad,)))
        return normalise(crop_and_flip(padded, top, left, flip, self.size))
