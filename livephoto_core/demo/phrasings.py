"""Many phrasings of each motion, put together from parts: a text encoder that saw four phrasings of a motion knows those by heart.

None of UNSEEN is among them, and none that is added to TEMPLATES differs from one of UNSEEN by its article alone: those measure
what is understood beyond training's phrasings.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from .captions import TEMPLATES, UNSEEN

# third person and -ing form
Verb = tuple[str, str]
# for each direction: its adverbs
DIRECTIONS = {
    "left": ("left", "to the left", "leftwards", "to the left side"),
    "right": ("right", "to the right", "rightwards", "to the right side"),
    "up": ("up", "upwards", "to the top"),
    "down": ("down", "downwards", "to the bottom"),
}
PANS = (("pans", "panning"), ("moves", "moving"), ("drifts", "drifting"), ("sweeps", "sweeping"))
MOVES = (
    ("moves", "moving"),
    ("goes", "going"),
    ("slides", "sliding"),
    ("drifts", "drifting"),
    ("glides", "gliding"),
    ("travels", "travelling"),
    ("flies", "flying"),
)
TURNS = (("turns", "turning"), ("rotates", "rotating"), ("rolls", "rolling"))
ZOOMS = {
    "zoom in": (
        ("zooms in", "zooming in"),
        ("comes closer", "coming closer"),
        ("moves in", "moving in"),
        ("pushes in", "pushing in"),
    ),
    "zoom out": (
        ("zooms out", "zooming out"),
        ("goes away", "going away"),
        ("moves back", "moving back"),
        ("pulls out", "pulling out"),
    ),
}
THINGS = {
    "grow": (("grows", "growing"), ("gets bigger", "getting bigger"), ("gets larger", "getting larger"), ("expands", "expanding")),
    "shrink": (
        ("shrinks", "shrinking"),
        ("gets smaller", "getting smaller"),
        ("becomes smaller", "becoming smaller"),
        ("contracts", "contracting"),
    ),
    "spin": (("spins", "spinning"), ("rotates", "rotating"), ("turns around", "turning around"), ("whirls", "whirling")),
    "shake": (("shakes", "shaking"), ("trembles", "trembling"), ("wobbles", "wobbling"), ("vibrates", "vibrating")),
}
OTHERS = {
    "snow": ("it snows", "snowing", "snow drifts down", "snowflakes fall", "snow is coming down", "falling snowflakes"),
    "rain": ("it rains", "raining", "rain pours down", "raindrops fall", "rain is coming down", "falling raindrops"),
    "ripple": (
        "the water is rippling",
        "ripples on the water",
        "waves in the water",
        "waves run through the picture",
        "the picture is rippling",
    ),
    "flicker": ("the lights are flickering", "the light blinks", "blinking light", "a flickering light", "flickering lights"),
    "ball appears": (
        "a {ball} ball is appearing",
        "the {ball} ball appears",
        "a {ball} ball shows up",
        "suddenly a {ball} ball appears",
    ),
    "fireworks": ("fireworks explode in the sky", "fireworks burst", "fireworks light up the sky", "there are fireworks"),
    "still": ("nothing is moving", "the picture stays still", "no motion", "it does not move", "a picture that stays still"),
}


def phrasings() -> dict[str, tuple[str, ...]]:
    """{motion: its phrasings} as in captions.TEMPLATES, with all of those; no other is one of UNSEEN but for its article."""
    found = {motion: list(OTHERS.get(motion, ())) for motion in TEMPLATES}
    for direction, adverbs in DIRECTIONS.items():
        found[f"pan {direction}"] += [*_camera(_with(PANS, adverbs)), *(f"pan {adverb}" for adverb in adverbs)]
        found[f"move {direction}"] += _thing(_with(MOVES, adverbs))
    for turn in ("clockwise", "counterclockwise"):
        found[f"turn {turn}"] += [*_camera(_with(TURNS, [turn])), f"rotate {turn}", f"rotating {turn}"]
    for motion, verbs in ZOOMS.items():
        found[motion] += _camera(verbs)
    for motion, verbs in THINGS.items():
        found[motion] += _thing(verbs)
    kept = {motion: {_bare(text) for text in texts} for motion, texts in UNSEEN.items()}
    return {
        motion: tuple(dict.fromkeys([*TEMPLATES[motion], *(text for text in texts if _bare(text) not in kept[motion])]))
        for motion, texts in found.items()
    }


def _bare(text: str) -> str:
    """A text without the article at its start."""
    return text.removeprefix("the ").removeprefix("a ")


def _with(verbs: Sequence[Verb], adverbs: Sequence[str]) -> list[Verb]:
    return [(f"{does} {adverb}", f"{doing} {adverb}") for (does, doing), adverb in product(verbs, adverbs)]


def _camera(verbs: Sequence[Verb]) -> list[str]:
    forms = "camera {0}", "the camera {0}", "the camera is {1}", "camera {1}"
    return [form.format(*verb) for verb in verbs for form in forms]


def _thing(verbs: Sequence[Verb]) -> list[str]:
    subjects = "the {thing}", "a {thing}", "{thing}"
    forms = (("{} {}", 0), ("{} is {}", 1), ("{} {}", 1))
    return [form.format(subject, verb[k]) for verb in verbs for subject in subjects for form, k in forms]
