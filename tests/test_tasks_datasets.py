"""Data sets: read, split, cached, and clear errors where they are missing or damaged."""

from __future__ import annotations

import errno
import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from learned_optim.tasks import datasets


@pytest.fixture(autouse=True)
def _nothing_parsed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    datasets._load.cache_clear()
    yield
    datasets._load.cache_clear()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write(path, column, images, labels):
    rows = [{"bytes": png(image), "path": None} for image in images]
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({column: rows, "label": labels}), path)


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A data folder with five images; returns the file and the images."""
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    path = tmp_path / "ylecun/mnist/mnist/train-00000-of-00001.parquet"
    write(path, "image", images, [3, 1, 4, 1, 5])
    return path, images


def test_images_of_a_local_folder_are_read_as_bytes_with_labels(mnist):
    images, labels = datasets.load("mnist", "train")
    assert images.shape == (5, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert np.array_equal(images[:, 0].numpy(), mnist[1])
    assert labels.tolist() == [3, 1, 4, 1, 5]
    assert labels.dtype == torch.int64


def test_colour_images_have_the_channel_first(tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    path = tmp_path / "uoft-cs/cifar10/plain_text/test-00000-of-00001.parquet"
    write(path, "img", pixels, [0, 9])
    images, _ = datasets.load("cifar10", "test")
    assert images.shape == (2, 3, 32, 32)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), pixels)


def test_a_split_is_parsed_once_in_a_process(mnist):
    assert datasets.load("mnist") is datasets.load("mnist")


def test_decoded_images_are_kept_on_disk_and_used_again(mnist, monkeypatch):
    first = datasets.load("mnist")
    datasets._load.cache_clear()
    monkeypatch.setattr(datasets, "_decode", None)
    again = datasets.load("mnist")
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.labels, first.labels)


def test_a_changed_file_is_decoded_again(mnist):
    path, images = mnist
    datasets.load("mnist")
    datasets._load.cache_clear()
    write(path, "image", images[:2], [7, 7])
    assert datasets.load("mnist").labels.tolist() == [7, 7]


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 cut off"])
def test_a_damaged_cache_is_ignored_and_replaced(mnist, content):
    datasets.load("mnist")
    (cached,) = datasets.cache_folder().iterdir()
    cached.write_bytes(content)
    datasets._load.cache_clear()
    assert datasets.load("mnist").labels.tolist() == [3, 1, 4, 1, 5]
    assert cached.stat().st_size > 5 * 28 * 28


def test_a_cache_that_cannot_be_written_does_no_harm(mnist, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(datasets.load("mnist").labels) == 5


def test_a_write_that_fails_leaves_no_partial_file(mnist, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    assert len(datasets.load("mnist").labels) == 5
    assert list(datasets.cache_folder().iterdir()) == []


def test_an_interrupted_write_leaves_no_partial_file(mnist, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        datasets.load("mnist")
    assert list(datasets.cache_folder().iterdir()) == []


def test_other_users_may_read_a_cache_that_they_share(mnist):
    datasets.load("mnist")
    (cached,) = datasets.cache_folder().iterdir()
    assert cached.stat().st_mode & 0o444 == 0o444


def test_digits_come_with_a_fixed_split_and_need_no_file():
    train, test = datasets.load("digits", "train"), datasets.load("digits", "test")
    assert train.images.shape == (1437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    assert (train.images.min(), train.images.max()) == (0, 255)
    # Pinned: results on this split are comparable for as long as it does not move.
    assert test.labels[:10].tolist() == [6, 5, 5, 7, 9, 9, 8, 4, 6, 8]


def test_pixels_are_scaled_to_0_1():
    scaled = datasets.scaled(torch.tensor([0, 51, 255], dtype=torch.uint8), torch.float64)
    torch.testing.assert_close(scaled, torch.tensor([0, 0.2, 1], dtype=torch.float64))


def test_a_file_missing_in_the_named_folder_is_an_error_with_its_path(tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(tmp_path))
    with pytest.raises(datasets.DataUnavailable, match=r"mnist/test-00000.*unset the variable"):
        datasets.load("mnist", "test")


def test_a_failed_download_says_what_to_do(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.delenv(datasets.DATA_VARIABLE, raising=False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(datasets.DataUnavailable, match=r"no route to host.*LEARNED_OPTIM_DATA"):
        datasets.load("mnist")


def test_a_download_is_read_from_the_clients_cache(mnist, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repo, file, repo_type):
        asked.append((repo, file, repo_type))
        return str(mnist[0])

    monkeypatch.delenv(datasets.DATA_VARIABLE)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert len(datasets.load("mnist").labels) == 5
    assert asked == [("ylecun/mnist", "mnist/train-00000-of-00001.parquet", "dataset")]


@pytest.mark.parametrize("content", [b"", b"not parquet"])
def test_a_damaged_data_file_is_an_error_with_its_path(mnist, content):
    mnist[0].write_bytes(content)
    with pytest.raises(datasets.DataUnavailable, match=r"train-00000.*download it again"):
        datasets.load("mnist")


def test_a_file_without_the_columns_is_an_error_that_names_them(mnist):
    parquet.write_table(pa.table({"text": ["a"]}), mnist[0])
    with pytest.raises(datasets.DataUnavailable, match="'image' and 'label'"):
        datasets.load("mnist")


@pytest.mark.parametrize(
    ("name", "missing"), [("mnist", "pyarrow.parquet"), ("digits", "sklearn.datasets")]
)
def test_a_missing_package_is_an_error_that_names_the_extra(mnist, monkeypatch, name, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(datasets.DataUnavailable, match=r"learned-optim\[meta-training\]"):
        datasets.load(name)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"cifar10.*but is 'imagenet'"):
        datasets.load("imagenet")
    with pytest.raises(ValueError, match="'train' or 'test' but is 'valid'"):
        datasets.load("mnist", "valid")  # type: ignore[arg-type]
