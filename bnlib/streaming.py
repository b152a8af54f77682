"""Folders of images of any sizes, such as ImageNet: decoded by worker processes while the network trains."""

import hashlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from bnlib.config import Config, generator
from bnlib.device import cores
from bnlib.names import InputError
from bnlib.stop import ENDING

IMAGE_SIZE = 224                                          # pixels a side where no other size is asked for
MOMENTS = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]    # ImageNet's mean and deviation, as torchvision has them
EVALUATED = 250                                           # images a batch of an evaluation


@dataclass(frozen=True, eq=False)
class Folder:
    """`<place>/train/<class>/…` and `<place>/val/<class>/…`: images of any sizes, grey or in colour, read when needed.

    The images in `val` are the test set, as everywhere with ImageNet. An image's index is its place among the sorted
    paths. Order, crop and flip follow from seed, epoch and index alone, however many workers there are.
    """

    name: str
    place: Path
    classes: tuple[str, ...]
    train: np.ndarray         # paths below `place` as bytes, (N,), sorted
    y_train: torch.Tensor     # int64, (N,), indices into `classes`
    test: np.ndarray
    y_test: torch.Tensor

    moments = MOMENTS

    @property
    def n_train(self) -> int:
        return len(self.train)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted relative paths of all images and their sizes in bytes.

        Not over their pixels: to read the 150 GB of ImageNet would take hours.
        """
        digest = hashlib.sha256()
        for file in self.train.tolist() + self.test.tolist():
            digest.update(file + b"\0%d\n" % os.path.getsize(os.fsencode(self.place) + b"/" + file))
        return digest.hexdigest()

    def batches(self, indices: np.ndarray, config: Config, normalise, device: torch.device) -> "StreamedBatches":
        """The training images at `indices` for the epochs of one run."""
        return StreamedBatches(self, indices, config, normalise, device)

    def in_order(self, part: str, device: torch.device, image_size: int | None = None,
                 indices: np.ndarray | None = None) -> "InOrder":
        """The images of `train` or `test` (those at `indices`) in their order: middle square, not augmented."""
        return InOrder(Images(self, part, image_size), device, np.arange(len(getattr(self, part)))
                       if indices is None else indices)


class Images(torch.utils.data.Dataset):
    """What workers do: (epoch, index) → uint8 image (S, S, 3), cut and resized by torchvision's transforms, and label.

    augment: `crop`: a random part of 8 to 100 % of the image (Szegedy et al. 2015), `flip`: mirrored in one half of the
    cases; else the shorter side becomes 8/7 of S (256 for 224), of which the middle stays. `once`: as in epoch 0.
    """

    def __init__(self, folder: Folder, part: str, image_size: int | None, augment: str = "none", seed: int = 0):
        from torchvision.transforms import v2
        self.size = size = image_size or IMAGE_SIZE
        self.place, self.files, self.labels = folder.place, getattr(folder, part), getattr(folder, f"y_{part}")
        self.augment, self.seed = augment, seed
        middle = [v2.Resize(round(size * 8 / 7)), v2.CenterCrop(size)]
        self.transform = v2.Compose([*([v2.RandomResizedCrop(size)] if "crop" in augment else middle),
                                     *([v2.RandomHorizontalFlip()] if "flip" in augment else [])])

    def __getitem__(self, at: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor] | InputError:
        epoch, index = map(int, at)
        epoch = 0 if "once" in self.augment else epoch
        try:
            image = read_image(self.place / os.fsdecode(self.files[index]))
        except InputError as error:          # handed to the caller: raised here it would come with a worker's traceback
            return error
        with torch.random.fork_rng(devices=[]):             # torchvision draws from torch's global state
            torch.default_generator.manual_seed(int(generator(self.seed, "image", epoch, index).integers(2**63)))
            pixels = np.array(self.transform(image))
        return torch.from_numpy(pixels), self.labels[index]


def read_image(file: str | Path, keep_grey: bool = False):
    """The image in a file as PIL's, in RGB or, where it is so and is to stay, grey; InputError for a file that is none.

    Transparency is dropped, palettes are resolved.
    """
    from PIL import Image
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):        # PIL would make white of nearly all of it
                raise ValueError("it has more than 8 bits a channel; convert it")
            return image.convert("L" if keep_grey and image.mode in ("1", "L") else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} is damaged or no image ({error})".replace("\n", " ")) from None


# -------------------------------------------------------------------------------------------- batches

def loaded(images: Images, batches: list[list[tuple[int, int]]], device: torch.device) -> Iterator:
    """These batches, (epoch, index) of each image, decoded ahead by `workers()` processes: uint8 (N, S, S, 3), (N,).

    Raises InputError, naming the file, for an image that cannot be read.
    """
    loader = DataLoader(images, batch_sampler=batches, num_workers=workers(), collate_fn=_stack,
                        worker_init_fn=_heed_parent, pin_memory=device.type == "cuda", generator=torch.Generator())
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)              # and so workers begin with both blocked
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        yield tuple(tensor.to(device, non_blocking=True) for tensor in batch)


def workers() -> int:
    """How many processes decode: `$BNLIB_WORKERS`, else one for each core that this process may use but one; of
    several that torchrun started here each has its part of them.

    0, so that decoding takes turns with training, in a process that may have no children, as a Dask worker's.
    """
    if multiprocessing.current_process().daemon:
        return 0
    ours = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    asked = os.environ.get("BNLIB_WORKERS") or str(max(1, ours - 1))
    if not asked.isdecimal():
        raise InputError(f"BNLIB_WORKERS={asked!r}: must be a number of processes, 0 or more")
    return int(asked)


def _stack(items: list):
    broken = next((item for item in items if isinstance(item, InputError)), None)
    return broken or tuple(torch.stack(column) for column in zip(*items, strict=True))


def _heed_parent(worker: int) -> None:
    """A worker ends when the training process asks it to, or is gone.

    Ctrl-C and the end of a job reach workers too: these they leave to the training process, which needs them until it
    has saved a checkpoint. The two kinds of SIGTERM differ in who sent them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_end_by, args=(multiprocessing.parent_process().pid,), daemon=True).start()
    else:                                                      # macOS does not say who sent it: whoever it was, it ends
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _end_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _cut(rows: list, size: int) -> list[list]:
    return [rows[first:first + size] for first in range(0, len(rows), size)]


