"""The images: found, fetched, verified and loaded; the paper's split and its nested subsets.

A data set is a folder in the layout of CIFAR-10's python version, known by the MD5 of each of its
files (``config.DATASETS``). CIFAR-10 is looked for in ``$CIFAR10_ROOT``, then in ``data/``; the
stand-in set is generated into ``data/`` when it is first asked for.
"""

import contextlib
import hashlib
import json
import math
import os
import pickle
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cifarlib import paths, synthetic
from cifarlib.checking import named_folder, open_file, parse_json, read_bytes
from cifarlib.config import DATASETS, DataConfig, DatasetInfo
from cifarlib.errors import DataError

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"  # of the archive, published on the same page

SHAPE = (3, 32, 32)  # channels, rows, columns
BLOCK = 1 << 20  # bytes read at a time
TIMEOUT = 30  # s without an answer
VERIFIED = ".verified.json"


@dataclass(frozen=True)
class Images:
    """Images of one set: uint8 (n, 3, 32, 32) and int64 class labels (n,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Splits:
    """The three sets of a run."""

    train: Images
    validation: Images
    test: Images


# ---------------------------------------------------------------------------------------------
# Where the files are
# ---------------------------------------------------------------------------------------------


def find(name: str, *, reread: bool = False) -> Path:
    """The folder of a data set, every file of it verified; the stand-in set is made if missing.

    ``reread`` trusts no earlier verification. Raises ``DataError`` when the set is missing, or one
    of its files is missing or damaged.
    """
    info = _info(name)
    folder = _locate(name)
    if folder is None and not info.real:
        folder = _generate(info)
    if folder is None:
        places = " or ".join(str(place) for place in _places(info))
        raise DataError(
            f"{info.title} was not found at {places}; `cifarlib data --download` fetches it"
        )
    verify(info, folder, reread=reread)
    return folder


def _info(name: str) -> DatasetInfo:
    if name not in DATASETS:
        raise DataError(f"there is no data set {name!r}; known are {', '.join(sorted(DATASETS))}")
    return DATASETS[name]


def _places(info: DatasetInfo) -> list[Path]:
    """The folders a data set may be in, in the order they are looked at."""
    root = _root(info)
    return [*([root / info.folder] if root else []), paths.DATA / info.folder]


def _root(info: DatasetInfo) -> Path | None:
    """What the environment says of where a real data set is."""
    return named_folder("CIFAR10_ROOT") if info.real else None


def _locate(name: str) -> Path | None:
    """The first folder that holds a data set, complete or not."""
    info = _info(name)
    root = _root(info)
    try:
        if root and any((root / file).is_file() for file in info.files):
            return root
        return next((place for place in _places(info) if place.is_dir()), None)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be looked at: {error.strerror}") from error


def _generate(info: DatasetInfo) -> Path:
    """Make the stand-in set under ``data/``; of several processes at once, one's result stays."""
    target = paths.DATA / info.folder
    with _writing(target), _temporary_folder(target) as temporary:
        synthetic.write(temporary / info.folder)
        _move(temporary / info.folder, target)
    return target


# ---------------------------------------------------------------------------------------------
# Verification
# ---------------------------------------------------------------------------------------------


def verify(info: DatasetInfo, folder: Path, *, reread: bool = False) -> None:
    """Compare every file's MD5 with the pinned one; raises ``DataError`` at the first that differs.

    What was verified is remembered beside the files by size and modification time, so that each
    file is read once, unless it is to be ``reread``: both may be those of a file that was changed.
    Where the folder is read-only nothing is remembered.
    """
    remembered = {} if reread else _read_verified(folder)
    verified = {}
    for name, expected in info.files.items():
        path = folder / name
        try:
            status = path.stat()
            seen = [status.st_size, status.st_mtime_ns, expected]
            found = expected if remembered.get(name) == seen else _md5(path)
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing; {_mend(info, folder)}") from error
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        if found != expected:
            raise DataError(
                f"{path} is damaged: its MD5 is {found} ({status.st_size} bytes) instead of "
                f"{expected}; {_mend(info, path)}"
            )
        verified[name] = seen
    if verified != remembered:
        _write_verified(folder, verified)


