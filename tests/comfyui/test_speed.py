"""The part of the speed benchmark that runs inside ComfyUI, at a tiny size."""

import json


def test_image_model_motion_modules_and_all_of_livephoto_are_timed(inside, monkeypatch):
    asked = {"channels": [64] * 4, "frames": 2, "size": 64, "precision": "float32", "cfg": 1.0, "rounds": 2}
    monkeypatch.setenv("LIVEPHOTO_SPEED", json.dumps(asked))
    found = inside("speed")("steps")
    assert list(found) == ["plain", "motion", "livephoto"]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found.values())
