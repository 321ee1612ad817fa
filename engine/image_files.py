"""Image decoder shared by `data pack`, evaluation on folders and `read_image`."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import UserError
from .nets import MAX_IMAGE_SIDE

Images = npt.NDArray[np.uint8]
Size = tuple[int, int]
"""Height and width in pixels."""

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
"""Lower-case suffixes of image files."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Pillow's names of the accepted formats. Pillow supports others, and would run Ghostscript on a PostScript a.png."""
MODES = {1: "L", 3: "RGB"}
"""Pillow's mode by number of channels."""
GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "F"}
"""Pillow's greyscale modes."""
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""TIFF tags."""
WHITE_IS_ZERO, SIGNED = 0, 2
"""Values of the tags PHOTOMETRIC and SAMPLE_FORMAT."""


class Decoded(NamedTuple):
    """A decoded image file."""

    pixels: Images
    """[H, W, C]."""
    stored_size: Size
    """Size of the upright image before resizing."""


def read_image(path: str | Path, *, channels: int = 3, size: Size | None = None) -> Images:
    """Decode one image file exactly as `speedyresnet data pack` does.

    The image is rotated according to its EXIF orientation. Transparent parts are composited onto white. Samples of more
    than 8 bits keep their upper 8. Only the first frame or page is used. The result is converted to RGB, or to
    greyscale with the weights of ITU-R 601, and then resized with antialiased bilinear interpolation; the aspect ratio
    is not preserved.

    Args:
        path: a png, jpg, webp, bmp, gif, tif or ppm file; its format is detected from the content, not the name.
        channels: 3 for RGB, 1 for greyscale.
        size: height and width in pixels; None keeps those of the file.

    Returns:
        uint8 [H, W, C].

    Raises:
        UserError: the file cannot be read as an image, `channels` is not 1 or 3, or `size` is not two integers from 1
            to 4096.
    """
    if channels not in MODES:
        raise UserError(f"an image cannot be read with {channels} channels; choose 1 or 3")
    if size is not None and not _is_size(size):
        raise UserError(f"{size!r} is no image size; give height and width in pixels, each from 1 to {MAX_IMAGE_SIDE}")
    return decode(Path(path), channels, size).pixels


def _is_size(size: object) -> bool:
    return (
        isinstance(size, tuple | list)
        and len(size) == 2
        and all(isinstance(side, int) and 1 <= side <= MAX_IMAGE_SIDE for side in size)
    )


def decode(path: Path, channels: int, size: Size | None) -> Decoded:
    """Decode one file as `read_image` does, and return the original size too."""
    with _opened(path) as image:
        _repair_transparency(image)
        ImageOps.exif_transpose(image, in_place=True)
        pixels = resized(_converted(image, MODES[channels]), size)
        return Decoded(pixels, (image.height, image.width))


def is_grey(path: Path) -> bool:
    """Return whether an image file is greyscale, from its header alone."""
    with _opened(path) as image:
        return image.mode in GREY_MODES or _raw_mode(image) == "LA;16B"  # which Pillow gives as RGBA


def resized(image: Image.Image, size: Size | None) -> Images:
    """Return the pixels [H, W, C] of an image, resized with antialiasing to height and width unless `size` is None."""
    if size is not None and (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, -1)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open the image in a file; convert any error into a UserError that names the file."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for its writer
            raise ValueError("it is no regular file")
        # Pillow maps a file that it opens by path into memory. For an uncompressed TIFF with a quarter turn, it then
        # mistakes the width of the upright image for that of the stored rows.
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            yield image
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        unknown = isinstance(error, UnidentifiedImageError)
        fault = "it is no png, jpg, webp, bmp, gif, tif or ppm file" if unknown else error
        raise UserError(f"cannot read image {path}: {fault}; repair it or take it away") from error


def _repair_transparency(image: Image.Image) -> None:
    """Scale the transparent colour of a PNG, which Pillow leaves in the file's bit depth, to the 8 bits of its pixels.

    The colour of 16-bit RGB is compared in its upper 8 bits, because Pillow provides no others.
    """
    key, raw_mode = image.info.get("transparency"), _raw_mode(image)
    if raw_mode in ("L;2", "L;4") and isinstance(key, int):
        image.info["transparency"] = key * (85 if raw_mode == "L;2" else 17)
    elif raw_mode == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _raw_mode(image: Image.Image) -> Any:
    """Return Pillow's name of the samples in a PNG file that is not decoded yet; anything for other formats."""
    tiles = getattr(image, "tile", ())
    return tiles[0][3] if tiles else None


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return tags


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Return an image as L or RGB, opaque and in 8 bits."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if SIGNED in _tiff_tags(image).get(SAMPLE_FORMAT, ()):
        raise ValueError("its pixels are signed numbers, whose range is not known")
    if image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(image)).convert(mode)
    if image.has_transparency_data:
        # The colour of transparent pixels is arbitrary.
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        image = paper
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Images:
    """Return the upper 8 bits [H, W] of 9- to 16-bit greyscale, on white; Pillow would clip at 255.

    For 16-bit colours Pillow itself keeps the upper 8 bits.
    """
    samples = np.asarray(image).astype(np.int64)
    tags = _tiff_tags(image)
    bits = min(tags.get(BITS_PER_SAMPLE, (16,))[0], 16)
    if samples.min() < 0 or samples.max() >= 2**bits:
        raise ValueError("its pixels have more than 16 bits")
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        samples = 2**bits - 1 - samples
    pixels = (samples >> (bits - 8)).astype(np.uint8)
    key = image.info.get("transparency")
    return np.where(samples == key, np.uint8(255), pixels) if isinstance(key, int) else pixels
