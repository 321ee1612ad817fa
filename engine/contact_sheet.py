"""Contact sheet of a data set: one row per class with some of its training images."""

import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from .errors import UserError
from .files import check_writable, write_atomically
from .pack import Pack

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MOST_CLASSES = 20
IMAGES_PER_CLASS = 10
TILE_PIXELS = 64
"""Images whose longer side is below this are enlarged to at least this, above twice this scaled down to twice this."""
TEXT_PIXELS = 16
NAME_PIXELS = 200
GAP = 4


def check_picture(path: Path) -> None:
    """Raise UserError if no picture can be written to `path`."""
    _picture_format(path)
    check_writable(path)


def save_contact_sheet(pack: Pack, path: Path) -> None:
    """Write `contact_sheet` in the format given by the suffix of `path`. Raise UserError if that fails."""
    sheet, picture_format = contact_sheet(pack), _picture_format(path)
    write_atomically(path, lambda part: sheet.save(part, format=picture_format))


def _picture_format(path: Path) -> str:
    """Return Pillow's name of the format."""
    suffix = path.suffix.lower()
    if suffix not in PICTURE_SUFFIXES:
        raise UserError(f"cannot write {path} as a picture; give a name that ends in {', '.join(PICTURE_SUFFIXES)}")
    return Image.registered_extensions()[suffix]


def contact_sheet(pack: Pack) -> Image.Image:
    """Draw the first training images of each class beside its name; of more than 20 classes, 20 evenly spaced ones."""
    rows = min(pack.num_classes, MOST_CLASSES)
    labels = [row * pack.num_classes // rows for row in range(rows)]
    height, width = _tile_size(*pack.image_size)
    row_height = max(height, 3 * TEXT_PIXELS) + GAP
    size = NAME_PIXELS + IMAGES_PER_CLASS * (width + GAP) + GAP, rows * row_height + GAP
    sheet = Image.new("RGB", size, "white")
    for row, label in enumerate(labels):
        _draw_row(sheet, GAP // 2 + row * row_height + row_height // 2, pack, label)
    return sheet


def _tile_size(height: int, width: int) -> tuple[int, int]:
    """Return the size of a tile; small images are enlarged by whole factors, so that no pixel is blurred."""
    side = max(height, width)
    if side <= 2 * TILE_PIXELS:
        factor = math.ceil(TILE_PIXELS / side)
        return height * factor, width * factor
    return max(height * 2 * TILE_PIXELS // side, 1), max(width * 2 * TILE_PIXELS // side, 1)


def _draw_row(sheet: Image.Image, middle: int, pack: Pack, label: int) -> None:
    height, width = _tile_size(*pack.image_size)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_PIXELS)
    members = (pack.train_labels == label).nonzero().flatten()
    lines = _shortened(pack.class_names[label], font), f"{len(members):,} images"
    draw.multiline_text((GAP, middle), "\n".join(lines), "black", font, anchor="lm")
    for column, index in enumerate(members[:IMAGES_PER_CLASS]):
        left = NAME_PIXELS + GAP + column * (width + GAP)
        sheet.paste(_tile(pack.train_images[index], (width, height)), (left, middle - height // 2))


def _tile(pixels: torch.Tensor, size: tuple[int, int]) -> Image.Image:
    """Convert pixels [H, W, C] to a picture of `size`; only scaling down smooths."""
    image = Image.fromarray(pixels.squeeze(2).numpy() if pixels.shape[2] == 1 else pixels.numpy())
    smaller = size[0] < image.width
    return image.resize(size, Image.Resampling.BILINEAR if smaller else Image.Resampling.NEAREST)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Truncate `text` to the width beside the images."""
    if font.getlength(text) <= NAME_PIXELS - GAP:
        return text
    while font.getlength(text + "…") > NAME_PIXELS - GAP:
        text = text[:-1]
    return text + "…"
