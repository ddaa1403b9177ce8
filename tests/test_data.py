import hashlib
import io
import os
import pickle
import resource
import socket
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from cifarlib import config, data, paths, synthetic
from cifarlib.config import DATASETS, DataConfig
from cifarlib.errors import ConfigError, DataError


@pytest.fixture(scope="session")
def generated(tmp_path_factory) -> Path:
    """A folder that holds the stand-in set."""
    folder = tmp_path_factory.mktemp("data")
    synthetic.write(folder / DATASETS["synthetic"].folder)
    return folder


@pytest.fixture(scope="session")
def standin(generated) -> tuple[data.Images, data.Images]:
    info, folder = DATASETS["synthetic"], generated / DATASETS["synthetic"].folder
    return tuple(
        data._read_images(info, folder, names) for names in (info.train_files, info.test_files)
    )


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """A ten-image data set in place of CIFAR-10, as an archive; ``data/`` is an empty folder."""
    contents = {
        name: pickle.dumps({b"data": os.urandom(5 * 3072), b"labels": [0, 1, 2, 3, 4]}, protocol=2)
        for name in ("data_batch_1", "test_batch")
    }
    known = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    info = replace(
        DATASETS["cifar10"],
        train_files={"data_batch_1": known["data_batch_1"]},
        test_files={"test_batch": known["test_batch"]},
        meta_files={},
    )
    monkeypatch.setitem(config.DATASETS, "cifar10", info)
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.delenv("CIFAR10_ROOT", raising=False)
    archive = tmp_path / "tiny.tar.gz"
    write_archive(archive, {f"{info.folder}/{name}": c for name, c in contents.items()})
    return archive


def write_archive(path: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def unpack(archive: Path, folder: Path) -> Path:
    """The batches of the tiny data set under a folder, without any check."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / DATASETS["cifar10"].folder


# ---------------------------------------------------------------------------------------------
# Finding and verifying
# ---------------------------------------------------------------------------------------------


def test_an_unknown_data_set_is_refused():
    with pytest.raises(DataError, match="known are cifar10, synthetic"):
        data.find("cifar100")


def test_the_environment_variable_comes_first_and_may_name_either_folder(
    tiny, tmp_path, monkeypatch
):
    own = unpack(tiny, paths.DATA)
    assert data.find("cifar10") == own
    elsewhere = unpack(tiny, tmp_path / "elsewhere")
    monkeypatch.setenv("CIFAR10_ROOT", str(elsewhere.parent))
    assert data.find("cifar10") == elsewhere
    monkeypatch.setenv("CIFAR10_ROOT", str(elsewhere))
    assert data.find("cifar10") == elsewhere
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path / "nowhere"))
    assert data.find("cifar10") == own
    monkeypatch.setenv("CIFAR10_ROOT", "")
    assert data.find("cifar10") == own


def test_missing_data_say_where_they_were_looked_for_and_how_to_get_them(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(DataError) as caught:
        data.find("cifar10")
    for part in (str(tmp_path / "nowhere"), str(paths.DATA), "cifarlib data --download"):
        assert part in str(caught.value)


def test_an_environment_variable_without_sense_is_named(tiny, monkeypatch):
    monkeypatch.setenv("CIFAR10_ROOT", "~nobody-of-that-name/data")
    with pytest.raises(ConfigError, match="CIFAR10_ROOT=~nobody-of-that-name/data names no folder"):
        data.find("cifar10")


def test_a_damaged_file_is_named_with_both_checksums_and_the_cure(tiny):
    path = unpack(tiny, paths.DATA) / "test_batch"
    expected = DATASETS["cifar10"].test_files["test_batch"]
    path.write_bytes(path.read_bytes()[:-100])
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(DataError) as caught:
        data.load.__wrapped__("cifar10")
    for part in (str(path), expected, found, "delete it and run `cifarlib data --download`"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "test_batch is missing; `cifarlib data --download`"),
        (Path.mkdir, "test_batch cannot be read: Is a directory"),
        (os.mkfifo, "test_batch cannot be read: a pipe or a device"),
    ],
    ids=["missing", "folder", "pipe"],
)
def test_what_is_no_file_is_named(tiny, make, told, at_once):
    path = unpack(tiny, paths.DATA) / "test_batch"
    path.unlink()
    make(path)
    with pytest.raises(DataError, match=told):
        data.find("cifar10")


# ---------------------------------------------------------------------------------------------
# Downloading
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine: path → (status, body, promised length)."""
    answers = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body, length = answers.get(self.path, (404, b"", 0))
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "*")
    with HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        answers["url"] = f"http://127.0.0.1:{httpd.server_port}"
        yield answers
        httpd.shutdown()
        thread.join()


def fetch(server, body: bytes, length: int | None = None, md5: str | None = None, **options):
    server["/set.tar.gz"] = (200, body, len(body) if length is None else length)
    md5 = md5 or hashlib.md5(body).hexdigest()
    return data.download(url=f"{server['url']}/set.tar.gz", md5=md5, **options)


