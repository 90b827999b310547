"""Captions for the procedural clips. Speed is never in the text: only the level tells it."""

from __future__ import annotations

import re

import numpy as np

from .motions import THING
from .sprites import COLOURS, HELD_OUT_SHAPES, ODD_NAMES, SHAPES

TEMPLATES: dict[str, tuple[str, ...]] = {
    "pan left": ("camera pans left", "the camera pans to the left", "panning left", "the camera moves to the left"),
    "pan right": (
        "camera pans right",
        "the camera pans to the right",
        "panning right",
        "the camera moves to the right",
    ),
    "pan up": ("camera pans up", "the camera pans upwards", "panning up", "the camera moves up"),
    "pan down": ("camera pans down", "the camera pans downwards", "panning down", "the camera moves down"),
    "zoom in": ("camera zooms in", "the camera zooms in", "zooming in", "the camera comes closer"),
    "zoom out": ("camera zooms out", "the camera zooms out", "zooming out", "the camera goes away"),
    "turn clockwise": ("camera turns clockwise", "the camera turns clockwise", "turning clockwise"),
    "turn counterclockwise": (
        "camera turns counterclockwise",
        "the camera turns counterclockwise",
        "turning counterclockwise",
    ),
    "move left": (
        "the {thing} moves left",
        "a {thing} moving to the left",
        "{thing} goes left",
        "the {thing} slides to the left",
    ),
    "move right": (
        "the {thing} moves right",
        "a {thing} moving to the right",
        "{thing} goes right",
        "the {thing} slides to the right",
    ),
    "move up": ("the {thing} moves up", "a {thing} moving upwards", "{thing} goes up", "the {thing} rises"),
    "move down": ("the {thing} moves down", "a {thing} moving downwards", "{thing} goes down", "the {thing} sinks"),
    "grow": ("the {thing} grows", "a {thing} growing", "the {thing} gets bigger"),
    "shrink": ("the {thing} shrinks", "a {thing} shrinking", "the {thing} gets smaller"),
    "spin": ("the {thing} spins", "a {thing} spinning", "the {thing} spins around"),
    "shake": ("the {thing} shakes", "a {thing} shaking", "the {thing} trembles"),
    "snow": ("snow falls", "it is snowing", "snow is falling", "snowflakes come down"),
    "rain": ("rain falls", "it is raining", "rain is falling", "raindrops come down"),
    "ripple": ("water ripples", "rippling water", "the water ripples", "ripples run through the picture"),
    "flicker": ("the light flickers", "flickering light", "the lights flicker"),
    "ball appears": ("a {ball} ball appears", "a {ball} ball comes out of nowhere", "a {ball} ball pops up"),
    "fireworks": ("fireworks", "fireworks bloom in the sky", "fireworks explode"),
    "still": ("still", "nothing moves", "a still picture", "everything stays still"),
}
UNSEEN: dict[str, tuple[str, ...]] = {
    "pan left": ("the camera goes to the left", "camera slides left"),
    "pan right": ("the camera goes to the right", "camera slides right"),
    "pan up": ("the camera goes up", "camera slides upwards"),
    "pan down": ("the camera goes down", "camera slides downwards"),
    "zoom in": ("zoom in", "the camera is zooming in"),
    "zoom out": ("zoom out", "the camera is zooming out"),
    "turn clockwise": ("turn clockwise", "the camera is turning clockwise"),
    "turn counterclockwise": ("turn counterclockwise", "the camera is turning counterclockwise"),
    "move left": ("{thing} moving left", "the {thing} is going to the left"),
    "move right": ("{thing} moving right", "the {thing} is going to the right"),
    "move up": ("{thing} moving up", "the {thing} is going upwards"),
    "move down": ("{thing} moving down", "the {thing} is going downwards"),
    "grow": ("the {thing} is growing", "{thing} grows bigger"),
    "shrink": ("the {thing} is shrinking", "{thing} shrinks smaller"),
    "spin": ("{thing} spins", "the {thing} is spinning around"),
    "shake": ("{thing} shakes", "the {thing} is shaking"),
    "snow": ("snow comes down", "falling snow"),
    "rain": ("rain comes down", "falling rain"),
    "ripple": ("ripples in the water", "the picture ripples"),
    "flicker": ("the light is flickering", "lights flickering"),
    "ball appears": ("{ball} ball appears", "the {ball} ball pops up out of nowhere"),
    "fireworks": ("fireworks in the sky", "exploding fireworks"),
    "still": ("nothing moves in the picture", "stays still"),
}
PLACES = ("garden", "street", "room", "beach", "forest", "city", "desert", "kitchen")


def _thing_words(colour: str, name: str, rng: np.random.Generator) -> str:
    return f"{colour} {name}" if rng.random() < 0.75 else name


def caption(
    motion: str, colour: str, name: str, rng: np.random.Generator, templates: dict[str, tuple[str, ...]]
) -> str:
    """One phrasing of the motion; `colour` and `name` are the content words of the thing (or of the ball)."""
    text = templates[motion][rng.integers(len(templates[motion]))]
    text = text.format(thing=_thing_words(colour, name, rng), ball=colour)
    if motion not in THING and rng.random() < 0.35:
        # photographs have no words of their own here: the place is content that says nothing of the motion
        text = f"{text} in a {list(COLOURS)[rng.integers(len(COLOURS))]} {PLACES[rng.integers(len(PLACES))]}"
    return text


def wrong_words(colour: str, name: str, rng: np.random.Generator) -> tuple[str, str]:
    """A colour and a name that both differ from the true ones."""
    colours = [c for c in COLOURS if c != colour]
    names = [n for n in SHAPES if n != name]
    return colours[rng.integers(len(colours))], names[rng.integers(len(names))]


def motion_said(text: str) -> str | None:
    """The motion that a text of the vocabulary tells, whatever its content words; None of any other text."""
    colours, names = "|".join(COLOURS), "|".join((*SHAPES, *HELD_OUT_SHAPES, *ODD_NAMES))
    thing, place = f"(?:(?:{colours}) )?(?:{names})", f"(?: in a (?:{colours}) (?:{'|'.join(PLACES)}))?"
    for vocabulary in (TEMPLATES, UNSEEN):
        for motion, phrasings in vocabulary.items():
            for phrasing in phrasings:
                if re.fullmatch(phrasing.replace("{thing}", thing).replace("{ball}", f"(?:{colours})") + place, text):
                    return motion
    return None


def corpus() -> list[str]:
    """Every phrasing with every content word in turn: the text the tokenizer is made from."""
    things = [f"{c} {n}" for c in COLOURS for n in (*SHAPES, *HELD_OUT_SHAPES)]
    lines = []
    for templates in (TEMPLATES, UNSEEN):
        for phrasings in templates.values():
            lines += [
                p.format(thing=t, ball=t.split()[0]) for p in phrasings for t in things[:: max(1, len(things) // 24)]
            ]
    lines += [f"in a {c} {p}" for c in COLOURS for p in PLACES]
    lines += [f"a photo of the {t}" for t in things]
    return lines
