"""Owns the landscapes: five times of day over seven places, with what stands, flies, sails and shines in them."""

import random

import msgspec
import numpy as np
from PIL import Image

from daguerre.demo.drawing import (
    COLUMNS,
    SIZE,
    Floats,
    X,
    Y,
    blend,
    cloud_noise,
    coverage,
    mix,
    rectangle,
    rgb,
    ridge_noise,
)


class Palette(msgspec.Struct, frozen=True):
    """The colours of a time of day: the sky from the top to the horizon, and what light makes of the rest."""

    sky: tuple[Floats, Floats, Floats]
    haze: Floats
    shade: Floats
    cloud: Floats
    light: float
    sun: Floats | None = None


PALETTES = {
    "sunrise": Palette(
        sky=(rgb(92, 132, 200), rgb(240, 180, 170), rgb(255, 222, 150)),
        haze=rgb(240, 190, 170),
        shade=rgb(60, 60, 80),
        cloud=rgb(255, 205, 190),
        light=0.8,
        sun=rgb(255, 245, 200),
    ),
    "midday": Palette(
        sky=(rgb(40, 120, 220), rgb(105, 175, 240), rgb(190, 225, 250)),
        haze=rgb(170, 205, 235),
        shade=rgb(40, 80, 50),
        cloud=rgb(255, 255, 255),
        light=1.0,
        sun=rgb(255, 250, 215),
    ),
    "sunset": Palette(
        sky=(rgb(70, 45, 120), rgb(225, 85, 85), rgb(255, 180, 65)),
        haze=rgb(225, 110, 85),
        shade=rgb(38, 18, 48),
        cloud=rgb(250, 120, 95),
        light=0.5,
        sun=rgb(255, 235, 140),
    ),
    "night": Palette(
        sky=(rgb(6, 8, 30), rgb(14, 22, 62), rgb(34, 50, 100)),
        haze=rgb(30, 42, 85),
        shade=rgb(4, 6, 16),
        cloud=rgb(48, 58, 95),
        light=0.22,
    ),
    "storm": Palette(
        sky=(rgb(42, 48, 56), rgb(75, 83, 92), rgb(125, 132, 138)),
        haze=rgb(110, 118, 124),
        shade=rgb(24, 30, 32),
        cloud=rgb(48, 52, 60),
        light=0.45,
    ),
}
GROUND = {
    "mountains": rgb(100, 95, 105),
    "hills": rgb(90, 150, 60),
    "desert": rgb(225, 180, 105),
    "sea": rgb(25, 95, 150),
    "forest": rgb(30, 90, 45),
    "city": rgb(95, 100, 115),
    "snow": rgb(110, 120, 140),
}
TIMES, PLACES = tuple(PALETTES), tuple(GROUND)
WARM_WINDOW, SNOW, MOON = rgb(255, 215, 110), rgb(245, 248, 255), rgb(245, 243, 225)


class Landscape(msgspec.Struct, frozen=True):
    """A time of day, a place, the things that captions may name, and snow caps, which they never name."""

    time: str
    place: str
    things: tuple[str, ...] = ()
    capped: bool = False


def sample_landscape(choice: random.Random) -> Landscape:
    """Choose a landscape whose things go together: no moon at midday, no boat without water."""
    time = choice.choice(("sunset", "sunset", "sunrise", "midday", "night", "storm"))
    place = choice.choice((*PLACES, "mountains"))
    chances = {
        "sun": {"sunset": 0.75, "sunrise": 0.75, "midday": 0.4}.get(time, 0),
        "moon": 0.55 * (time == "night"),
        "stars": 0.75 * (time == "night"),
        "clouds": 0.35 * (time != "storm"),
        "lake": 0.25 * (place != "sea"),
        "birds": 0.15 * (time != "night"),
        "trees": 0.2 * (place not in ("sea", "city", "forest")),
        "cabin": 0.15 * (place not in ("sea", "city")),
        "rain": 0.5 * (time == "storm"),
        "lightning": 0.35 * (time == "storm"),
    }
    things = [thing for thing, chance in chances.items() if choice.random() < chance]
    if choice.random() < (0.4 if place == "sea" else 0.3 if "lake" in things else 0):
        things.append("boat")
    return Landscape(time, place, tuple(things), place == "mountains" and choice.random() < 0.4)