def assert_nothing_is_left(folder: Path | None = None):
    assert list((folder or paths.DATA).iterdir()) == []


def test_what_a_killed_download_left_goes_with_the_next_after_a_day(tiny, server):
    old, new = (paths.DATA / f".{DATASETS['cifar10'].folder}-{name}" for name in ("old", "new"))
    for folder in (old, new):
        (folder / "part").mkdir(parents=True)
    os.utime(old, (0, 0))
    fetch(server, tiny.read_bytes())
    assert (old.exists(), new.exists()) == (False, True)


def test_a_download_is_put_into_place(tiny, server):
    folder = fetch(server, tiny.read_bytes())
    assert folder == paths.DATA / DATASETS["cifar10"].folder == data.find("cifar10")
    assert [p.name for p in paths.DATA.iterdir()] == [folder.name]
    assert [len(images) for images in data.load.__wrapped__("cifar10")] == [5, 5]


def test_a_good_copy_is_left_alone(tiny, server):
    folder = unpack(tiny, paths.DATA)
    assert data.download(url=f"{server['url']}/missing") == folder


@pytest.mark.parametrize("inside", [True, False])
def test_a_good_copy_in_a_named_folder_is_left_alone(tiny, server, tmp_path, inside):
    """Whether that holds the files or the archive's folder; a copy in data/ does not count."""
    unpack(tiny, paths.DATA)
    folder = unpack(tiny, tmp_path / "named")
    root = folder.parent if inside else folder
    url = f"{server['url']}/missing"
    assert data.download(root=root, url=url) == folder
    with pytest.raises(DataError, match="404 Client Error"):
        data.download(root=tmp_path / "empty", url=url)


def test_a_download_mends_the_copy_that_is_used(tiny, server, tmp_path, monkeypatch):
    unpack(tiny, paths.DATA)
    folder = unpack(tiny, tmp_path / "elsewhere")
    monkeypatch.setenv("CIFAR10_ROOT", str(folder))
    (folder / "data_batch_1").unlink()
    (folder / "test_batch").write_bytes(b"damaged")
    assert fetch(server, tiny.read_bytes()) == folder == data.find("cifar10")
    assert sorted(p.name for p in folder.iterdir()) == ["data_batch_1", "test_batch"]


@pytest.mark.parametrize("body", [b"<html>a captive portal</html>", None], ids=["page", "corrupt"])
def test_another_download_leaves_nothing(tiny, server, body):
    right = tiny.read_bytes()
    with pytest.raises(DataError, match="is damaged: its MD5 is not "):
        fetch(server, body or right[:-1] + b"x", md5=hashlib.md5(right).hexdigest())
    assert_nothing_is_left()


def test_a_download_that_breaks_off_leaves_nothing(tiny, server):
    body = tiny.read_bytes()
    with pytest.raises(DataError, match=r"1000 bytes read, \d+ more expected"):
        fetch(server, body[:1000], length=len(body))
    assert_nothing_is_left()


def test_download_distinguishes_a_missing_page_from_a_missing_network(tiny, server):
    with pytest.raises(DataError, match="404 Client Error: Not Found"):
        data.download(url=f"{server['url']}/missing")
    with pytest.raises(DataError, match="Connection refused; check the network"):
        data.download(url="http://127.0.0.1:9/x")
    with pytest.raises(DataError, match="No scheme supplied"):
        data.download(url="nothing")
    assert_nothing_is_left()


def test_a_server_that_does_not_answer_is_given_up(tiny, monkeypatch):
    monkeypatch.setattr(data, "TIMEOUT", 0.2)
    monkeypatch.setenv("no_proxy", "*")
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(DataError, match="timed out; check the network"),
    ):
        data.download(url=f"http://127.0.0.1:{silent.getsockname()[1]}/x")


def test_a_destination_that_cannot_be_written_is_named(tiny, server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/cifar-10-batches-py cannot be written: "):
        fetch(server, tiny.read_bytes(), root=tmp_path / "file")


def test_a_full_disk_is_named_and_leaves_nothing(tiny, server):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(DataError, match="cannot be written: File too large; make room"):
            fetch(server, tiny.read_bytes())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_nothing_is_left()


# ---------------------------------------------------------------------------------------------
# Splits and subsets
# ---------------------------------------------------------------------------------------------


def test_the_split_is_that_of_the_listing():
    from sklearn.model_selection import StratifiedShuffleSplit

    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))
    dataset = [(None, label) for label in labels.tolist()]

    # Listing 2, dataset_split, with bigger_chunk_size_coef = 0.9
    full_dataset_list = list(range(len(dataset)))
    listed = [label for _, label in dataset]
    sss = StratifiedShuffleSplit(n_splits=1, test_size=0.9, random_state=42)
    val_idx, train_idx = next(sss.split(full_dataset_list, listed))

    train, validation = data.split(labels)
    np.testing.assert_array_equal(train, train_idx)
    np.testing.assert_array_equal(validation, val_idx)
    assert (len(train), len(validation)) == (900, 100)
    assert np.bincount(labels[validation]).tolist() == [10] * 10
    assert not np.array_equal(data.split(labels, seed=43)[0], train)


