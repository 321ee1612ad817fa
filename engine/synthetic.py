"""Synthetic data set: ten classes of shapes, drawn from a seed, for machines without access to real images.

Each image shows one shape of random colour, place, size and tilt on a background with a smooth gradient, a few blobs
and noise. The shape may be lighter or darker than its background, so single pixels reveal little about the class. The
distribution of every class is its own mirror image, because training flips images.

Only exactly rounded operations are used (no sine, exponential or matrix product), so a seed gives the same bytes on
every machine.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .image_folders import Progress
from .pack import Pack, make_pack

Floats = npt.NDArray[np.floating[Any]]
"""Always float32: NumPy's stubs lose track of that in arithmetic."""
Shape = Callable[[Floats, Floats], Floats]

SYNTHETIC = "synthetic"
"""Name of the data set."""
PIXELS_PER_CHUNK = 1 << 18
BLOBS = 2


def _box(u: Floats, v: Floats, half_width: float, half_height: float) -> Floats:
    distance: Floats = np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)
    return distance


def _disc(u: Floats, v: Floats) -> Floats:
    return np.sqrt(u * u + v * v) - 0.88


def _ring(u: Floats, v: Floats) -> Floats:
    return np.abs(np.sqrt(u * u + v * v) - 0.7) - 0.19


def _square(u: Floats, v: Floats) -> Floats:
    return _box(u, v, 0.78, 0.78)


def _frame(u: Floats, v: Floats) -> Floats:
    distance: Floats = np.abs(_box(u, v, 0.62, 0.62)) - 0.17
    return distance


def _triangle_up(u: Floats, v: Floats) -> Floats:
    side = 0.875 * np.abs(u) - 0.484 * (v + 0.9)
    distance: Floats = np.maximum(v - 0.75, side)
    return distance


def _triangle_down(u: Floats, v: Floats) -> Floats:
    return _triangle_up(u, -v)


def _plus(u: Floats, v: Floats) -> Floats:
    return np.minimum(_box(u, v, 0.24, 0.9), _box(u, v, 0.9, 0.24))


def _cross(u: Floats, v: Floats) -> Floats:
    half = 0.5**0.5
    return _plus((u + v) * half, (v - u) * half)


def _horizontal_stripes(u: Floats, v: Floats) -> Floats:
    nearest_bar = np.minimum(np.abs(v), np.abs(np.abs(v) - 0.66))
    return _box(u, nearest_bar, 0.82, 0.17)


def _vertical_stripes(u: Floats, v: Floats) -> Floats:
    return _horizontal_stripes(v, u)


# Signed distance to the outline, negative inside, of a shape of about unit radius; v points down.
SHAPES: dict[str, Shape] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "frame": _frame,
    "triangle up": _triangle_up,
    "triangle down": _triangle_down,
    "plus": _plus,
    "cross": _cross,
    "horizontal stripes": _horizontal_stripes,
    "vertical stripes": _vertical_stripes,
}


class _Draws:
    """Random numbers of `count` images: named columns of uniform draws [count, width] in [low, high)."""

    def __init__(self, generator: np.random.Generator, count: int) -> None:
        self.generator = generator
        self.count = count
        self.columns: dict[str, Floats] = {}

    def add(self, name: str, width: int, low: float, high: float) -> None:
        draws = self.generator.random((self.count, width))
        self.columns[name] = (low + (high - low) * draws).astype(np.float32)

    def rows(self, indices: npt.NDArray[np.int64]) -> dict[str, Floats]:
        return {name: column[indices] for name, column in self.columns.items()}


def _draw_parameters(generator: np.random.Generator, count: int) -> _Draws:
    """Draw places and radii in units of the image side, and colours in [0, 1]."""
    draws = _Draws(generator, count)
    draws.add("centre", 2, -0.16, 0.16)
    draws.add("radius", 1, 0.18, 0.36)
    draws.add("half_tilt", 1, -0.14, 0.14)
    draws.add("background", 3, 0.2, 0.8)
    draws.add("gradient", 6, -0.3, 0.3)
    draws.add("polarity", 1, -1.0, 1.0)
    draws.add("contrast", 1, 0.09, 0.45)
    draws.add("tint", 3, -0.12, 0.12)
    draws.add("blob_centre", 2 * BLOBS, -0.5, 0.5)
    draws.add("blob_radius", BLOBS, 0.04, 0.14)
    draws.add("blob_colour", 3 * BLOBS, -0.45, 0.45)
    draws.add("noise", 1, 0.2, 0.7)
    return draws