def draw_landscape(landscape: Landscape, rng: np.random.Generator) -> Floats:
    """Draw a landscape from back to front."""
    view = _View(landscape, rng)
    _SKETCHES[landscape.place](view)
    if landscape.place == "sea":
        view.fill_sea()
    elif "lake" in landscape.things:
        view.fill_lake()
    for thing, add in _FOREGROUND.items():
        if thing in landscape.things:
            add(view)
    return np.clip(view.picture, 0, 1)


class _View:
    """A picture in the making: the sky is drawn at once, the rest is added by the sketches."""

    def __init__(self, landscape: Landscape, rng: np.random.Generator) -> None:
        self.rng, self.time, self.place, self.things = rng, landscape.time, landscape.place, landscape.things
        self.capped = landscape.capped
        self.palette = PALETTES[landscape.time]
        self.light, self.local = self.palette.light, GROUND[landscape.place]
        self.haze = self.near(self.palette.haze, 0.02)
        self.horizon = SIZE * rng.uniform(0.52, 0.62)
        self.waterline = self.horizon
        self.glow: Floats | None = None  # the colour of the sun's or moon's path on water
        self.glow_x = rng.uniform(0.2, 0.8) * SIZE
        self.picture = self._sky()
        for thing, add in _SKY.items():
            if thing in self.things or (thing == "clouds" and self.time == "storm"):
                add(self)

    def near(self, colour: Floats, spread: float = 0.035) -> Floats:
        """Move a colour a little at random."""
        return np.clip(colour + self.rng.normal(0, spread, 3), 0, 1).astype(np.float32)

    def lit(self, colour: Floats, depth: float) -> Floats:
        """Give a colour the light of the hour and the haze of its distance: depth 0 is far, 1 near."""
        base = mix(self.palette.shade, colour, self.light)
        base = base * np.float32(1 - 0.18 * depth) if self.light > 0.7 else mix(base, self.palette.shade, depth)
        return np.clip(mix(base, self.haze, 0.62 * (1 - depth)), 0, 1)

    def below(self, line: Floats) -> Floats:
        """Mask what lies below a skyline [256] of heights."""
        return coverage(Y - line[None])

    def _sky(self) -> Floats:
        spread = 0.015 if self.time == "storm" else 0.035
        self.top, self.middle, self.low = (self.near(colour, spread) for colour in self.palette.sky)
        down = np.clip(Y / self.horizon, 0, 1)[..., None]
        high = self.top + (self.middle - self.top) * (down / 0.55)
        deep = self.middle + (self.low - self.middle) * ((down - 0.55) / 0.45)
        return np.asarray(np.where(down < 0.55, high, deep), np.float32)

    def fill_sea(self) -> None:
        """Cover everything below the horizon with waves that mirror the sky's colours and the light's path."""
        water = self.lit(self.local, 0.25) * 0.6 + self.low * 0.22 + self.middle * 0.18
        near = np.clip((Y - self.horizon) / (SIZE - self.horizon), 0, 1)
        mask = coverage(Y - np.float32(self.horizon))
        waves = cloud_noise(self.rng, 40, 5)
        self.picture += mask[..., None] * (water * (1.12 - 0.4 * near[..., None]) - self.picture)
        glints = mask * np.clip((waves - 0.5) * 4, 0, 1) * 0.25 * (0.4 + near)
        blend(self.picture, glints, np.clip(water * 1.4 + 0.06, 0, 1))
        foam = 0.55 if self.time == "storm" else 0.2
        crest = mask * np.clip((waves - 0.62) * 9, 0, 1) * near * foam
        blend(self.picture, crest, rgb(230, 235, 240) * np.float32(max(self.light, 0.4)))
        if self.glow is not None:
            path = np.exp(-(((X - self.glow_x) / (6 + 26 * near)) ** 2)) * np.clip((waves - 0.38) * 5, 0, 1)
            blend(self.picture, mask * path * 0.8, self.glow)

    def fill_lake(self) -> None:
        """Mirror what is above the shore, rippled more towards the viewer."""
        self.waterline = SIZE * self.rng.uniform(0.68, 0.74)
        shore = int(self.waterline)
        rows = np.arange(shore, SIZE)
        ripples = cloud_noise(self.rng, 40, 6)
        shift = ((ripples[shore:] - 0.5) * 10 * (rows - shore)[:, None] / 60).astype(int)
        mirrored = np.clip(2 * shore - rows - 1, 0, SIZE - 1)
        columns = np.clip(np.arange(SIZE)[None] + shift, 0, SIZE - 1)
        self.picture[shore:] = self.picture[mirrored[:, None], columns] * 0.82 + self.haze * 0.08
        self.picture[shore : shore + 2] = self.picture[shore : shore + 2] * 0.6 + self.haze * 0.3
        blend(self.picture, np.clip(Y - shore, 0, 1) * np.clip((ripples - 0.58) * 6, 0, 1) * 0.25, self.low * 0.9)