def test_the_split_does_not_depend_on_the_version_of_sklearn():
    labels = np.arange(1000) % 10
    digest = hashlib.sha256(np.concatenate(data.split(labels)).astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "16236678392985f9"


def test_subsets_are_stratified_nested_and_keep_the_order():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 30))
    previous: set[int] = set()
    for size in range(10, 301):
        subset = data.stratified_subset(labels, size)
        assert len(subset) == size
        assert (np.diff(subset) > 0).all()
        counts = np.bincount(labels[subset]).tolist()
        assert counts == [size // 10 + (c < size % 10) for c in range(10)]
        assert previous <= set(subset.tolist())
        previous = set(subset.tolist())
    assert data.stratified_subset(labels, 10)[0] == 0


def test_a_class_with_too_few_images_is_named():
    labels = np.repeat(np.arange(10), 5)[:-1]
    with pytest.raises(DataError, match="needs 5 of class 9, but there are only 4"):
        data.stratified_subset(labels, 50)


def test_the_sets_of_a_run_are_disjoint_nested_and_in_the_order_of_the_split(standin, monkeypatch):
    monkeypatch.setattr(data, "load", lambda name: standin)
    small, large = (
        data.load_splits(
            DataConfig(name="synthetic", train_size=n, validation_size=n // 4, test_size=n // 2)
        )
        for n in (400, 2000)
    )
    seen: dict[bytes, str] = {}
    for name in ("train", "validation", "test"):
        few, many = small[name], large[name]
        assert few.images.shape == (len(few.labels), 3, 32, 32)
        assert (np.bincount(few.labels) == len(few) // 10).all()
        assert {i.tobytes() for i in few.images} <= {i.tobytes() for i in many.images}
        for image in many.images:
            assert seen.setdefault(image.tobytes(), name) == name
    train, _ = data.split(standin[0].labels)
    first = standin[0].images[train[:5]]
    np.testing.assert_array_equal(small["train"].images[:5], first)


# ---------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_pixels():
    images = np.random.default_rng(0).integers(0, 256, (1500, 3, 4, 5), dtype=np.uint8)
    images[:, 1] //= 2
    mean, std = data.channel_statistics(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 2, 3)), rtol=1e-13)
    assert data.channel_statistics(np.full((1, 3, 2, 2), 51, np.uint8))[1].tolist() == [0, 0, 0]


def test_cifar10_is_what_the_literature_says():
    try:
        train, test = data.load("cifar10")
    except DataError as error:
        pytest.skip(str(error))
    assert train.images.shape == (50_000, 3, 32, 32)
    assert test.images.shape == (10_000, 3, 32, 32)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.labels[:8].tolist() == [6, 9, 9, 4, 1, 1, 2, 7]
    mean, std = data.channel_statistics(train.images)
    np.testing.assert_allclose(mean, [0.49139968, 0.48215841, 0.44653091], atol=5e-9, rtol=0)
    np.testing.assert_allclose(std, [0.24703223, 0.24348513, 0.26158784], atol=5e-9, rtol=0)


# ---------------------------------------------------------------------------------------------
# The stand-in set
# ---------------------------------------------------------------------------------------------


def test_the_standin_is_the_same_to_the_bit(generated):
    info = DATASETS["synthetic"]
    data.verify(info, generated / info.folder)
    assert info.classes == synthetic.CLASSES


def _find_standin(folder: Path) -> Path:
    paths.DATA = folder
    return data.find("synthetic")


def test_processes_that_make_the_standin_at_once_agree(tmp_path, fork_server):
    with fork_server.get_context("spawn").Pool(2) as pool:
        found = pool.map(_find_standin, [tmp_path / "data"] * 2, chunksize=1)
    assert set(found) == {tmp_path / "data" / DATASETS["synthetic"].folder}
    assert [p.name for p in (tmp_path / "data").iterdir()] == [DATASETS["synthetic"].folder]


def test_the_standin_ignores_the_environment_variable(generated, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", generated)
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path))
    assert data.find("synthetic").parent == data.download("synthetic").parent == generated


def test_a_damaged_standin_says_how_to_mend_it(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    (tmp_path / DATASETS["synthetic"].folder).mkdir()
    (tmp_path / DATASETS["synthetic"].folder / "batches.meta").touch()
    with pytest.raises(DataError, match="is missing; delete the folder, it is generated again"):
        data.find("synthetic")


def test_a_standin_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(paths, "DATA", tmp_path / "file")
    with pytest.raises(DataError, match=r"synthetic-batches-py cannot be written: "):
        data.find("synthetic")