class StreamedBatches:
    """The training images of one run, from disk; `epoch(k)` gives (images, labels) as `data.TrainingBatches` does."""

    def __init__(self, folder: Folder, indices: np.ndarray, config: Config, normalise, device: torch.device):
        self.config, self.normalise, self.device, self.indices = config, normalise, device, indices
        self.labels = folder.y_train[indices]
        self.images = Images(folder, "train", config.image_size, config.augment, config.seed)
        self.size = (self.images.size, self.images.size)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.config.batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch (1, 2, …), from batch number `first` on (0, 1, …)."""
        order = generator(self.config.seed, "batches", epoch).permutation(self.indices).tolist()
        batches = _cut([(epoch, index) for index in order], self.config.batch_size)[first:]
        for images, labels in loaded(self.images, batches, self.device):
            yield self.normalise(images), labels


class InOrder:
    """Images and labels in order, read anew at every pass over them."""

    def __init__(self, images: Images, device: torch.device, indices: np.ndarray):
        self.images, self.device, self.indices = images, device, indices

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return loaded(self.images, _cut([(0, index) for index in self.indices.tolist()], EVALUATED), self.device)


def speed(folder: Folder, images: int = 1000) -> float:
    """Training images decoded, cropped and mirrored in a second, measured on so many of them."""
    batches = folder.batches(np.arange(min(images, folder.n_train)), Config(batch_size=50), lambda x: x,
                             torch.device("cpu")).epoch(1)
    began = time.time()
    return sum(len(labels) for _, labels in batches) / (time.time() - began)


# -------------------------------------------------------------------------------------------- folders

def find(name: str, place: Path) -> Folder | None:
    """The image folder at `place`, or None where there is none with `train` and `val`.

    Raises InputError unless both have the same classes, and an image in each, and where `test` has their classes too.
    """
    if not ((place / "train").is_dir() and (place / "val").is_dir()):
        return None
    from torchvision.datasets import ImageFolder
    try:
        train, val = (ImageFolder(place / part) for part in ("train", "val"))
    except FileNotFoundError as error:
        raise InputError(f"{place}: {str(error).splitlines()[0]}; expected {{train,val}}/<class>/ "
                         "with images") from None
    if train.classes != val.classes:
        only = [f"{part} alone has {', '.join(sorted(extra)[:3])}" for part, extra in (
            ("train", set(train.classes) - set(val.classes)), ("val", set(val.classes) - set(train.classes))) if extra]
        raise InputError(f"{place}: train and val must have the same classes, a folder each; {'; '.join(only)}")
    if any((place / "test" / name).is_dir() for name in train.classes):       # else it has no labels, as ImageNet's own
        raise InputError(f"{place}: has classes in train, val and test, and would be tested on val; move val away to "
                         "test on test (images of one small size), or test to test on val (of any sizes)")
    columns = []
    for part in (train, val):
        rows = sorted((os.fsencode(os.path.relpath(file, place)), label) for file, label in part.samples)
        columns += [np.array([file for file, _ in rows]), torch.tensor([label for _, label in rows])]
    return Folder(name, place, tuple(train.classes), *columns)


def make_digits(place: Path) -> None:
    """Writes the demo's folder of images: scikit-learn's digits, each enlarged to a size and in colours of its own.

    20 classes, ten digits brighter or darker than their background, each with 24 images to train on and 8 to test.
    Whole or not at all.
    """
    from PIL import Image
    from sklearn.datasets import load_digits
    digits, draws = load_digits(), np.random.default_rng(0)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as partial:
        for digit in range(10):
            drawings = digits.images[digits.target == digit][:64] / 16
            for number, drawing in enumerate(drawings):
                bright, part = number % 2, "train" if number < 48 else "val"
                dark, light = draws.integers(0, 100, 3), draws.integers(156, 256, 3)
                back, ink = (dark, light) if bright else (light, dark)
                pixels = (back + drawing[:, :, None] * (ink.astype(int) - back)).astype(np.uint8)
                folder = Path(partial) / "made" / part / f"{digit} {'bright' if bright else 'dark'}"
                folder.mkdir(parents=True, exist_ok=True)
                size = tuple(int(side) for side in draws.integers(40, 100, 2))
                Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
        try:
            os.replace(Path(partial) / "made", place)
        except OSError:
            if not place.exists():                       # else another process has made it meanwhile
                raise
