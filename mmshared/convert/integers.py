"""Rounds weights to integers with scales."""

from __future__ import annotations

import numpy as np

#: The largest value is rounded to the largest integer, or clipped to one of these parts of itself.
CLIPS = np.linspace(0.4, 1, 13)


def row_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes within a filter, (O, I, k, k), or within a row of a matrix or of a stack of matrices."""
    return tuple(range(1, len(shape))) if len(shape) != 3 else (2,)


def rounded(values: np.ndarray, axes: tuple[int, ...], bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Round values to integers, with the scales of the least squared error.

    Args:
        values (np.ndarray): The values.
        axes (tuple[int, ...]): The axes within which a scale is common.
        bits (int): The bits of an integer, at most 8.

    Returns:
        tuple: The integers as int8, of the shape of the values, and the scales, of length 1 in these axes.
    """
    most = 2 ** (bits - 1) - 1
    peak = np.abs(values).max(axes, keepdims=True)
    peak[peak == 0] = 1
    best, scales, least = np.zeros(values.shape, np.int8), peak / most, np.full_like(peak, np.inf)
    for clip in CLIPS:
        scale = peak * np.float32(clip / most)
        integers = np.clip(np.rint(values / scale), -most, most)
        error = np.square(integers * scale - values).sum(axes, keepdims=True)
        better = error < least
        np.copyto(best, integers.astype(np.int8), where=better)
        np.copyto(scales, scale, where=better)
        np.copyto(least, error, where=better)
    return best, scales
