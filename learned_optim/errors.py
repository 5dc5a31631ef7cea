"""Errors that more than one layer raises or looks for."""

from __future__ import annotations


class WeightsError(RuntimeError):
    """The files of a rule were found but must not be used; the message names the failed check."""