def _add_stars(view: _View) -> None:
    rng = view.rng
    count = int(rng.integers(60, 130))
    rows = (rng.random(count) ** 1.3 * view.horizon * 0.95).astype(int)
    columns = rng.integers(0, SIZE - 1, count)
    brightness = rng.uniform(0.5, 1, count)[:, None].astype(np.float32)
    view.picture[rows, columns] = np.maximum(view.picture[rows, columns], brightness)
    large = rng.random(count) < 0.5  # two pixels wide, or the autoencoder loses them
    for right, down in ((1, 0), (0, 1), (1, 1)):
        view.picture[rows[large] + down, columns[large] + right] = brightness[large]


def _add_sun(view: _View) -> None:
    sun = view.palette.sun
    if sun is None:
        return
    high = view.time == "midday"
    y = view.horizon * (view.rng.uniform(0.15, 0.35) if high else view.rng.uniform(0.62, 0.86))
    radius = view.rng.uniform(14, 20) if high else view.rng.uniform(16, 26)
    distance = np.hypot(X - view.glow_x, Y - y)
    halo = np.exp(-np.maximum(distance - radius, 0) / (radius * 2.2)) * (0.5 if high else 0.75)
    blend(view.picture, halo, mix(sun, view.low, 0.4))
    blend(view.picture, coverage(radius - distance), view.near(sun, 0.015))
    view.glow = sun


def _add_moon(view: _View) -> None:
    y = view.horizon * view.rng.uniform(0.15, 0.45)
    radius = view.rng.uniform(12, 20)
    distance = np.hypot(X - view.glow_x, Y - y)
    blend(view.picture, np.exp(-np.maximum(distance - radius, 0) / (radius * 1.3)) * 0.35, MOON)
    disc = coverage(radius - distance)
    if view.rng.random() < 0.3:  # a crescent
        disc *= coverage(np.hypot(X - view.glow_x - radius * 0.5, Y - y + radius * 0.2) - radius * 0.9)
    blend(view.picture, disc, MOON)
    view.glow = MOON * np.float32(0.8)


def _add_clouds(view: _View) -> None:
    storm = view.time == "storm"
    noise = cloud_noise(view.rng, 5, 3)
    threshold = 0.42 if storm else 0.5
    fade = np.clip((view.horizon - Y) / (view.horizon * 0.3), 0, 1) * (0.85 if storm else 0.8)
    mask = np.clip((noise - threshold) * 6, 0, 1) * fade
    colour = view.near(view.palette.cloud, 0.02)
    blend(view.picture, mask, colour * np.float32(0.8 if storm else 1))
    core = np.clip((noise - threshold - 0.1) * 6, 0, 1) * mask * 0.6
    blend(view.picture, core, np.clip(colour * np.float32(0.6 if storm else 1.15), 0, 1))


