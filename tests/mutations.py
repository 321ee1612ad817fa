"""Plants mistakes in the kernels, one at a time, and sees whether the tests catch them.

    python tests/mutations.py [kernels/augment.py ...]

Each mistake is a line of a kernel file and what it is replaced with. The files are put back whatever happens. Ends with
1 and a list if a mistake went unseen.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MUTATIONS: dict[str, tuple[list[str], list[tuple[str, str]]]] = {
    "kernels/augment.py": (
        ["tests/test_augment_kernel.py"],
        [
            ("mask = (rows < S.out_height) & in_row[None, :]", "mask = in_row[None, :] & (rows >= 0)"),
            ("in_row = values < S.out_width * S.channels", "in_row = values < S.out_width * S.channels - 1"),
            ("return tl.where(index >= SIZE, 2 * (SIZE - 1) - index, index)",
             "return tl.where(index >= SIZE, 2 * SIZE - 1 - index, index)"),
            ("tl.where(draws[2] != 0, S.window_width - 1 - columns, columns)",
             "tl.where(draws[2] != 0, S.window_width - columns, columns)"),
            ("tl.where(draws[2] != 0, S.window_width - 1 - columns, columns)",
             "tl.where(draws[2] != 0, S.width - 1 - columns, columns)"),
            ("S.height + 2 * S.padding - S.window_height + 1", "S.height + 2 * S.padding - S.window_height"),
            ("S.width + 2 * S.padding - S.window_width + 1", "S.width + 2 * S.padding - S.window_width"),
            ("_reflected_device(place_row, S.height)", "_reflected_device(place_row, S.window_height)"),
            ("_reflected_device(place_column, S.width)", "_reflected_device(place_column, S.height)"),
            ("row * (S.width * S.channels)", "row * (S.window_width * S.channels)"),
            ("squares[0], S.window_height - S.cutout + 1", "squares[0], S.height - S.cutout + 1"),
            ("squares[3], S.window_width - S.cutmix + 1", "squares[3], S.width - S.cutmix + 1"),
            ("_taps_device(rows, S.window_height, S.out_height)", "_taps_device(rows, S.height, S.out_height)"),
            ("words[2] & 1", "words[3] & 1"),
            ("(random_words_device(seed, tl.zeros_like(epoch), image, 1)[0] ^ epoch) & 1",
             "random_words_device(seed, tl.zeros_like(epoch), image, 1)[0] & 1"),
            ("(rows >= row) & (rows < row + SIDE)", "(rows > row) & (rows < row + SIDE)"),
            ("partner = permuted_device(image, seed, epoch, 3,", "partner = permuted_device(position, seed, epoch, 3,"),
            ("images_ptr, partner, partner_draws, rows", "images_ptr, partner, draws, rows"),
            ("own_mask = mask & (pasted == 0)", "own_mask = mask & pasted"),
            ("image.to(tl.int64) * (S.height * S.width * S.channels)",
             "(image.to(tl.int32) * (S.height * S.width * S.channels)).to(tl.int64)"),
            ("(counter % steps_per_epoch * batch_size + in_batch)", "(counter * batch_size + in_batch)"),
            ("(row == place_row) & (column == place_column)", "(row == place_row) & (column == column)"),
            ("tl.load(labels_ptr + drawn[2])", "tl.load(labels_ptr + drawn[0])"),
            ("values % S.channels\n", "values % 3\n"),
            (".to(tl.float32) * scale + shift", ".to(tl.float16).to(tl.float32) * scale.to(tl.float16) + shift"),
            ("(values + draws[7]) * draws[8]", "values * draws[8] + draws[7]"),
            ("between_device(jitter[1])", "between_device(jitter[0])"),
            ("tl.minimum(first + 1, SIZE - 1)", "first"),
            ("(SIZE / OUT_SIZE) - 0.5", "(SIZE / OUT_SIZE)"),
            ("_taps_device(columns, S.window_width, S.out_width)", "_taps_device(columns, S.window_width - 1, S.out_width)"),
            ("upper = first + along * (second - first)", "upper = first + down * (second - first)"),
        ],
    ),
    "kernels/batch_norm.py": (
        ["tests/test_batch_norm_kernel.py"],
        [
            ("(rows < ROWS)[:, None]", "(rows >= 0)[:, None]"),
            ("(rows < ROWS)[:, None]", "(rows < ROWS - 1)[:, None]"),
            ("(places // S.pixels * S.groups + tl.program_id(2)) * S.pixels",
             "(places // S.pixels + tl.program_id(2) * (ROWS // S.pixels)) * S.pixels"),
            ("exists = (tl.arange(0, S.depth)[:, None, None] * LANES + lane[None] < left).to(tl.float32)",
             "exists = (tl.arange(0, S.depth)[:, None, None] * LANES + lane[None] >= 0).to(tl.float32)"),
            ("(left - lane + LANES - 1) // LANES", "(left - lane) // LANES"),
            ("squares + own_squares + step * step * (count * share)", "squares + own_squares + step * step * count"),
            ("tl.sum(squares + steps * steps * count, 0)", "tl.sum(squares, 0)"),
            ("cache_modifier=\".cg\").to(tl.float32)", "cache_modifier=\".cg\").to(tl.float32) * 0.0"),
            ("mask = (program < tl.num_programs(0))[:, None]", "mask = (program < tl.num_programs(0) - 1)[:, None]"),
            ("counts = tl.minimum(ROWS - tl.arange(0, PROGRAMS) * rows_each, rows_each)",
             "counts = tl.minimum(ROWS, rows_each) + 0 * tl.arange(0, PROGRAMS)"),
            ("tl.store(arrivals, 0)", "tl.store(arrivals, 1)"),
            ("tl.num_programs(0) * tl.num_programs(2) - 1", "tl.num_programs(0) - 1"),
            ("tl.sqrt_rn(squares / ROWS + epsilon)", "tl.sqrt_rn(squares / ROWS) + epsilon"),
            ("batch_variance += squares / tl.maximum(ROWS - 1, 1) / S.groups", "batch_variance += squares / ROWS / S.groups"),
            ("old_mean + momentum * (batch_mean - old_mean)", "batch_mean + momentum * (old_mean - batch_mean)"),
            ("return vectors[2] * (du - bias_mean", "return vectors[1] * (du - bias_mean"),
            ("in_lanes_device(du * centred, S)", "in_lanes_device(du, S)"),
            ("weight_sum *= vectors[1]", "weight_sum *= 1.0"),
            ("du - bias_mean - centred * (vectors[1] * weight_mean)", "du - bias_mean + centred * (vectors[1] * weight_mean)"),
            ("other=0.0).to(tl.float32) - pivot[None, :]", "other=0.0).to(tl.float16).to(tl.float32) - pivot[None, :]"),
            ("(gradient if after else residual_gradient)", "residual_gradient"),
        ],
    ),
    "kernels/pool_batch_norm.py": (
        ["tests/test_pool_batch_norm_kernel.py"],
        [
            ("(DOWN * ACROSS) * S.groups + tl.program_id(2)", "(DOWN * ACROSS) + tl.program_id(2)"),
            ("inside // ACROSS, inside % ACROSS", "inside // DOWN, inside % DOWN"),
            ("pixel = (index // 2) * WIDTH + index % 2\n        value", "pixel = (index % 2) * WIDTH + index // 2\n        value"),
            ("(value > largest) | (value != value)", "value > largest"),
            ("(value > largest) | (value != value)", "(value >= largest) | (value != value)"),
            ("tl.static_range(1, 4)", "tl.static_range(1, 3)"),
            ("first = tl.program_id(2).to(tl.int64) * (HEIGHT * WIDTH * S.channels) + channels", "first = channels"),
            ("tl.store(pooled_ptr + places, largest.to(pooled_ptr.dtype.element_ty), mask=mask)",
             "tl.store(pooled_ptr + places, largest.to(pooled_ptr.dtype.element_ty), mask=mask & (places > 0))"),
            ("tile = tl.program_id(0) * TILES_EACH + index", "tile = tl.program_id(0) + index"),
            ("_windows_device(tl.program_id(0), (HEIGHT + 1) // 2, (WIDTH + 1) // 2, S)",
             "_windows_device(tl.program_id(0), HEIGHT // 2, WIDTH // 2, S)"),
            ("whole = in_group & (row < HEIGHT // 2) & (column < WIDTH // 2)", "whole = in_group"),
            ("inside = in_group & (2 * row + index // 2 < HEIGHT)", "inside = in_group & (2 * row < HEIGHT)"),
            ("(2 * column + index % 2 < WIDTH)", "(2 * column < WIDTH)"),
            ("tl.where(winner == index, dp, 0.0)", "tl.where(winner >= index, dp, 0.0)"),
            ("ctx.settings = x.shape[2], x.shape[3], activation", "ctx.settings = x.shape[3], x.shape[2], activation"),
        ],
    ),
    "kernels/convolution_pool.py": (
        ["tests/test_convolution_pool_kernel.py"],
        [
            ("((windows // AN_IMAGE - first) * S.height", "((windows // AN_IMAGE) * S.height"),
            ("row = windows % AN_IMAGE // (S.width // 2)", "row = windows // (S.width // 2)"),
            ("+ 2 * row - 1) * S.width + 2 * column - 1", "+ 2 * row - 1) * S.width + 2 * column"),
            ("pixel * S.channels, row, column, windows < ROWS", "pixel * S.channels, row, column, windows < ROWS - 1"),
            ("exists = exists & (row > 0)", "exists = exists & (row >= 0)"),
            ("if INDEX == 3 and S.height % 2 == 0:", "if INDEX == 3 and S.width % 2 == 0:"),
            ("(column > 0)[:, None] | (values >= S.channels)", "(column >= 0)[:, None] | (values >= S.channels)"),
            ("(column < S.width // 2 - 1)[:, None] | (values < 3", "(column < S.width // 2)[:, None] | (values < 3"),
            ("((values >= 0) & (values < 3 * S.channels))[:, None]", "((values >= 0) & (values < 4 * S.channels))[:, None]"),
            ("FIRST: tl.constexpr = S.middle - COLUMN * S.channels", "FIRST: tl.constexpr = S.middle"),
            ("(value > largest) | (value != value)", "value > largest"),
            ("(value > largest) | (value != value)", "(value >= largest) | (value != value)"),
            ("right if position % 2 else left", "left"),
            ("tl.program_id(1) * S.block_filters + tl.arange", "tl.arange"),
            ("tile = tl.program_id(0) * TILES_EACH + number", "tile = tl.program_id(0) + number"),
            ("tl.where(winner == across + 2, gradient, 0.0)", "tl.where(winner >= across + 2, gradient, 0.0)"),
            ("rows, values = DOWN + rests // REST", "rows, values = rests // REST"),
            ("| (rows > 0)[None, :])", "| (rows >= 0)[None, :])"),
            ("| (rows < 3)[None, :])", "| (rows < 4)[None, :])"),
            ("_with_product_device(sums, index - 1, lower", "_with_product_device(sums, index - 1, upper"),
            ("tl.dot(lower if down else upper, rests", "tl.dot(upper, rests"),
            ("sums.sum(0).transpose(0, 1)", "sums[:1].sum(0).transpose(0, 1)"),
            ("if ctx.needs_input_grad[0]:", "if True:"),
            ("gradient.to(tl.float32)", "gradient.to(tl.float16).to(tl.float32)"),
        ],
    ),
    "kernels/stem.py": (
        ["tests/test_stem_kernel.py"],
        [
            ("filters[None, :] * T.taps + taps[:, None]", "taps[:, None] * T.filters + filters[None, :]"),
            ("(taps < T.taps)[:, None] & (filters < T.filters)[None, :]", "(taps < T.taps)[:, None] & (filters < T.filters - 1)[None, :]"),
            ("(taps // (S.channels * T.kernel))[None, :]", "(taps // S.channels % T.kernel)[None, :]"),
            ("(patches // T.width)[:, None]", "(patches // T.height)[:, None]"),
            ("scale = tl.load(scale_ptr + channels, mask=exists, other=0.0)", "scale = tl.load(scale_ptr + taps % 2, mask=exists, other=0.0)"),
            ("+ weights[1][None, :]", ""),
            ("(patches < T.height * T.width)[:, None] & (filters < T.filters)[None, :]", "(patches < T.height * T.width - 1)[:, None] & (filters < T.filters)[None, :]"),
            ("in_batch.to(tl.int64) * (T.height * T.width * T.filters)", "in_batch.to(tl.int64) * (T.width * T.width * T.filters)"),
            ("tl.store(drawn_at_ptr + 1, tl.load(counter_ptr))", "tl.store(drawn_at_ptr + 1, tl.load(seed_ptr))"),
            ("if in_batch == 0:", "if in_batch == 100:"),
            ("gradient * activation_slope_device(u, KIND, T.alpha)", "gradient"),
            ("drawn_device(drawn_at_ptr, drawn_at_ptr + 1,", "drawn_device(drawn_at_ptr + 1, drawn_at_ptr,"),
            ("tl.store(bias_sums_ptr + in_batch * T.filters + filters", "tl.store(bias_sums_ptr + in_batch * T.block_filters + filters"),
            ("values, weight = values.to(like.dtype.element_ty)", "values, weight = values.to(tl.float16).to(like.dtype.element_ty)"),
            ("if T.biased:", "if False:"),
        ],
    ),
    "kernels/activations.py": (
        ["tests/test_batch_norm_kernel.py"],
        [
            ("x = tl.where(x < 0.0, 0.0, x)", "x = tl.maximum(x, -0.01)"),
            ("ALPHA * (tl.exp(x / ALPHA) - 1.0)", "tl.exp(x) - 1.0"),
            ("slope = tl.where(x <= 0.0, tl.exp(x / ALPHA), 1.0)", "slope = tl.where(x <= 0.0, tl.exp(x), 1.0)"),
            ("+ x * density", "+ density"),
            ("gate * (1.0 + x * (1.0 - gate))", "gate"),
            ("(1.0 + 3.0 * 0.044715 * x * x)", "(1.0 + 0.044715 * x * x)"),
        ],
    ),
    "kernels/random.py": (
        ["tests/test_augment_kernel.py"],
        [
            ("for _ in tl.static_range(2):\n        key", "for _ in tl.static_range(1):\n        key"),
            ("row = (row + scrambled_device(column ^ key) % ROWS) % ROWS", "row = (row + scrambled_device(row ^ key) % ROWS) % ROWS"),
            ("tl.where(position < ROWS * COLUMNS, row * COLUMNS + column, position)", "row * COLUMNS + column"),
            ("scrambled_device(low ^ scrambled_device(high ^ key))", "scrambled_device(low ^ scrambled_device(key))"),
        ],
    ),
}  # fmt: skip


def caught(path: Path, tests: list[str], original: str, old: str, new: str) -> bool:
    """Whether `tests` fail with `old` replaced by `new` in the file `path`."""
    if original.count(old) < 1 or old == new:
        raise SystemExit(f"{path.name}: no such line any more: {old}")
    path.write_text(original.replace(old, new, 1))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:benchmark", *tests]
    command += ["-o", "addopts="]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ))
    finally:
        path.write_text(original)
    return done.returncode == 1 or done.returncode < 0  # tests failed, or the process died of reading beyond memory


def main(chosen: list[str]) -> int:
    """Plant all mistakes of the chosen files (none: all); 1 if one was not seen."""
    missed = []
    for name, (tests, mutations) in MUTATIONS.items():
        if chosen and name not in chosen:
            continue
        path = ROOT / name
        original = path.read_text()
        for old, new in mutations:
            seen = caught(path, tests, original, old, new)
            print("caught" if seen else "MISSED", name, new, sep="\t", flush=True)
            missed += [] if seen else [new]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
