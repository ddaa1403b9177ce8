"""The images: found, fetched, verified and loaded; the paper's split and its nested subsets.

A data set is a folder in the layout of CIFAR-10's python version, known by the MD5 of each of its
files (``config.DATASETS``). CIFAR-10 is looked for in ``$CIFAR10_ROOT``, then in ``data/``; the
stand-in set is generated into ``data/`` when it is first asked for.
"""

import base64
import contextlib
import hashlib
import io
import math
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from cifarlib import paths, synthetic
from cifarlib.checking import named_folder, read_bytes
from cifarlib.config import DATASETS, DataConfig, DatasetInfo, SplitName
from cifarlib.errors import DataError

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"  # of the archive, published on the same page

SHAPE = (3, 32, 32)  # channels, rows, columns
BLOCK = 1 << 20  # bytes read at a time
TIMEOUT = 30  # s without an answer


@dataclass(frozen=True)
class Images:
    """Images of one set: uint8 (n, 3, 32, 32) and int64 class labels (n,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


# ---------------------------------------------------------------------------------------------
# Where the files are
# ---------------------------------------------------------------------------------------------


def find(name: str) -> Path:
    """The folder of a data set, every file of it verified; the stand-in set is made if missing.

    Raises ``DataError`` when the set is missing, or one of its files is missing or damaged.
    """
    info = _info(name)
    folder = _find(info)
    verify(info, folder)
    return folder


def _find(info: DatasetInfo) -> Path:
    folder, places = _locate(info)
    if folder is None and info.real:
        looked = " or ".join(map(str, places))
        raise DataError(
            f"{info.title} was not found at {looked}; `cifarlib data --download` fetches it"
        )
    return folder or _put(info, places[-1], synthetic.write)


def _info(name: str) -> DatasetInfo:
    if name not in DATASETS:
        raise DataError(f"there is no data set {name!r}; known are {', '.join(sorted(DATASETS))}")
    return DATASETS[name]


def _locate(info: DatasetInfo, root: Path | None = None) -> tuple[Path | None, list[Path]]:
    """The first place that holds a file of a data set, and all that are looked at; in ``root`` only
    where it is named."""
    named = root or (named_folder("CIFAR10_ROOT") if info.real else None)
    places = [named, named / info.folder] if named else []
    if not root:
        places.append(paths.DATA / info.folder)
    try:
        for place in places:
            if any((place / name).is_file() for name in info.files):
                return place, places
    except OSError as error:
        raise DataError(f"{error.filename} cannot be looked at: {error.strerror}") from error
    return None, places


# ---------------------------------------------------------------------------------------------
# Verification
# ---------------------------------------------------------------------------------------------


def verify(info: DatasetInfo, folder: Path) -> None:
    """Compare every file's MD5 with the pinned one.

    Raises ``DataError`` at the first that is missing, cannot be read or differs.
    """
    for name in info.files:
        _read_verified(info, folder / name)


def _read_verified(info: DatasetInfo, path: Path) -> bytes:
    """The content of one file of a data set, which is known by its MD5."""
    expected = info.files[path.name]
    again = "delete the folder, it is generated again"
    try:
        content = read_bytes(path)
    except FileNotFoundError as error:
        cure = "`cifarlib data --download` fetches it" if info.real else again
        raise DataError(f"{path} is missing; {cure}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        cure = "delete it and run `cifarlib data --download`" if info.real else again
        raise DataError(
            f"{path} is damaged: its MD5 is {found} ({len(content)} bytes) instead of {expected}; "
            f"{cure}"
        )
    return content


# ---------------------------------------------------------------------------------------------
# Putting files into place
# ---------------------------------------------------------------------------------------------


def download(
    name: str = "cifar10",
    root: Path | None = None,
    url: str = CIFAR10_URL,
    *,
    md5: str = CIFAR10_MD5,
) -> Path:
    """Fetch a data set's archive, check it, and put its files into place; its folder.

    This mends the copy in ``root``, or makes one there; without ``root`` it mends the copy that
    ``find`` would use, or makes one in ``data/``. A good copy is left alone. A bar shows progress
    where standard error is a terminal.
    Raises ``DataError`` when the download or the disk fails; nothing half-done stays behind.
    """
    info = _info(name)
    if not info.real:
        return find(name)
    found, places = _locate(info, root)
    return _put(info, found or places[-1], lambda folder: _fetch(info, folder, url, md5))


def _fetch(info: DatasetInfo, folder: Path, url: str, md5: str) -> None:
    """Fetch a data set's files; raises ``DataError`` unless the archive is whole and right."""
    import pooch
    from requests.exceptions import RequestException
    from tqdm import tqdm

    name = url.rpartition("/")[2]
    bar = tqdm(total=1, unit="B", unit_scale=True, desc=name, disable=None)  # pooch sets total
    downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=BLOCK, timeout=TIMEOUT)
    unpack = pooch.Untar([f"{info.folder}/{file}" for file in info.files], extract_dir=".")
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(url, f"md5:{md5}", "archive", folder.parent, unpack, downloader)
    except RequestException as error:
        cause: BaseException = error
        while cause.__context__:
            cause = cause.__context__
        raise DataError(
            f"{url} cannot be fetched: {getattr(cause, 'strerror', None) or cause}; check the "
            "network, or put the files of the data set into place by hand"
        ) from error
    except ValueError as error:  # pooch's word for a hash that differs
        raise DataError(
            f"the download of {url} is damaged: its MD5 is not {md5}; try again"
        ) from error


