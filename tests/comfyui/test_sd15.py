"""SD1.5 and the adapter at their real size, random weights: a single-file checkpoint gives the same in both hosts.

Needs 10 GB of memory and 4 GB of disk, which are freed again.
"""

import gc

import pytest
import torch

from livephoto_core.base import load_single_file
from livephoto_core.checkpoint import load_adapter
from livephoto_core.encoding import encode_photo, encode_text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(checkpoint, adapter), to be written; deleted afterwards."""
    folder = tmp_path_factory.mktemp("sd15")
    paths = folder / "sd15.safetensors", folder / "full.safetensors"
    yield paths
    for path in paths:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def found(inside, files, standins):
    checkpoint, adapter = files
    standins.save_checkpoint(checkpoint)
    standins.save_adapter(adapter)
    gc.collect()

    def prepare(base):
        for path, folder in ((checkpoint, "checkpoints"), (adapter, "livephoto")):
            (base / "models" / folder / path.name).hardlink_to(path)

    return inside("sd15", "--force-fp32", prepare=prepare, timeout=900)("checkpoint")


@pytest.fixture(scope="module")
def base(comfyui, files, found):
    return load_single_file(files[0], comfyui.path / "comfy" / "sd1_tokenizer")


def test_comfyui_takes_it_for_sd15(found):
    assert (found["kind"], found["prediction"], found["dtype"]) == ("BaseModel", "EPS", "torch.float32")


@torch.no_grad()
def test_same_text_and_latent(found, base):
    assert torch.allclose(encode_text(base, [found["prompt"]]), found["text"], atol=1e-4)
    assert torch.allclose(encode_photo(base, found["photo"]), found["latent"], atol=1e-4)


def test_same_output_of_the_unet(found, base, files, replay):
    assert found["chunks"] == [[1, 0]]
    assert found["call0/out"].std() > 0.1
    difference = replay(found, base.unet, load_adapter(files[1]))
    print(f"sd15: {difference:.1e}")
    assert difference < 1e-4
    assert replay(found, base.unet, None) > 0.01
