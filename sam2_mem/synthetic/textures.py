"""Seeded procedural textures: 1/f noise, multi-region skins, backgrounds, and an exact integer sampler.

A texture is a square, periodic image whose pixels are packed as three 16-bit lanes of one uint64 (red in the
lowest). One integer multiplication then scales all three channels, so bilinear sampling and blending are both
fast and the same to the bit on every machine. Fields are computed in float64 and rounded once, here, to 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

LANES = np.uint64(0x00FF00FF00FF)
OPAQUE = 64  # coverage and blend weights run from 0 to OPAQUE
_SHIFT = np.uint64(6)
_WEIGHTS = np.uint64(8)
SKIN_SPAN = 3.2  # a skin covers [-1.6, 1.6] x [-1.6, 1.6] of an object whose radius is 1
SKIN_PATTERNS = ("stripes", "spots", "patches", "bands", "checks")


@dataclass(frozen=True)
class Texture:
    """A periodic n x n image, n a power of two; `lanes` is (n + 1, n + 1) uint64: the first row and column are
    repeated at the end.
    """

    size: int
    lanes: np.ndarray

    @staticmethod
    def from_rgb(rgb: np.ndarray) -> Texture:
        """(n, n, 3) uint8 -> texture."""
        size = rgb.shape[0]
        assert rgb.shape == (size, size, 3) and size & (size - 1) == 0, rgb.shape
        return Texture(size=size, lanes=pack(np.pad(rgb, ((0, 1), (0, 1), (0, 0)), mode="wrap")))

    def mean_colour(self) -> np.ndarray:
        """Mean red, green, blue in 0..255: (3,) float64."""
        return unpack(self.lanes[:-1, :-1]).reshape(-1, 3).mean(axis=0)


def pack(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) uint64 lanes."""
    wide = rgb.astype(np.uint64)
    return wide[..., 0] | (wide[..., 1] << np.uint64(16)) | (wide[..., 2] << np.uint64(32))


def unpack(lanes: np.ndarray) -> np.ndarray:
    """(H, W) uint64 lanes -> (H, W, 3) uint8."""
    halves = np.ascontiguousarray(lanes, dtype="<u8").view("<u2").reshape(*lanes.shape, 4)
    return halves[..., :3].astype(np.uint8)


def blend(under: np.ndarray, over: np.ndarray, weight: np.ndarray | np.uint64) -> np.ndarray:
    """Lanes of `over` at weight / OPAQUE upon `under`; the weight (uint64 array or scalar) lies in 0..OPAQUE."""
    return ((over * weight + under * (np.uint64(OPAQUE) - weight)) >> _SHIFT) & LANES


def darken(lanes: np.ndarray, keep: np.ndarray | np.uint64) -> np.ndarray:
    """Lanes scaled by keep / OPAQUE, keep in 0..OPAQUE."""
    return ((lanes * keep) >> _SHIFT) & LANES


def cross_fade(first: Texture, second: Texture, share: float) -> Texture:
    """A texture between two of equal size; share 0 is the first, 1 the second, in steps of 1 / OPAQUE."""
    weight = round(share * OPAQUE)
    if weight <= 0 or first is second:
        return first
    if weight >= OPAQUE:
        return second
    return Texture(size=first.size, lanes=blend(first.lanes, second.lanes, np.uint64(weight)))


