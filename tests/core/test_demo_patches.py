"""The demo's patch encoder learns where things are."""

from itertools import islice

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from livephoto_core.base import load_image_encoder
from livephoto_core.checkpoint import opened, read_config
from livephoto_core.cli import main
from livephoto_core.commands.model_files import DEMO_FOLDER
from livephoto_core.demo import deepen, patches
from livephoto_core.demo.clips import ClipSet
from livephoto_core.demo.patches import Readout, new_patch_encoder, patch_tokens, train_patch_encoder
from livephoto_core.demo.photos import Photo
from livephoto_core.demo.sprites import SHAPES
from livephoto_core.demo.stills import Sights
from livephoto_core.encoding import normalised
from livephoto_core.media_write import write_picture


@pytest.fixture
def noise():
    generator = torch.Generator().manual_seed(0)
    return [Photo("noise", (255 * torch.rand(3, 96, 128, generator=generator)).byte())]


def test_sights_tell_where_the_thing_is(noise):
    things, photographs = (iter(Sights(ClipSet(noise, SHAPES, thing_share=share, odd_share=0.5))) for share in (1.0, 0.0))
    axis = (torch.arange(64) + 0.5) / 32 - 1
    for _ in range(12):
        frame, cover, (x, y, half, there) = next(things)
        assert frame.shape == (3, 64, 64) and cover.shape == (64, 64) and there == 1
        assert 0.01 < cover.mean() < 1 and cover.max() == 1
        # an outline need not be even about its middle
        middle = [(cover * a).sum() / cover.sum() for a in (axis[None], axis[:, None])]
        if abs(x) + half < 0.9 and abs(y) + half < 0.9:
            assert abs(middle[0] - x) < 0.2 * half and abs(middle[1] - y) < 0.2 * half
        _, cover, place = next(photographs)
        assert cover.max() == 0 and place[3] == 0


def test_a_readout_that_is_right_about_the_thing_has_little_to_lose():
    """Cover, way and size as linear functions of tokens that hold them."""
    readout = Readout(new_patch_encoder(16).config)
    cover = torch.zeros(2, 16, 16)
    cover[0, 4:8, 8:16] = 1
    place = torch.tensor([[0.5, -0.25, 0.4, 1.0], [0.0, 0.0, 1.0, 0.0]])
    tokens = torch.zeros(2, 16, 96)
    axis = (torch.arange(4) + 0.5) / 2 - 1
    tokens[..., 0], tokens[..., 1] = axis.repeat(4), axis.repeat_interleave(4)
    tokens[0, 6:8, 2] = 1
    for layer in (readout.cover, readout.way):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    unaware = readout.sight_loss(tokens, cover, place).item()
    with torch.no_grad():
        readout.cover.weight[0, 2], readout.cover.bias[0] = 40, -20
        readout.way.weight[0, 0], readout.way.weight[1, 1] = -1, -1
        readout.way.bias.copy_(torch.tensor([0.5, -0.25, 0.0]))
    assert readout.sight_loss(tokens, cover, place).item() == pytest.approx(0, abs=1e-5) and unaware > 0.5
    # a picture without a thing has nothing to be wrong about
    assert readout.sight_loss(tokens[1:], cover[1:], place[1:]).item() == 0


def test_some_steps_teach_the_encoder_pixels_and_places(noise, monkeypatch):
    monkeypatch.setattr(patches, "LAYERS", 1)
    clips = ClipSet(noise, SHAPES, size=16, thing_share=1.0)
    frames, cover, place = (torch.stack(part) for part in zip(*islice(Sights(clips), 16), strict=True))
    errors = []
    for steps in (1, 60):
        encoder, readout = train_patch_encoder(Sights(clips), steps, 10, Accelerator(cpu=True))
        pictures = normalised(frames)
        tokens = patch_tokens(encoder, pictures)
        errors.append((readout.pixel_loss(tokens, pictures).item(), readout.sight_loss(tokens, cover, place).item()))
    # zero until patches are hidden
    assert encoder.embeddings.mask_token.abs().max() > 0
    (pixels, sight), (taught_pixels, taught_sight) = errors
    assert taught_pixels < 0.8 * pixels and taught_sight < 0.7 * sight


@torch.no_grad()
def test_a_deeper_encoder_starts_about_where_the_old_one_was():
    torch.manual_seed(0)
    old = new_patch_encoder(16, layers=2).eval()
    pictures = torch.randn(4, 3, 16, 16)
    new = deepen.deepened(old, 4).eval()
    assert new.config.num_hidden_layers == 4
    tokens = patch_tokens(old, pictures)
    changed = (patch_tokens(new, pictures) - tokens).square().mean() / tokens.square().mean()
    assert 0 < float(changed) < 0.05


def test_the_adapter_reads_the_old_tokens_out_of_the_new():
    torch.manual_seed(0)
    project, back = nn.Linear(96, 8), nn.Linear(96, 96)
    tensors = {"content_proj.weight": project.weight.data, "content_proj.bias": project.bias.data, "other": torch.ones(1)}
    changed = deepen.reading_through(tensors, back)
    tokens = torch.randn(5, 96)
    read = nn.functional.linear(tokens, changed["content_proj.weight"], changed["content_proj.bias"])
    assert torch.allclose(read, project(back(tokens)), atol=1e-5) and changed["other"] is tensors["other"]


def test_one_command_deepens_a_demo_that_still_animates(noise, tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "package_photos", lambda: (noise, noise))
    old = load_image_encoder(DEMO_FOLDER / "image_encoder")
    has = old.config.num_hidden_layers
    demo = tmp_path / "deep"
    monkeypatch.setattr("sys.argv", ["deepen", str(demo), "--layers", str(has + 1), "--steps", "2", "--batch", "5"])
    deepen.main()
    deep = load_image_encoder(demo / "image_encoder")
    assert deep.config.num_hidden_layers == has + 1
    # what it had learnt learns on
    name = next(name for name, p in old.named_parameters() if "layer.0." in name and p.ndim == 2)
    assert not torch.equal(deep.state_dict()[name], old.state_dict()[name])
    adapter = demo / "adapter.safetensors"
    assert read_config(adapter) == read_config(DEMO_FOLDER / "adapter.safetensors")
    with opened(adapter) as file:
        assert file.get_tensor("content_proj.weight").dtype == torch.float16
    write_picture(torch.rand(3, 80, 80), tmp_path / "photo.png")
    files = ["--base", str(demo), "--model", str(adapter), "--steps", "2"]
    assert main(["animate", str(tmp_path / "photo.png"), "camera pans left", *files, "-o", str(tmp_path / "clip.webp")]) == 0


def test_an_encoder_with_more_layers_is_not_deepened(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["deepen", str(tmp_path / "deep"), "--layers", "2"])
    with pytest.raises(SystemExit, match="layers already: ask for as many or more with --layers"):
        deepen.main()
    assert not (tmp_path / "deep").exists()
