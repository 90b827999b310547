"""The demo's captions: many phrasings of each motion, and which motion one tells."""

import re

from livephoto_core.demo.captions import TEMPLATES, UNSEEN, motion_said
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


def test_the_motion_that_a_caption_tells():
    assert motion_said("a red arrow moving to the left") == "move left"
    assert motion_said("a blue ball pops up in a green kitchen") == "ball appears"
    assert motion_said("camera slides upwards in a white forest") == "pan up"
    assert motion_said("a dog runs") is None