def _add_lightning(view: _View) -> None:
    rng = view.rng
    x, y = rng.uniform(0.2, 0.8) * SIZE, rng.uniform(0.05, 0.2) * SIZE
    while y < view.horizon:
        step_x, step_y = rng.uniform(-12, 12), rng.uniform(8, 18)
        along = np.clip(((X - x) * step_x + (Y - y) * step_y) / (step_x**2 + step_y**2), 0, 1)
        distance = np.hypot(X - x - along * step_x, Y - y - along * step_y)
        blend(view.picture, np.clip(2.2 - distance, 0, 1), rgb(255, 255, 235))
        x, y = x + step_x, y + step_y


def _add_birds(view: _View) -> None:
    rng = view.rng
    flock_x, flock_y = rng.uniform(0.2, 0.7) * SIZE, rng.uniform(0.15, 0.45) * view.horizon
    for _ in range(int(rng.integers(3, 7))):
        x, y, span = flock_x + rng.normal(0, 28), flock_y + rng.normal(0, 14), rng.uniform(6, 10)
        aside = np.abs(X - x)
        wing = y - np.minimum(aside, span) * 0.45 * (1.7 - aside / span)
        blend(view.picture, np.clip(1.4 - np.abs(Y - wing), 0, 1) * (aside < span), view.palette.shade * 0.8)


def _sketch_mountains(view: _View) -> None:
    snowy = view.place == "snow"
    for layer, (peaks, height) in enumerate(((3, 0.62), (4, 0.45), (5, 0.3))):
        depth = layer / 2
        base = view.horizon + (layer - 1) * SIZE * 0.1 + SIZE * 0.02
        line = (base - (ridge_noise(view.rng, peaks, 5, smooth=False) - 0.35) * SIZE * height).astype(np.float32)
        rock = view.local if layer < 2 or snowy else mix(view.local, GROUND["forest"], 0.5)
        colour, mask = view.lit(rock, depth * 0.9), view.below(line)
        blend(view.picture, mask, colour)
        if layer == 2:
            if snowy:
                blend(view.picture, mask, mix(view.haze, rgb(235, 240, 250), view.light) * 0.95)
            continue
        near_ridge = 1 - np.clip((Y - line) / (SIZE * 0.2), 0, 1)
        blend(view.picture, mask * np.clip(np.gradient(line)[None] * 0.5, 0, 0.28) * near_ridge, colour * 0.6)
        if snowy or (view.capped and layer == 0):
            _cap_with_snow(view, line, mask, depth)


def _cap_with_snow(view: _View, line: Floats, mask: Floats, depth: float) -> None:
    """Whiten the peaks down to a ragged snow line that follows the ridge."""
    summit = line.min()
    ragged = ridge_noise(view.rng, 20, 3, smooth=False) * SIZE * 0.07
    limit = summit + SIZE * (0.13 if view.place == "snow" else 0.06) + ragged + (line - summit) * 0.55
    colour = view.lit(SNOW, depth * 0.4) * 0.9 + view.haze * 0.1 if view.light > 0.3 else rgb(120, 135, 175)
    blend(view.picture, mask * np.clip((limit[None] - Y) / 3, 0, 1), colour)


def _sketch_hills(view: _View) -> None:
    for layer in range(3):
        base = view.horizon + (layer - 0.6) * SIZE * 0.12
        line = (base - (ridge_noise(view.rng, 2 + layer, 2, fall=0.3) - 0.4) * SIZE * 0.25).astype(np.float32)
        depth = 0.15 + layer * 0.4 if view.light > 0.7 else layer * 0.45
        colour, mask = view.lit(view.near(view.local, 0.03), depth), view.below(line)
        blend(view.picture, mask, colour)
        crest = mask * np.clip(1 - (Y - line) / (SIZE * 0.12), 0, 1) * 0.25
        blend(view.picture, crest, np.clip(colour * 1.25 + 0.05 * view.haze, 0, 1))


