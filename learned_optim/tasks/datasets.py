"""Small image data sets as uint8 tensors, parsed once.

`load(name, split)` gives all images of a split, `(N, C, H, W)` uint8 in 0..255, and the labels,
`(N,)` int64. Whoever uses them scales to [0, 1] by `scaled`; no mean is subtracted.

- "digits": scikit-learn's 1,797 8x8 digits (0..16 stretched to 0..255); no download.
- "mnist": Hub data set `ylecun/mnist`, 28x28 grey, 60,000 + 10,000.
- "cifar10": Hub data set `uoft-cs/cifar10`, 32x32 colour, 50,000 + 10,000.

A Hub data set is read from the folder named by the environment variable `LEARNED_OPTIM_DATA` if
that is set (the same repository ids and file names below it), and otherwise downloaded with
huggingface_hub, which keeps its own cache. Imports of that client, pyarrow, Pillow and
scikit-learn happen at the first use: the package must import without them.

Decoding 60,000 PNGs takes seconds, so the decoded arrays are kept in the user's cache folder
(`$XDG_CACHE_HOME/learned_optim` or `~/.cache/learned_optim`), keyed by the size and time of the
source file. The cache is optional: when it cannot be written or read, the images are decoded.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from learned_optim import files
from learned_optim.tasks.base import Split

if TYPE_CHECKING:
    import numpy as np

DATA_VARIABLE = "LEARNED_OPTIM_DATA"

_CACHE_VERSION = 1
_DIGITS_TEST = 360  # a fifth
_DIGITS_SEED = 0


class DataUnavailable(OSError):
    """A data set could not be found or downloaded; the message says what to do."""


class Images(NamedTuple):
    """One split of an image data set.

    Attributes:
        images: `(N, C, H, W)` uint8.
        labels: `(N,)` int64.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class _Source:
    """Where a Hub data set keeps its files, and the name of its image column."""

    repo: str
    folder: str
    column: str

    def file(self, split: Split) -> str:
        return f"{self.folder}/{split}-00000-of-00001.parquet"


_SOURCES = {
    "mnist": _Source("ylecun/mnist", "mnist", "image"),
    "cifar10": _Source("uoft-cs/cifar10", "plain_text", "img"),
}

DATASETS = ("digits", *_SOURCES)


def load(name: str, split: Split = "train", device: torch.device | str = "cpu") -> Images:
    """All images of a split, parsed once in a process and kept on `device`.

    Args:
        name: one of `DATASETS`.
        split: "train" or "test".
        device: where the tensors live.

    Raises:
        ValueError: for an unknown name or split.
        DataUnavailable: if the data are neither here nor can be downloaded.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset must be one of {sorted(DATASETS)} but is {name!r}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test' but is {split!r}")
    return _load(name, split, str(device))


def scaled(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels as floats in [0, 1].

    Paper / released code / ours: not stated / [0, 1] / [0, 1].
    """
    return images.to(dtype).mul_(1.0 / 255.0)


@functools.lru_cache(maxsize=16)
def _load(name: str, split: Split, device: str) -> Images:
    if device != "cpu":
        return Images(*(tensor.to(device) for tensor in _load(name, split, "cpu")))
    return _digits(split) if name == "digits" else _from_parquet(name, split)


def _digits(split: Split) -> Images:
    """Split once by a fixed permutation: the file is in the order in which writers were asked."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing_package("scikit-learn") from error
    flat, target = load_digits(return_X_y=True)
    pixels = torch.from_numpy(flat).view(-1, 8, 8).mul(255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_DIGITS_SEED))
    chosen = order[:_DIGITS_TEST] if split == "test" else order[_DIGITS_TEST:]
    return Images(pixels[chosen].unsqueeze(1), labels[chosen])


def _from_parquet(name: str, split: Split) -> Images:
    path = _locate(_SOURCES[name], split)
    stat = path.stat()
    key = f"{name}-{split}-{stat.st_size}-{stat.st_mtime_ns}-v{_CACHE_VERSION}.npz"
    cache = cache_folder() / key
    arrays = _read_cache(cache)
    if arrays is None:
        arrays = _decode(path, _SOURCES[name].column)
        _write_cache(cache, arrays)
    images, labels = (torch.from_numpy(array) for array in arrays)
    return Images(images.permute(0, 3, 1, 2).contiguous(), labels)


def _locate(source: _Source, split: Split) -> Path:
    file = source.file(split)
    root = os.environ.get(DATA_VARIABLE)
    if root:
        path = Path(root) / source.repo / file
        if path.is_file():
            return path
        raise DataUnavailable(
            f"{DATA_VARIABLE} is {root!r}, but {path} does not exist. Put the file {file} of the "
            f"Hub data set {source.repo} there, or unset the variable to download it."
        )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise _missing_package("huggingface_hub") from error
    # The client's errors have many types (HTTP, offline mode, gated repositories, full disk).
    try:
        return Path(hf_hub_download(source.repo, file, repo_type="dataset"))
    except Exception as error:
        raise DataUnavailable(
            f"could not download {file} of the Hub data set {source.repo} "
            f"({type(error).__name__}: {error}). Connect to the network once, or download the "
            f"file and set {DATA_VARIABLE} to the folder that holds {source.repo}/{file}."
        ) from error


def _decode(path: Path, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Images `(N, H, W, C)` uint8 and labels `(N,)` int64 of a parquet file of PNGs."""
    try:
        import numpy as np
        import pyarrow.parquet as parquet
        from PIL import Image
    except ImportError as error:
        raise _missing_package("pyarrow and pillow") from error
    try:
        table = parquet.read_table(path, columns=[column, "label"])
        encoded = table[column].combine_chunks().field("bytes")
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(png.as_py()))) for png in encoded])
        labels = table["label"].to_numpy().astype(np.int64)
    except (OSError, ValueError, KeyError) as error:
        raise DataUnavailable(
            f"{path} is not a readable parquet file with the columns {column!r} and 'label' "
            f"({error}). Delete it and download it again."
        ) from error
    return pixels.reshape(*pixels.shape[:3], -1), labels


def _missing_package(names: str) -> DataUnavailable:
    return DataUnavailable(
        f"this data set needs {names}, which cannot be imported. "
        "Install the extra: pip install 'learned-optim[meta-training]'"
    )


def cache_folder() -> Path:
    """Where decoded images are kept; it may not exist."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "learned_optim"


def _read_cache(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """None when there is none, or when it is damaged."""
    import numpy as np

    try:
        # Opened here, because np.load leaves a file open that turns out not to be a zip file.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_cache(path: Path, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    """In one piece, so that other processes see all of it or nothing; without a word, if at all."""
    import numpy as np

    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # By way of memory, which holds the images anyway.
        stream = io.BytesIO()
        np.savez(stream, images=arrays[0], labels=arrays[1])
        files.write(path, stream.getvalue())