def install(name: str, root: Path, read: Callable[[str], bytes]) -> Path:
    """Put a data set's files, each ``read`` by its name, into a folder under ``root``; its folder.

    A good copy there is left alone. Raises ``DataError`` where what was read is not that data set,
    or the disk fails; nothing half-done stays behind.
    """
    info = _info(name)
    target = root / info.folder

    def write(folder: Path) -> None:
        folder.mkdir()
        for file in info.files:
            (folder / file).write_bytes(read(file))

    return _put(info, target, write)


DAY = 24 * 3600  # s


def _put(info: DatasetInfo, target: Path, write: Callable[[Path], None]) -> Path:
    """Let a function write a data set's files into a new folder; verified, they move into place.

    A good copy there is left alone. Of several processes at once, one's result stays. What a killed
    one left is removed a day later.
    """
    with contextlib.suppress(DataError):
        verify(info, target)
        return target
    place = target if target.is_dir() else target.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        for left in place.glob(f".{target.name}-*"):
            with contextlib.suppress(OSError):  # another process may have removed it
                if time.time() - left.stat().st_mtime > DAY:
                    shutil.rmtree(left)
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}-", dir=place, ignore_cleanup_errors=True
        ) as temporary:
            source = Path(temporary) / info.folder
            write(source)
            verify(info, source)
            try:
                source.rename(target)
            except OSError:  # where a folder stands already, each of the files replaces its own
                for file in sorted(source.iterdir()):
                    file.replace(target / file.name)
    except OSError as error:
        raise DataError(
            f"{target} cannot be written: {error.strerror or error}; "
            "make room or give write permission there"
        ) from error
    return target


# ---------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def load(name: str) -> tuple[Images, Images]:
    """All training images, in the order of the files, and all test images."""
    info = _info(name)
    folder = _find(info)
    return _read_images(info, folder, info.train_files), _read_images(info, folder, info.test_files)


def _read_images(info: DatasetInfo, folder: Path, names: Iterable[str]) -> Images:
    # Unpickled is only what has the pinned MD5: no code comes from another file.
    batches = [
        pickle.loads(_read_verified(info, folder / name), encoding="bytes") for name in names
    ]
    pixels = [np.frombuffer(batch[b"data"], dtype=np.uint8) for batch in batches]
    labels = [np.array(batch[b"labels"], dtype=np.int64) for batch in batches]
    return Images(np.concatenate(pixels).reshape(-1, *SHAPE), np.concatenate(labels))


# ---------------------------------------------------------------------------------------------
# Splits and subsets
# ---------------------------------------------------------------------------------------------


def split(labels: np.ndarray, seed: int = 42) -> tuple[np.ndarray, np.ndarray]:
    """Indices that train (90 %) and that validate (10 %), as in Listing 2, ``dataset_split``.

    The listing asks for the training part as scikit-learn's *test* part.
    """
    from sklearn.model_selection import StratifiedShuffleSplit

    splitter = StratifiedShuffleSplit(n_splits=1, test_size=0.9, random_state=seed)
    validation, train = next(splitter.split(np.zeros(len(labels)), labels))
    return train, validation


def stratified_subset(labels: np.ndarray, size: int) -> np.ndarray:
    """Indices of the first images of each class, in order; a smaller subset lies in a larger one.

    Class c gives ⌊size / 10⌋ images, and one more if c < size mod 10.
    Raises ``DataError`` when a class has too few.
    """
    chosen = []
    for label in range(10):
        wanted = size // 10 + (label < size % 10)
        members = np.flatnonzero(labels == label)
        if len(members) < wanted:
            raise DataError(
                f"a stratified subset of {size} images needs {wanted} of class {label}, "
                f"but there are only {len(members)}; ask for fewer"
            )
        chosen.append(members[:wanted])
    return np.sort(np.concatenate(chosen))


def load_splits(config: DataConfig) -> dict[SplitName, Images]:
    """The images of a configuration by set: split, then reduced to nested, stratified subsets."""
    training, test = load(config.name)
    train, validation = split(training.labels, config.split_seed)
    return {
        "train": _subset(training, train, config.train_size),
        "validation": _subset(training, validation, config.validation_size),
        "test": _subset(test, np.arange(len(test)), config.test_size),
    }


def _subset(images: Images, order: np.ndarray, size: int) -> Images:
    where = order[stratified_subset(images.labels[order], size)]
    return Images(images.images[where], images.labels[where])


def to_png(image: np.ndarray) -> str:
    """An image, uint8 (3, h, w), as PNG in base64."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# ---------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (3,) and population standard deviation (3,) of each channel of uint8 (n, 3, h, w).

    Of pixels scaled to 0–1; float64, correctly rounded, because all sums are integers.
    """
    sums = np.einsum("nchw->c", images, dtype=np.int64)
    squares = np.einsum("nchw,nchw->c", images, images, dtype=np.int64)
    return moments(sums.tolist(), squares.tolist(), images[:, 0].size)


def moments(
    sums: Iterable[int], squares: Iterable[int], pixels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of pixel / 255 from whole sums of pixels and of their squares."""
    pairs = list(zip(sums, squares, strict=True))
    means = [total / (pixels * 255) for total, _ in pairs]
    deviations = [
        math.sqrt((pixels * square - total**2) / (pixels * 255) ** 2) for total, square in pairs
    ]
    return np.array(means), np.array(deviations)