def _sketch_desert(view: _View) -> None:
    for layer in range(3):
        phase = (COLUMNS / SIZE * (1.3 + 0.5 * layer) + view.rng.random()) % 1
        dune = np.where(phase < 0.7, phase / 0.7, (1 - phase) / 0.3)  # a long windward side, a short lee
        dune = np.convolve(np.pad(dune, 7, "edge"), np.ones(15) / 15, "valid")
        swell = (ridge_noise(view.rng, 2, 2) - 0.5) * SIZE * 0.08
        line = (view.horizon + (layer - 0.4) * SIZE * 0.13 - dune * SIZE * 0.13 - swell).astype(np.float32)
        colour = view.lit(view.near(view.local, 0.02), 0.1 + layer * 0.3 if view.light > 0.7 else layer * 0.35)
        mask = view.below(line)
        blend(view.picture, mask, colour)
        lee = np.clip(np.gradient(line)[None] * 1.2, 0, 0.4) * np.exp(-(Y - line) / (SIZE * 0.12) * 0.8)
        blend(view.picture, mask * np.clip(lee, 0, 0.5), colour * 0.6)


def _sketch_forest(view: _View) -> None:
    line = view.horizon + SIZE * 0.02 - (ridge_noise(view.rng, 3, 2) - 0.5) * SIZE * 0.1
    for layer, (spacing, height) in enumerate(((6, 20), (11, 36), (20, 62))):
        row = (line + SIZE * 0.12 * layer).astype(np.float32)
        colour = view.lit(view.near(view.local, 0.02), 0.1 + layer * 0.42)
        blend(view.picture, view.below(row), colour)
        x = -5.0
        while x < SIZE + 5:
            foot = row[int(np.clip(x, 0, SIZE - 1))] + 8
            _plant_pine(
                view, x, foot, height * view.rng.uniform(0.7, 1.25), colour * np.float32(view.rng.uniform(0.88, 1.08))
            )
            x += spacing * view.rng.uniform(0.6, 1.3)
    blend(view.picture, coverage(Y - (line.max() + SIZE * 0.33)), view.lit(GROUND["hills"], 0.9))


def _plant_pine(view: _View, x: float, foot: float, height: float, colour: Floats) -> None:
    for tier in range(3):
        top = foot - height + tier * height * 0.24
        bottom = foot - height * 0.12 if tier == 2 else top + height * 0.42
        half = height * (0.14 + 0.09 * tier)
        columns = slice(int(max(0, x - half - 2)), int(max(0, min(SIZE, x + half + 3))))
        rows = slice(int(max(0, top)), int(max(0, min(SIZE, bottom + 1))))
        mask = coverage(half * (Y[rows, columns] - top) / (bottom - top) - np.abs(X[rows, columns] - x))
        blend(view.picture[rows, columns], mask, colour)
    half = height * 0.03 + 0.5
    rectangle(view.picture, x - half, foot - height * 0.14, x + half, foot, colour)