def _mend(info: DatasetInfo, broken: Path) -> str:
    if not info.real:
        return "delete the folder, it is generated again"
    if broken.is_dir():
        return "`cifarlib data --download` fetches it"
    return "delete it and run `cifarlib data --download`"


def _md5(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _read_verified(folder: Path) -> dict[str, list[Any]]:
    """File name → size, modification time (ns), MD5; empty when there is no usable memory."""
    try:
        content = parse_json(read_bytes(folder / VERIFIED))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_verified(folder: Path, verified: dict[str, list[Any]]) -> None:
    with contextlib.suppress(OSError):  # a read-only folder is verified each time
        handle, temporary = tempfile.mkstemp(prefix=VERIFIED, dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(verified, file, indent=1)
            Path(temporary).replace(folder / VERIFIED)
        except OSError:
            Path(temporary).unlink()


# ---------------------------------------------------------------------------------------------
# Download
# ---------------------------------------------------------------------------------------------


def download(
    name: str = "cifar10",
    root: Path | None = None,
    url: str = CIFAR10_URL,
    progress: bool | None = None,
    *,
    md5: str = CIFAR10_MD5,
) -> Path:
    """Fetch a data set's archive, check it, and put its files into place; its folder.

    Without ``root`` this mends the copy that ``find`` would use, or makes one in ``data/``. A good
    copy is left alone. ``progress`` shows a bar; by default where standard error is a terminal.
    Raises ``DataError`` when the download or the disk fails; nothing half-done stays behind.
    """
    info = _info(name)
    if not info.real:
        return find(name)
    target = Path(root) / info.folder if root else _locate(name) or paths.DATA / info.folder
    if target.is_dir():
        with contextlib.suppress(DataError):
            verify(info, target, reread=True)
            return target
    with _writing(target), _temporary_folder(target) as temporary:
        archive = temporary / "archive.tar.gz.partial"
        _fetch(url, archive, md5, progress)
        _extract(archive, info, temporary, url)
        try:
            verify(info, temporary / info.folder)
        except DataError as error:
            raise DataError(f"{url} does not hold the files of {info.title}") from error
        _move(temporary / info.folder, target)
    verify(info, target)
    return target


def _fetch(url: str, archive: Path, md5: str, progress: bool | None) -> None:
    """Write what a URL gives into a file; raises ``DataError`` unless it is whole and right."""
    import pooch
    from requests.exceptions import HTTPError, RequestException
    from tqdm import tqdm

    hidden = None if progress is None else not progress
    name = url.rpartition("/")[2]
    bar = tqdm(total=1, unit="B", unit_scale=True, desc=name, disable=hidden)  # pooch sets total
    downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=BLOCK, timeout=TIMEOUT)
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(url, f"md5:{md5}", archive.name, archive.parent, downloader=downloader)
    except HTTPError as error:
        answer = error.response
        assert answer is not None
        raise DataError(
            f"{url} cannot be fetched: HTTP {answer.status_code} {answer.reason}"
        ) from error
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


def _extract(archive: Path, info: DatasetInfo, folder: Path, url: str) -> None:
    """Take only the known files out of an archive."""
    wanted = {f"{info.folder}/{name}" for name in info.files}
    try:
        with tarfile.open(archive) as tar:
            members = [member for member in tar if member.name in wanted and member.isfile()]
            tar.extractall(folder, members, filter="data")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{url} is no archive that can be read: {error}") from error


# ---------------------------------------------------------------------------------------------
# Taking over
# ---------------------------------------------------------------------------------------------


def install(name: str, root: Path, read: Callable[[str], bytes]) -> Path:
    """Put a data set's files, each ``read`` by its name, into a folder under ``root``; its folder.

    A good copy there is left alone. Raises ``DataError`` where what was read is not that data set,
    or the disk fails; nothing half-done stays behind.
    """
    info = _info(name)
    target = root / info.folder
    with contextlib.suppress(DataError):
        verify(info, target)
        return target
    with _writing(target), _temporary_folder(target) as temporary:
        source = temporary / info.folder
        source.mkdir()
        for file in info.files:
            (source / file).write_bytes(read(file))
        verify(info, source)
        _move(source, target)
    return target


# ---------------------------------------------------------------------------------------------
# Writing that appears whole or not at all
# ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{target} cannot be written: {error.strerror or error}; "
            "make room or give write permission there"
        ) from error