def sample(texture: Texture, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear lookup at texel coordinates (float32, same shape, not below -64 periods) with weights in sixteenths;
    uint64 lanes.
    """
    size, stride = texture.size, texture.size + 1
    bias = np.float32(64 * size - 0.5)
    column = ((u + bias) * np.float32(16)).astype(np.int32)
    row = ((v + bias) * np.float32(16)).astype(np.int32)
    index = ((row >> 4) & (size - 1)) * stride + ((column >> 4) & (size - 1))
    fx = (column & 15).astype(np.uint64)
    fy = (row & 15).astype(np.uint64)
    flat = texture.lanes.reshape(-1)
    sixteen = np.uint64(16)
    top = flat.take(index) * (sixteen - fx) + flat.take(index + 1) * fx
    bottom = flat.take(index + stride) * (sixteen - fx) + flat.take(index + (stride + 1)) * fx
    return ((top * (sixteen - fy) + bottom * fy) >> _WEIGHTS) & LANES


def noise_field(rng: np.random.Generator, size: int, exponent: float) -> np.ndarray:
    """Periodic noise of unit deviation whose amplitude falls as frequency ** -exponent (1 is natural-like; in
    tenths): (size, size).
    """
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * _falloff(size, round(10 * exponent))
    field = np.fft.irfft2(spectrum, s=(size, size))
    return field / (field.std() + 1e-12)


@lru_cache(maxsize=48)
def _falloff(size: int, tenths: int) -> np.ndarray:
    """Frequency ** -(tenths / 10) without the mean: (size, size // 2 + 1) float64."""
    fy = np.fft.fftfreq(size)[:, None] * size
    fx = np.fft.rfftfreq(size)[None, :] * size
    squared = fx * fx + fy * fy
    squared[0, 0] = np.inf
    return squared ** (-tenths / 20)


def hsv_colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """Hue in turns, the others in 0..1 -> (3,) red, green, blue in 0..255."""
    turns = (np.array([5.0, 3.0, 1.0]) + 6.0 * hue) % 6.0
    return 255.0 * value * (1.0 - saturation * np.clip(np.minimum(turns, 4.0 - turns), 0.0, 1.0))


def draw_palette(
    rng: np.random.Generator,
    count: int,
    *,
    vivid: float,
    hues: tuple[float, float] = (0.0, 1.0),
    steps: tuple[float, float] = (0.12, 0.45),
) -> np.ndarray:
    """`count` colours: (count, 3) float64 in 0..255. Vivid 0 is grey, 1 saturated; from a hue of `hues` on by a
    step of `steps`.
    """
    hue, step = rng.uniform(*hues), rng.uniform(*steps)
    values = rng.permutation(np.linspace(0.3, 0.95, count))
    saturations = np.clip(vivid * rng.uniform(0.45, 1.05, count), 0.0, 1.0)
    return np.stack(
        [hsv_colour((hue + i * step) % 1.0, s, v) for i, (s, v) in enumerate(zip(saturations, values, strict=True))]
    )


def _quantile_regions(field: np.ndarray, count: int) -> np.ndarray:
    """Index 0..count-1 of each value's equal-area band."""
    cuts = np.quantile(field[::4, ::4], np.arange(1, count) / count)
    return np.digitize(field, cuts)


def _voronoi(rng: np.random.Generator, size: int, cells: int, count: int) -> np.ndarray:
    """Nearest of `cells` random points on the torus, numbered modulo `count`: (size, size) int."""
    grid = (np.arange(size) + 0.5) / size
    points = rng.random((cells, 2))
    across = np.abs(grid[None, :] - points[:, :1])
    down = np.abs(grid[None, :] - points[:, 1:])
    across, down = np.minimum(across, 1 - across) ** 2, np.minimum(down, 1 - down) ** 2
    return np.argmin(down[:, :, None] + across[:, None, :], axis=0) % count


def _skin_regions(rng: np.random.Generator, size: int, pattern: str, count: int) -> np.ndarray:
    """Which of `count` colours each texel takes: (size, size) int."""
    grid = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(grid, grid)
    if pattern == "spots":
        return _quantile_regions(noise_field(rng, size, 2.2), count)
    if pattern == "patches":
        return _voronoi(rng, size, int(rng.integers(9, 22)), count)
    bend = 0.05 * noise_field(rng, size, 2.5)
    if pattern == "stripes":
        kx, ky = rng.permutation([int(rng.integers(3, 8)), int(rng.integers(-3, 4))])
        return (np.floor((kx * x + ky * y + bend * 2.0) * count) % count).astype(np.int64)
    if pattern == "bands":
        ring = np.hypot(x - 0.5, y - 0.5) * rng.uniform(4.0, 9.0)
        return (np.floor(ring + 6.0 * bend) % count).astype(np.int64)
    cells = int(rng.integers(6, 11))
    return ((np.floor((x + 0.4 * bend) * cells) + np.floor((y + 0.4 * bend) * cells)) % count).astype(np.int64)


def make_skin(
    rng: np.random.Generator,
    size: int,
    palette: np.ndarray,
    *,
    pattern: str,
    grain: float = 0.12,
) -> Texture:
    """A skin of len(palette) regions, each with its own noise: `grain` is the relative strength of the noise."""
    count = len(palette)
    regions = _skin_regions(rng, size, pattern, count)
    strength = grain * rng.uniform(0.3, 1.7, count)
    field = 1.0 + noise_field(rng, size, 0.9) * strength[regions]
    return Texture.from_rgb(_to_bytes(palette[regions] * field[..., None]))


def _to_bytes(rgb: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _ramp(field: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Map values, 0..1 over the whole palette, to interpolated colours: (..., 3) float64."""
    at = np.clip(field, 0.0, 1.0) * (len(palette) - 1)
    stops = np.arange(len(palette))
    return np.stack([np.interp(at, stops, palette[:, c]) for c in range(3)], axis=-1)


def _gradient(rng: np.random.Generator, size: int, palette: np.ndarray) -> np.ndarray:
    grid = np.arange(size) / size * 2 * np.pi
    phases = rng.random(2) * 2 * np.pi
    share = rng.random()
    wave = share * np.cos(grid[:, None] + phases[0]) + (1 - share) * np.cos(grid[None, :] + phases[1])
    return _ramp(0.5 + 0.5 * wave, palette)


def _natural(rng: np.random.Generator, size: int, palette: np.ndarray) -> np.ndarray:
    coarse = noise_field(rng, size, rng.uniform(1.0, 1.6))
    fine = noise_field(rng, size, rng.uniform(0.5, 0.9))
    return _ramp(0.5 + 0.24 * coarse, palette) * (1.0 + 0.13 * fine[..., None])


def _patchwork(rng: np.random.Generator, size: int, palette: np.ndarray) -> np.ndarray:
    """Out-of-focus patches: drawn and blurred at a quarter of the resolution, then enlarged."""
    regions = _voronoi(rng, size // 4, int(rng.integers(8, 26)), len(palette))
    blurred = Texture.from_rgb(_to_bytes(_wrapped_blur(palette[regions], int(rng.integers(1, 4)))))
    at = (np.arange(size, dtype=np.float32) + 0.5) / 4
    image = unpack(sample(blurred, *np.meshgrid(at, at)))
    return image * (1.0 + 0.08 * noise_field(rng, size, 0.9)[..., None])


def _wrapped_blur(rgb: np.ndarray, radius: int) -> np.ndarray:
    """Periodic box blur, twice, by differences of running sums: (n, n, 3) float64."""
    width = 2 * radius + 1
    for axis in (0, 1, 0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (radius + 1, radius)
        sums = np.cumsum(np.pad(rgb, pad, mode="wrap"), axis=axis)
        upper = np.take(sums, np.arange(width, sums.shape[axis]), axis=axis)
        rgb = (upper - np.take(sums, np.arange(0, sums.shape[axis] - width), axis=axis)) / width
    return rgb


def _skyline(rng: np.random.Generator, size: int, height: float, relief: float) -> np.ndarray:
    """A periodic ridge: rows from the top, (size,) float64."""
    waves = np.arange(1, 24)
    turns = np.arange(size)[:, None] / size * waves + rng.random(len(waves))
    profile = (np.cos(2 * np.pi * turns) / waves**1.3 * rng.uniform(0.5, 1.0, len(waves))).sum(axis=1)
    return size * (height + relief * profile)


def _landscape(rng: np.random.Generator, size: int, palette: np.ndarray) -> np.ndarray:
    """Sky and three to four ridges, nearer ones darker and with rougher ground."""
    rows = np.arange(size)[:, None]
    sky = hsv_colour(rng.uniform(0.5, 0.65), rng.uniform(0.15, 0.5), rng.uniform(0.75, 0.98))
    haze = sky + (255.0 - sky) * 0.55
    image = _ramp(rows / (0.5 * size), np.stack([sky, haze])) + 7.0 * noise_field(rng, size, 1.9)[..., None]
    ridges = int(rng.integers(3, 5))
    fine = noise_field(rng, size, 0.75)
    for i in range(ridges):
        nearness = (i + 1) / ridges
        crest = _skyline(rng, size, 0.24 + 0.42 * i / ridges, 0.05)
        ground = haze + (palette[i % len(palette)] * (1.0 - 0.35 * nearness) - haze) * (0.35 + 0.65 * nearness)
        relief = 1.0 + 0.17 * nearness * np.roll(fine, 37 * i, axis=1) + 0.12 * (rows - crest[None, :]) / size
        image = np.where((rows >= crest[None, :])[..., None], ground * relief[..., None], image)
    # The texture repeats: a camera that looks up sees sky beyond the top.
    return np.where((rows > 0.92 * size)[..., None], sky, image)


def _draw_lines(rng: np.random.Generator, image: np.ndarray, count: int) -> None:
    """Paint `count` straight segments and outlined boxes of random colours."""
    size = image.shape[0]
    for _ in range(count):
        colour = tuple(int(c) for c in rng.integers(20, 235, 3))
        start, reach = rng.integers(0, size, 2), rng.integers(-size // 2, size // 2, 2)
        first, last = (int(p) for p in start), (int(p) for p in start + reach)
        draw = cv2.rectangle if rng.random() < 0.25 else cv2.line
        draw(image, tuple(first), tuple(last), colour, thickness=int(rng.integers(1, 4)))


def make_background(
    rng: np.random.Generator,
    size: int,
    *,
    kind: str,
    vivid: float = 0.5,
    lines: int = 0,
    palette: np.ndarray | None = None,
) -> np.ndarray:
    """A periodic background of kind gradient, noise, patches or landscape with `lines` pieces of line clutter: (size, size, 3) uint8.

    Without a palette, its hues lie between earth and sky, seldom elsewhere."""
    painters = {"gradient": _gradient, "noise": _natural, "patches": _patchwork, "landscape": _landscape}
    if palette is None:
        hues = (0.04, 0.55) if rng.random() < 0.85 else (0.0, 1.0)
        palette = draw_palette(rng, int(rng.integers(2, 5)), vivid=vivid, hues=hues, steps=(0.01, 0.09))
    if kind == "gradient":
        palette = palette.mean(axis=0) * 0.45 + palette * 0.55
    image = _to_bytes(painters[kind](rng, size, palette))
    _draw_lines(rng, image, lines)
    return image
