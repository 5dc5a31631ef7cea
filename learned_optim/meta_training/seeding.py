"""Seeds derived from names, so that every random stream is a function of the recipe alone."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any path of integers and names, independent between paths."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*parts))
