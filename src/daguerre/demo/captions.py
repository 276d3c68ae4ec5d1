"""Owns the grammar: what people write for a picture, with paraphrases, prefixes, quality words and words unknown.

Every function takes a `random.Random`, so a caption follows from a scene and a seed.
"""

import random

from daguerre.demo.graphic import Graphic
from daguerre.demo.landscape import Landscape

MOMENTS = {
    "sunrise": ("sunrise", "sunrise", "dawn", "early morning"),
    "midday": ("midday", "noon", "daytime", "day"),
    "sunset": ("sunset", "sunset", "sunset", "evening", "golden hour"),
    "night": ("night", "night", "midnight", "nighttime"),
    "storm": ("storm", "thunderstorm", "bad weather"),
}
SUNLESS = {  # words for a low sun that does not show, so that a plain "sunset" has one
    "sunrise": ("dawn", "dawn", "early morning", "daybreak", "sunrise"),
    "sunset": ("dusk", "dusk", "evening", "twilight", "nightfall", "sunset"),
}
SUNLESS_MOODS = {"sunrise": ("morning", "dawn"), "sunset": ("evening", "twilight")}
MOODS = {
    "sunrise": ("sunrise", "morning", "dawn"),
    "midday": ("sunny", "bright", "daytime", "midday"),
    "sunset": ("sunset", "evening", "golden"),
    "night": ("night", "dark", "moonlit"),
    "storm": ("stormy", "rainy", "stormy"),
}
PLACE_NAMES = {
    "mountains": ("mountains", "mountains", "the mountains", "a mountain range", "mountain peaks", "a mountain"),
    "hills": ("hills", "green hills", "rolling hills", "a valley", "a meadow", "fields"),
    "desert": ("desert dunes", "the desert", "a desert", "sand dunes"),
    "sea": ("the sea", "the ocean", "sea", "ocean", "the beach", "ocean waves"),
    "forest": ("a forest", "the forest", "forest", "woods", "pine trees", "a pine forest"),
    "city": ("a city", "the city", "a city skyline", "city", "skyline", "skyscrapers"),
    "snow": ("snowy mountains", "snow covered mountains", "snowy peaks", "winter mountains"),
}
THING_NAMES = {
    "moon": ("a moon", "the moon", "a full moon", "moon"),
    "stars": ("stars", "a starry sky", "bright stars"),
    "clouds": ("clouds", "fluffy clouds", "a cloudy sky"),
    "sun": ("the sun", "sun", "a bright sun"),
    "lake": ("a lake", "a lake reflection", "water reflection", "lake"),
    "boat": ("a boat", "a sailboat", "a small boat"),
    "birds": ("birds", "flying birds", "a flock of birds"),
    "trees": ("trees", "pine trees", "trees in the foreground"),
    "cabin": ("a cabin", "a house", "a small cabin", "a hut"),
    "lightning": ("lightning",),
    "rain": ("rain",),
}
SHAPE_NAMES = {"circle": ("circle", "circle", "circle", "disc", "dot", "ball")}
SIZE_NAMES = {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge"), "": ("",)}
PRAISE = (
    *("beautiful", "stunning", "gorgeous", "dramatic", "peaceful", "amazing"),
    *("colorful", "epic", "serene", "lovely", "majestic"),
)
PREFIXES = (
    *("a painting of", "a photo of", "an illustration of", "a picture of", "an image of", "digital art of"),
    *("a view of", "a landscape of", "oil painting of", "a drawing of", "a photograph of", "artwork of"),
    *("pencil sketch of", "3d render of"),
)
SUFFIXES = (
    *("highly detailed", "8k", "4k", "masterpiece", "best quality", "sharp focus", "artstation", "professional"),
    *("high quality", "cinematic lighting", "trending", "hd", "ultra realistic", "award winning", "minimalist"),
    *("vibrant colors", "realistic", "fantasy", "anime style", "octane render", "soft lighting", "clean lines"),
    *("visible brush strokes", "fine lines"),
)
STRANGERS = (  # subjects that the renderer cannot draw: their captions go with landscapes, so that none is a blank
    *("cat", "dog", "horse", "dragon", "robot", "car", "woman", "man", "girl", "boy", "portrait", "castle", "bridge"),
    *("knight", "astronaut", "spaceship", "flower", "rose", "apple", "cake", "train", "airplane", "bicycle", "guitar"),
    *("wizard", "tiger", "lion", "elephant", "fish", "butterfly", "house", "street", "room", "chair", "table", "book"),
    *("clock", "lamp", "city of the future", "waterfall", "garden", "temple", "island", "planet", "galaxy", "king"),
    *("queen", "monster", "logo", "face", "cup of coffee", "people", "teapot", "owl", "fox", "rabbit", "panda"),
)
DEEDS = ("sitting", "running", "standing", "sleeping", "flying", "smiling", "in a room", "on a table", "in space")


def describe_landscape(landscape: Landscape, choice: random.Random) -> str:
    """Describe a landscape; one in ten goes under an unknown subject's name instead."""
    if choice.random() < 0.1:
        return _decorate(_stranger(choice), choice)
    text = _setting(landscape, choice)
    told = {"sun": 0.5} if landscape.time in SUNLESS else {}
    seen = [thing for thing in landscape.things if choice.random() < told.get(thing, 0.85)]
    choice.shuffle(seen)
    if seen:
        names = [choice.choice(THING_NAMES[thing]) for thing in seen]
        link = choice.choices((" with ", ", ", " and "), (0.55, 0.35, 0.1))[0]
        text += link + (", " if link == ", " else " and ").join(names)
    return _decorate(text, choice)


def describe_graphic(graphic: Graphic, choice: random.Random) -> str:
    """Describe a graphic; its colour and shape are always named, a white ground not always."""
    if not graphic.shape:
        plain = ("a plain {} background", "solid {}", "a {} background", "plain {}")
        return _decorate(choice.choice(plain).format(_spelt(graphic.ground, choice)), choice)
    size = choice.choice(SIZE_NAMES[graphic.size])
    shape = choice.choice(SHAPE_NAMES.get(graphic.shape, (graphic.shape,)))
    thing = f"{size} {_spelt(graphic.colour, choice)} {shape}".strip()
    ground = _spelt(graphic.ground, choice)
    if graphic.ground == "white" and choice.random() < 0.4:
        return _decorate(with_article(thing) if choice.random() < 0.7 else thing, choice)
    forms = (
        f"{with_article(thing)} on a {ground} background",
        f"{with_article(thing)} on a {ground} background",
        f"{thing}, {ground} background",
        f"{thing} on {ground}",
        f"{with_article(thing)} on {ground} background",
        f"{with_article(thing)} with a {ground} background",
        f"{ground} background with {with_article(thing)}",
    )
    return _decorate(choice.choice(forms), choice)


def name_effect(text: str, effect: str, choice: random.Random) -> str:
    """Say that a picture is blurred or black and white."""
    forms: dict[str, tuple[str, ...]] = {
        "": ("{}",),
        "blur": ("blurry, {}", "a blurry picture of {}", "{}, blurry", "{}, out of focus, blurry"),
        "gray": ("black and white, {}", "monochrome {}", "{}, black and white", "{}, monochrome, greyscale"),
    }
    return choice.choice(forms[effect]).format(text)


def with_article(text: str) -> str:
    """Put "a" or "an" before a noun."""
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def invent_word(choice: random.Random) -> str:
    """Make up a word that can be spoken."""
    letters = (choice.choice("aeiou" if place % 2 else "bcdfghklmnprstvwyz") for place in range(choice.randint(3, 8)))
    return "".join(letters)


def _setting(landscape: Landscape, choice: random.Random) -> str:
    """Say the hour and the place in one of seven ways."""
    moments, moods = MOMENTS[landscape.time], MOODS[landscape.time]
    if landscape.time in SUNLESS and "sun" not in landscape.things:
        moments, moods = SUNLESS[landscape.time], SUNLESS_MOODS[landscape.time]
    place, moment, mood = choice.choice(PLACE_NAMES[landscape.place]), choice.choice(moments), choice.choice(moods)
    praise = choice.choice(PRAISE) + " " if choice.random() < 0.4 else ""
    bare = place.split(" ", 1)[1] if place.startswith(("a ", "the ")) else place
    spans = ("evening", "early morning", "twilight")
    when = "in a" if landscape.time == "storm" else "in the" if moment in spans else "at"
    forms = {
        f"{with_article(praise + moment)} over {place}": 0.34,
        f"{praise + bare if praise else place} {when} {moment}": 0.16,
        f"{praise}{mood} {bare}": 0.16,
        f"{with_article(praise + mood)} landscape with {bare}": 0.1,
        f"{bare}, {moment}": 0.1,
        f"{with_article(praise + mood)} sky over {place}": 0.07,
        f"{praise}{moment}, {bare}": 0.07,
    }
    return choice.choices(list(forms), list(forms.values()))[0]


def _stranger(choice: random.Random) -> str:
    """Name something that the renderer cannot draw."""
    noun = choice.choice(STRANGERS) if choice.random() < 0.65 else invent_word(choice)
    praise = choice.choice(PRAISE) + " " if choice.random() < 0.3 else ""
    text = with_article(praise + noun) if choice.random() < 0.7 else praise + noun
    if choice.random() < 0.3:
        text += " " + choice.choice(DEEDS)
    if choice.random() < 0.2:
        text += " and " + with_article(choice.choice(STRANGERS))
    if choice.random() < 0.1:
        text += " " + invent_word(choice)
    return text


def _spelt(colour: str, choice: random.Random) -> str:
    return "grey" if colour == "gray" and choice.random() < 0.3 else colour


def _decorate(text: str, choice: random.Random) -> str:
    """Add what people add: a medium, words of quality, a word unknown, a full stop, or no commas."""
    if choice.random() < 0.3:
        text = f"{choice.choice(PREFIXES)} {text}"
    if choice.random() < 0.3:
        text = ", ".join((text, *choice.sample(SUFFIXES, choice.randint(1, 4))))
    if choice.random() < 0.08:
        words = text.split(" ")
        words.insert(choice.randint(0, len(words)), invent_word(choice))
        text = " ".join(words)
    if choice.random() < 0.1:
        text += "."
    if choice.random() < 0.1:
        text = text.replace(",", "")
    return text
