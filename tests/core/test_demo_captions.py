"""The demo's captions: many phrasings of each motion, and taking a caption apart."""

import re

from livephoto_core.demo.captions import TEMPLATES, UNSEEN, read_caption
from livephoto_core.demo.motions import THING
from livephoto_core.demo.phrasings import phrasings


def test_many_phrasings_and_none_of_those_kept_for_measuring():
    found = phrasings()
    assert list(found) == list(TEMPLATES)
    for motion, texts in found.items():
        assert set(TEMPLATES[motion]) < set(texts) and len(texts) >= 6
        assert not set(texts) & {text for unseen in UNSEEN.values() for text in unseen}
        added = {re.sub("^(the|a) ", "", text) for text in set(texts) - set(TEMPLATES[motion])}
        assert not added & {re.sub("^(the|a) ", "", text) for text in UNSEEN[motion]}
        assert all(("{thing}" in text) == (motion in THING) and "  " not in text for text in texts)
    everything = [text for texts in found.values() for text in texts]
    assert len(set(everything)) == len(everything)


def test_a_caption_taken_apart():
    said = read_caption("a red arrow moving to the left")
    assert (said.motion, said.thing, said.ball, said.place) == ("move left", "red arrow", "", "")
    said = read_caption("a blue ball pops up in a green kitchen")
    assert (said.motion, said.ball, said.place) == ("ball appears", "blue", " in a green kitchen")
    assert read_caption("a dog runs") is None
