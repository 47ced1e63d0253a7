# SPDX-License-Identifier: BSD-3-Clause
"""Arrays as pictures: grey levels for the eye, outlines of masks, and both as PNG in the text of a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

# Of several classes, one after the other and again from the first (Okabe and Ito: told apart by the colour-blind too).
CLASS_COLOURS = (
    (0, 158, 115),
    (230, 159, 0),
    (86, 180, 233),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
)


def class_colour(number: int) -> tuple[int, int, int]:
    return CLASS_COLOURS[number % len(CLASS_COLOURS)]


def for_display(image: np.ndarray) -> np.ndarray:
    """(C, h, w) of any dtype to grey (h, w) or RGB (h, w, 3) in [0, 1] between the 0.5th and 99.5th percentile."""
    low, high = np.percentile(image, (0.5, 99.5))
    scaled = np.clip((image.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    return np.moveaxis(scaled, 0, -1) if len(scaled) == 3 else scaled[0]


def grey_png(image: np.ndarray) -> str:
    """(C, h, w) as ``for_display`` shows it, in a data URI."""
    return png_uri((for_display(image) * 255).round().astype(np.uint8))


def outline_png(masks: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> str:
    """Inner borders of masks (N, h, w), a pixel wide, each in its colour, in a data URI; transparent elsewhere."""
    pixels = np.zeros((*masks.shape[1:], 4), np.uint8)
    for mask, colour in zip(masks, colours, strict=True):
        pixels[outline(mask)] = (*colour, 255)
    return png_uri(pixels)


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask (h, w) that share an edge with one outside it. What lies beyond the picture is inside."""
    inside = np.pad(mask != 0, 1, mode="edge")
    kept = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return (mask != 0) & ~kept


def png_uri(pixels: np.ndarray) -> str:
    """uint8 (h, w), (h, w, 3) or (h, w, 4) as the address of a picture that is in the address."""
    import imageio.v3 as imageio

    buffer = io.BytesIO()
    imageio.imwrite(buffer, pixels, extension=".png")
    return data_uri(buffer.getvalue())


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
