"""Image files of many kinds, each with the pixels that it must decode to."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 5, 7
RAMP = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) * 7
COLOURS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=2)
WHITE_RIM = np.array(COLOURS)
WHITE_RIM[0] = 255


def grey(values):
    return np.stack([np.asarray(values, dtype=np.uint8)] * 3, axis=2)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(bits, colour_type, rows, key=b""):
    """Return a PNG file of any bit depth; `rows` are its packed bytes, `key` is the transparent colour (tRNS)."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    width = len(rows[0]) * 8 // bits // {0: 1, 2: 3, 4: 2}[colour_type]
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = ((b"IHDR", header), (b"tRNS", key), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts if part[1] or part[0] != b"tRNS")


def tiff(width, bits, photometric, row, sample_format=1):
    """Return a greyscale TIFF file of one row; photometric 0 means that 0 is white."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 134, 277: 1, 278: 1, 279: len(row)}
    tags |= {339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + row


def transparent_kinds():
    """Yield files with transparency: what is transparent becomes white, whatever its colour."""
    rgba = np.dstack([COLOURS, np.full_like(RAMP, 255)])
    rgba[0] = 0
    yield "black-bar.png", saved(Image.fromarray(rgba), "PNG"), WHITE_RIM
    yield "black-bar.webp", saved(Image.fromarray(rgba), "WEBP", lossless=True), WHITE_RIM
    yield "black-bar.tif", saved(Image.fromarray(rgba), "TIFF"), WHITE_RIM
    half = Image.merge("LA", [Image.new("L", (2, 1)), Image.fromarray(np.array([[128, 0]], dtype=np.uint8))])
    yield "half.png", saved(half, "PNG"), grey([[127, 255]])
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
    palette.putpalette([9, 8, 7, 60, 50, 40, 0, 0, 0])
    expected = np.array([[[9, 8, 7], [255] * 3, [0] * 3]], dtype=np.uint8)
    yield "palette.png", saved(palette, "PNG", transparency=1), expected
    yield "palette.gif", saved(palette, "GIF", transparency=1), expected
    yield "key1.png", png(1, 0, [bytes([0b10101010])], struct.pack(">H", 0)), grey([[255] * 8])
    yield "key2.png", png(2, 0, [bytes([0b00011011])], struct.pack(">H", 2)), grey([[0, 85, 255, 255]])
    yield "key4.png", png(4, 0, [bytes([0x05, 0xAF])], struct.pack(">H", 5)), grey([[0, 255, 170, 255]])
    yield "key8.png", png(8, 0, [bytes([0, 5, 10])], struct.pack(">H", 5)), grey([[0, 255, 10]])
    wide = struct.pack(">4H", 0, 1000, 1001, 65535)
    yield "key16.png", png(16, 0, [wide], struct.pack(">H", 1000)), grey([[0, 255, 3, 255]])
    wide = struct.pack(">6H", 1000, 2000, 3000, 5000, 2000, 3000)
    expected = np.array([[[255] * 3, [19, 7, 11]]], dtype=np.uint8)
    yield "key48.png", png(16, 2, [wide], struct.pack(">3H", 1000, 2000, 3000)), expected
    yield "alpha16.png", png(16, 4, [struct.pack(">4H", 1000, 65535, 60000, 0)]), grey([[3, 255]])


def deep_kinds():
    """Yield files of more than 8 bits, of which the upper 8 are kept."""
    wide = Image.fromarray(RAMP.astype(np.uint16) * 256 + 37)
    yield "wide.png", saved(wide, "PNG"), grey(RAMP)
    yield "wide.tif", saved(wide, "TIFF"), grey(RAMP)
    yield "wide.pgm", b"P5 3 1 65535\n" + struct.pack(">3H", 0, 0x1234, 65535), grey([[0, 0x12, 255]])
    yield "ten.pgm", b"P5 3 1 1023\n" + struct.pack(">3H", 0, 512, 1023), grey([[0, 128, 255]])
    yield "twelve.tif", tiff(2, 12, 1, bytes([0xFF, 0xF0, 0x80])), grey([[255, 8]])
    yield "inverse.tif", tiff(2, 16, 0, struct.pack("<2H", 0, 0xFE00)), grey([[255, 1]])


def other_kinds():
    plain, turned = Image.fromarray(COLOURS), Image.Exif()
    for kind, suffix in (("PNG", "png"), ("BMP", "bmp"), ("TIFF", "tiff"), ("PPM", "ppm"), ("PPM", "pnm")):
        yield f"plain.{suffix}", saved(plain, kind), COLOURS
    yield "palette-grey.gif", saved(Image.fromarray(RAMP), "GIF"), grey(RAMP)
    yield "frames.gif", saved(plain.quantize(64), "GIF", save_all=True, append_images=[Image.new("P", (7, 5))]), COLOURS
    yield "pages.tif", saved(plain, "TIFF", save_all=True, append_images=[Image.new("RGB", (7, 5))]), COLOURS
    yield "bits.pbm", b"P4 3 1\n" + bytes([0b01000000]), grey([[255, 0, 255]])
    yield "two.png", saved(Image.fromarray(RAMP > 99), "PNG"), grey((RAMP > 99) * 255)
    turned[0x0112] = 6  # stored rotated: to be shown turned clockwise by 90 degrees
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        yield f"turned.{kind.lower()}", saved(plain, kind, exif=turned, **options), np.rot90(COLOURS, -1)
    yield from turned_kinds()
    ink = Image.fromarray(np.array([[[0, 255, 255, 0], [0, 0, 0, 255]]], dtype=np.uint8), "CMYK")
    yield "ink.tif", saved(ink, "TIFF"), np.array([[[255, 0, 0], [0, 0, 0]]], dtype=np.uint8)
    yield "ink.jfif", saved(ink.resize((14, 8), 0), "JPEG", quality=100), None


def turned_kinds():
    """Yield uncompressed TIFF files of each mode, turned and mirrored in every way that EXIF knows."""
    upright = {1: RAMP, 2: RAMP[:, ::-1], 3: RAMP[::-1, ::-1], 4: RAMP[::-1], 5: RAMP.T, 6: np.rot90(RAMP, -1)}
    upright |= {7: RAMP[::-1, ::-1].T, 8: np.rot90(RAMP)}
    opaque = np.full_like(RAMP, 255)
    images = {
        "L": Image.fromarray(RAMP),
        "I16": Image.fromarray(RAMP.astype(np.uint16) * 256),
        "RGB": Image.fromarray(grey(RAMP)),
        "RGBA": Image.fromarray(np.dstack([RAMP, RAMP, RAMP, opaque])),
        "CMYK": Image.frombytes("CMYK", (WIDTH, HEIGHT), np.dstack([0 * RAMP] * 3 + [255 - RAMP]).tobytes()),
    }
    for mode, image in images.items():
        for orientation, pixels in upright.items():
            turned = Image.Exif()
            turned[0x0112] = orientation
            yield f"turned-{mode}-{orientation}.tif", saved(image, "TIFF", exif=turned), grey(pixels)


KINDS = {
    name: (content, pixels) for make in (transparent_kinds, deep_kinds, other_kinds) for name, content, pixels in make()
}
"""Content and pixels [H, W, 3] by file name; the pixels are None if compression changes them."""
UNKNOWN_RANGES = {
    "float.tif": saved(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"),
    "signed.tif": tiff(2, 16, 1, struct.pack("<2h", -5, 30000), sample_format=2),
    "signed8.tif": tiff(2, 8, 1, struct.pack("<2b", -5, 3), sample_format=2),
    "deeper.tif": tiff(2, 32, 1, struct.pack("<2I", 5, 2**32 - 1)),
}
"""Greyscale files that do not define what is black and what is white."""