@contextlib.contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    """A folder on the target's file system, which is removed whatever happens."""
    place = target if target.is_dir() else target.parent
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}-", dir=place, ignore_cleanup_errors=True
    ) as temporary:
        yield Path(temporary)


def _move(source: Path, target: Path) -> None:
    """Move a whole folder into place, or, where one stands already, each of its files."""
    with contextlib.suppress(OSError):
        source.rename(target)
        return
    for file in sorted(source.iterdir()):
        file.replace(target / file.name)


# ---------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def load(name: str) -> tuple[Images, Images]:
    """All training images, in the order of the files, and all test images."""
    info = _info(name)
    folder = find(name)
    return _read_images(folder, info.train_files), _read_images(folder, info.test_files)


def _read_images(folder: Path, names: dict[str, str]) -> Images:
    batches = [read_batch(folder / name) for name in names]
    return Images(
        np.concatenate([batch.images for batch in batches]),
        np.concatenate([batch.labels for batch in batches]),
    )


def read_batch(path: Path) -> Images:
    """The images of one batch file; raises ``DataError`` for anything that is not such a file."""
    try:
        with open_file(path) as file:
            content = _BatchUnpickler(file, encoding="bytes").load()
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except MemoryError as error:
        raise DataError(f"{path} cannot be read: memory is short; end other programs") from error
    except Exception as error:  # unpickling damaged bytes may raise anything
        raise DataError(f"{path} is no batch of images: {error or type(error).__name__}") from error
    try:
        pixels, labels = content[b"data"], np.array(content[b"labels"], dtype=np.int64)
        if isinstance(pixels, bytes):
            pixels = np.frombuffer(pixels, dtype=np.uint8)
        if pixels.dtype != np.uint8:
            raise TypeError(f"its data are {pixels.dtype}, not uint8")
        images = np.array(pixels, order="C").reshape(-1, *SHAPE)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is no batch of images: {error}") from error
    if labels.shape != (len(images),) or not np.isin(labels, np.arange(10)).all():
        raise DataError(f"{path} is no batch of images: its labels do not fit its images")
    return Images(images, labels)


class _BatchUnpickler(pickle.Unpickler):
    """Makes arrays and plain values, and refuses every other name: no code comes from a file."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return allowed[module, name]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes in Python 2's pickles."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}, which is refused")
    return text.encode("latin1")


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


@lru_cache(maxsize=2)
def load_splits(config: DataConfig) -> Splits:
    """The images of a configuration: split, then reduced to nested, stratified subsets."""
    training, test = load(config.name)
    train, validation = split(training.labels, config.split_seed)
    return Splits(
        train=_subset(training, train, config.train_size),
        validation=_subset(training, validation, config.validation_size),
        test=_subset(test, np.arange(len(test)), config.test_size),
    )


def _subset(images: Images, order: np.ndarray, size: int) -> Images:
    where = order[stratified_subset(images.labels[order], size)]
    return Images(images.images[where], images.labels[where])


# ---------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (3,) and population standard deviation (3,) of each channel of uint8 (n, 3, h, w).

    Of pixels scaled to 0–1; float64, correctly rounded, because all sums are integers.
    """
    counts = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(images), 1000):  # bincount widens its input to 8 bytes a pixel
        for channel in range(3):
            pixels = images[start : start + 1000, channel].ravel()
            counts[channel] += np.bincount(pixels, minlength=256)
    means, deviations = [], []
    for row in counts.tolist():
        number = sum(row)
        mean = Fraction(sum(value * count for value, count in enumerate(row)), number)
        square = Fraction(sum(value**2 * count for value, count in enumerate(row)), number)
        means.append(float(mean / 255))
        deviations.append(math.sqrt((square - mean**2) / 255**2))
    return np.array(means), np.array(deviations)


def class_counts(labels: np.ndarray) -> np.ndarray:
    """The number of images of each class (10,)."""
    return np.bincount(labels, minlength=10)
