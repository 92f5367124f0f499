"""From one encoded image to uint8 pixels: modes, orientation, and the resize rule."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import InvalidData

RESIZE_RULE = "shorter side to resolution (bilinear, antialiased), centre crop"
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"})
CHUNK = 256  # images a thread takes at once


class Encoded(NamedTuple):
    """One encoded image and where it lies, for messages."""

    content: bytes | Path
    place: str


def open_image(encoded: Encoded) -> Image.Image:
    """The image with only its header read; raises InvalidData naming file and row."""
    source = io.BytesIO(encoded.content) if isinstance(encoded.content, bytes) else encoded.content
    try:
        return Image.open(source)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidData(f"{encoded.place}: not a readable image ({_reason(error)}); replace or remove it") from None


def decode(encoded: Encoded, in_channels: int, resolution: int) -> np.ndarray:
    """Pixels, uint8 [C, resolution, resolution]; transparency lies on white, EXIF orientation is applied."""
    try:
        with open_image(encoded) as image:
            pixels = _resized(_converted(image, "L" if in_channels == 1 else "RGB"), resolution)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidData(f"{encoded.place}: not a readable image ({_reason(error)}); replace or remove it") from None
    array = np.asarray(pixels)
    return array[None] if in_channels == 1 else array.transpose(2, 0, 1)


def decode_all(images: Sequence[Encoded], in_channels: int, resolution: int) -> Tensor:
    """All images as one uint8 tensor [N, C, resolution, resolution], decoded by a few threads."""

    def decode_chunk(chunk: Sequence[Encoded]) -> list[np.ndarray]:
        return [decode(image, in_channels, resolution) for image in chunk]

    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    with ThreadPoolExecutor() as pool:
        arrays = list(chain.from_iterable(pool.map(decode_chunk, chunks)))
    return torch.from_numpy(np.stack(arrays))


def natural_form(images: Sequence[Encoded]) -> tuple[int, int]:
    """(channels, resolution) that suit these images, from their headers.

    One channel when all are grey, otherwise three; the median shorter side, at most 224.
    """
    grey, sides = True, []
    for encoded in images:
        with open_image(encoded) as image:
            grey = grey and image.mode in GREY_MODES
            sides.append(min(image.size))
    return (1 if grey else 3), min(224, int(np.median(sides)))


def _converted(image: Image.Image, mode: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _resized(image: Image.Image, resolution: int) -> Image.Image:
    if image.size == (resolution, resolution):
        return image
    width, height = image.size
    scale = resolution / min(width, height)
    size = max(resolution, round(width * scale)), max(resolution, round(height * scale))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - resolution) // 2, (size[1] - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no known format"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