def _sketch_city(view: _View) -> None:
    rng, base = view.rng, 0.0
    for row in range(2):
        colour, base, x = view.lit(view.local, 0.15 + 0.7 * row), view.horizon + SIZE * (0.1 + row * 0.02), -4
        while x < SIZE:
            width, height = int(rng.uniform(14, 30)), rng.uniform(0.12, 0.42) * SIZE * (0.75 if row else 1)
            roof = base - height
            rectangle(view.picture, x, roof, x + width, base, colour * np.float32(rng.uniform(0.9, 1.08)))
            if rng.random() < 0.2:
                rectangle(view.picture, x + width // 2 - 1, roof - 14, x + width // 2 + 1, roof, colour)
            if row == 1 or view.light < 0.3:
                _light_windows(view, x, x + width, roof, base, colour)
            x += width + int(rng.integers(0, 4))
    if "lake" not in view.things:
        blend(view.picture, coverage(Y - np.float32(base)), view.lit(rgb(70, 72, 78), 0.7))


def _light_windows(view: _View, left: int, right: int, roof: float, base: float, wall: Floats) -> None:
    dark = view.light < 0.6
    pane, chance = (rgb(255, 220, 120), 0.55) if dark else (mix(wall, rgb(150, 190, 220), 0.35), 0.75)
    for y in np.arange(roof + 5, base - 4, 7):
        for x in range(left + 3, right - 3, 6):
            if view.rng.random() < chance:
                rectangle(view.picture, x, y, x + 3, y + 4, pane)


def _sketch_sea(_view: _View) -> None:
    """Draw nothing yet: the water covers the ground."""


def _add_boat(view: _View) -> None:
    rng = view.rng
    x, y = rng.uniform(0.25, 0.75) * SIZE, view.waterline + (SIZE - view.waterline) * rng.uniform(0.15, 0.5)
    size = rng.uniform(17, 27)
    wood = view.palette.shade * np.float32(0.8) if view.light < 0.7 else rgb(110, 60, 35)
    hull = coverage(size * 0.9 - (Y - y) * 0.8 - np.abs(X - x)) * (y < Y) * (y + size * 0.32 > Y)
    blend(view.picture, hull, wood)
    rectangle(view.picture, x - 1, y - size * 1.7, x + 1, y, wood)
    cloth = mix(mix(view.palette.shade, rgb(250, 248, 240), view.light), view.low, 0.4)
    for side, width in ((1, 0.75), (-1, 0.5)):
        aside = (X - x) * side
        sail = coverage((Y - (y - size * 1.65)) * width / 1.5 - aside)
        blend(view.picture, sail * (aside > 1) * (y - size * 0.12 > Y) * (y - size * 1.65 < Y), cloth)


def _add_cabin(view: _View) -> None:
    x = view.rng.uniform(0.25, 0.75) * SIZE
    y = view.waterline + 2 if "lake" in view.things else SIZE * view.rng.uniform(0.78, 0.84)
    size = view.rng.uniform(16, 24)
    wood = rgb(125, 75, 40) * np.float32(max(view.light, 0.35))
    snowy = view.place == "snow"
    roof = SNOW * np.float32(max(view.light, 0.45)) if snowy else rgb(110, 40, 35) * np.float32(max(view.light, 0.3))
    rectangle(view.picture, x - size, y - size, x + size, y, wood)
    gable = coverage((Y - (y - size * 1.9)) * 1.35 - np.abs(X - x)) * (y - size + 1 > Y)
    blend(view.picture, gable, roof)
    rectangle(view.picture, x - size * 0.2, y - size * 0.62, x + size * 0.2, y, wood * 0.5)
    for left in (-0.75, 0.38):
        rectangle(view.picture, x + size * left, y - size * 0.7, x + size * (left + 0.37), y - size * 0.35, WARM_WINDOW)


def _add_trees(view: _View) -> None:
    rng, colour = view.rng, view.lit(GROUND["forest"] * 0.8, 0.8)
    for _ in range(int(rng.integers(4, 9))):
        x = rng.choice([rng.uniform(0, 0.3), rng.uniform(0.7, 1)]) * SIZE  # they frame the view
        foot, height = SIZE * rng.uniform(0.9, 1.03), rng.uniform(55, 100)
        _plant_pine(view, float(x), foot, height, colour * np.float32(rng.uniform(0.9, 1.1)))


def _add_rain(view: _View) -> None:
    grid = Image.fromarray(view.rng.random((12, 160)).astype(np.float32))  # long, narrow drops
    noise = np.asarray(grid.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    columns = (np.arange(SIZE)[None] + (np.arange(SIZE) * 0.25).astype(int)[:, None]) % SIZE  # slanted
    slanted = noise[np.arange(SIZE)[:, None], columns]
    blend(view.picture, (np.clip((slanted - 0.72) * 4, 0, 1) * 0.28).astype(np.float32), rgb(190, 200, 210))


# Literal tables, in the order of drawing.
_SKY = {
    "stars": _add_stars,
    "sun": _add_sun,
    "moon": _add_moon,
    "clouds": _add_clouds,
    "lightning": _add_lightning,
    "birds": _add_birds,
}
_SKETCHES = {
    "mountains": _sketch_mountains,
    "hills": _sketch_hills,
    "desert": _sketch_desert,
    "sea": _sketch_sea,
    "forest": _sketch_forest,
    "city": _sketch_city,
    "snow": _sketch_mountains,
}
_FOREGROUND = {"boat": _add_boat, "cabin": _add_cabin, "trees": _add_trees, "rain": _add_rain}