def _coverage(distance: Floats, size: int) -> Floats:
    """Return the share of each pixel inside an outline, from its distance in units of the image side."""
    coverage: Floats = np.clip(0.5 - distance * size, 0.0, 1.0)
    return coverage


def _per_image(values: Floats) -> Floats:
    """Reshape [n, k] to [n, 1, 1, k], to broadcast with images [n, H, W, k]."""
    return values[:, None, None, :]


def _shape_coverage(shape: Shape, x: Floats, y: Floats, rows: dict[str, Floats], size: int) -> Floats:
    """Return the coverage [n, H, W] of the class's shape, moved, tilted and scaled according to the rows."""
    centre, radius, half = rows["centre"], rows["radius"][..., None], rows["half_tilt"][..., None]
    # Cosine and sine from the tangent of half the angle: division rounds the same everywhere, sine does not.
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    u, v = (dx * cosine + dy * sine) / radius, (dy * cosine - dx * sine) / radius
    return _coverage(shape(u, v) * radius, size)


def _backgrounds(x: Floats, y: Floats, rows: dict[str, Floats], size: int) -> Floats:
    """Return colour gradients with blobs, [n, H, W, 3]."""
    gradient = rows["gradient"]
    images = _per_image(rows["background"]) + x[..., None] * _per_image(gradient[:, :3])
    images = images + y[..., None] * _per_image(gradient[:, 3:])
    for blob in range(BLOBS):
        centre = rows["blob_centre"][:, 2 * blob : 2 * blob + 2]
        dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
        distance = np.sqrt(dx * dx + dy * dy) - rows["blob_radius"][:, blob, None, None]
        colour = _per_image(rows["blob_colour"][:, 3 * blob : 3 * blob + 3])
        images += _coverage(distance, size)[..., None] * colour
    return images


def _draw_images(shape: Shape, rows: dict[str, Floats], size: int, noise: Floats) -> npt.NDArray[np.uint8]:
    """Return images [n, size, size, 3] of one shape; `noise` [n, size, size, 3] is uniform in [0, 1)."""
    axis: Floats = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    x, y = axis[None, None, :], axis[None, :, None]
    coverage = _shape_coverage(shape, x, y, rows, size)[..., None]
    paint = np.where(rows["polarity"] < 0, -rows["contrast"], rows["contrast"]) + rows["tint"]
    images = _backgrounds(x, y, rows, size) + coverage * _per_image(paint)
    images += (noise - 0.5) * _per_image(rows["noise"])
    pixels: Floats = np.rint(np.clip(images, 0.0, 1.0) * 255)
    return pixels.astype(np.uint8)


def _chunks(count: int, chunk_size: int) -> Iterator[tuple[Shape, npt.NDArray[np.int64]]]:
    """Yield chunks of image indices class by class; image i has class i modulo 10."""
    for label, shape in enumerate(SHAPES.values()):
        indices = np.arange(label, count, len(SHAPES))
        for start in range(0, len(indices), chunk_size):
            yield shape, indices[start : start + chunk_size]


def _draw_split(
    count: int, size: int, seed: tuple[int, int], report: Callable[[int], None]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return images [count, size, size, 3] and labels [count]; `report` receives the number of images just drawn."""
    draws = _draw_parameters(np.random.default_rng((*seed, 0)), count)
    noise = np.random.default_rng((*seed, 1))
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    for shape, indices in _chunks(count, max(1, PIXELS_PER_CHUNK // (size * size))):
        uniform = noise.random((len(indices), size, size, 3), dtype=np.float32)
        images[indices] = _draw_images(shape, draws.rows(indices), size, uniform)
        report(len(indices))
    return images, np.arange(count, dtype=np.int64) % len(SHAPES)


def make_synthetic(
    train_images: int = 20_000,
    test_images: int = 4_000,
    size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pack:
    """Draw the synthetic data set: colour images of `size` x `size`, with equal shares of all classes.

    The same arguments give the same bytes. `seed` is not negative.
    """
    done = 0

    def report(drawn: int) -> None:
        nonlocal done
        done += drawn
        if progress is not None:
            progress(done, train_images + test_images, "drawing synthetic images")

    train = _draw_split(train_images, size, (seed, 0), report)
    test = _draw_split(test_images, size, (seed, 1), report)
    return make_pack(SYNTHETIC, tuple(SHAPES), *train, *test)
