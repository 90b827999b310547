"""The trainer on a tiny base: what a step sees, what resuming gives, what two processes give."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from livephoto_core.base import load_base
from livephoto_core.checkpoint import load_adapter, read_config, read_metadata, save_adapter
from livephoto_core.cli import main
from livephoto_core.config import to_json
from livephoto_core.encoding import overlong_text
from livephoto_core.errors import LivePhotoError
from livephoto_core.intensity import fractional_level, level
from livephoto_core.media import read_clip
from livephoto_core.media_write import write_clip
from livephoto_core.noise import share_noise
from livephoto_core.schedule import add_noise, clean_and_noise
from livephoto_core.training.batches import Batches, drawn_noise, drawn_places, drawn_share, drawn_timesteps, one_ahead
from livephoto_core.training.cache import CachedClips, EncodedClip, cache_stream
from livephoto_core.training.config import RunConfig, load_run, run_from_dict
from livephoto_core.training.model import Batch, first_frame_weights, kept_at, motion_weights, token_weights
from livephoto_core.training.run import adapter_config_of, prepare, process_state, train
from livephoto_core.training.samples import NO_CAPTION, readable
from livephoto_core.training.trainer import (
    Average,
    export,
    fixed_settings,
    is_finished,
    learning_rate,
    load_state,
    parameter_groups,
    save_state,
    validation_errors,
)

FRAMES, CLIPS = 2, 12
THRESHOLDS = (0.99, 0.97, 0.94, 0.9, 0.85, 0.8, 0.7, 0.6, 0.4)


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    generator = torch.Generator().manual_seed(0)
    words = ("left", "right", "up", "down")
    cache_stream(
        folder,
        (
            EncodedClip(
                torch.randn(FRAMES, 12, 8, 8, generator=generator),
                torch.randn(64, 24, generator=generator),
                (8, 8),
                float(s),
                f"camera pans {words[i % 4]}",
            )
            for i, s in enumerate(np.linspace(0.3, 0.999, CLIPS))
        ),
    )
    return folder


@pytest.fixture
def run_file(tmp_path, cache_folder, tiny_base_folder, tiny_adapter_file):
    """A run's config file; keyword arguments replace values."""

    def write(name="run", **values):
        config = {
            "base": str(tiny_base_folder),
            "out": str(tmp_path / name),
            "start_adapter": str(tiny_adapter_file),
            "data": {"kind": "cache", "path": str(cache_folder), "held_out": 2},
            "steps": 6,
            "batch": 4,
            "learning_rate": 1e-3,
            "warmup": 2,
            "save_every": 2,
            "validate_every": 3,
            **values,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(config))
        return path

    return write


def weights(folder):
    return load_adapter(folder / "adapter.safetensors").state_dict()


def batches_of(folder, batch, text_drop=0.5, frames_per_clip=0):
    clips = CachedClips(folder)
    ids = torch.arange(len(clips))[:, None].expand(-1, 77) + 100
    empty = torch.zeros(77, dtype=torch.long)
    return Batches(clips, list(range(len(clips))), ids, empty, THRESHOLDS, batch, 0, text_drop, frames_per_clip)


def test_parts_of_a_step_are_the_step(cache_folder):
    whole = batches_of(cache_folder, 4).step(5)
    parts = [batches_of(cache_folder, 4).step(5, range(first, first + 2)) for first in (0, 2)]
    for name in ("latents", "noise", "timesteps", "text_ids", "tokens", "levels"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts])), name


def test_an_epoch_sees_every_clip_once(cache_folder):
    batches = batches_of(cache_folder, 4, text_drop=0)
    seen = torch.cat([batches.step(s).text_ids[:, 0] for s in range(CLIPS // 4)])
    assert sorted(seen.tolist()) == list(range(100, 100 + CLIPS))


def test_timesteps_are_stratified_and_text_is_dropped_as_often_as_told(cache_folder):
    for step in range(20):
        parts = drawn_timesteps(step, 8, 1000, 0) * 8 // 1000
        assert sorted(parts.tolist()) == list(range(8))
    batches = batches_of(cache_folder, 12)
    dropped = torch.stack([(batches.step(s).text_ids[:, 0] == 0).float().mean() for s in range(40)]).mean()
    assert 0.4 < dropped < 0.6


def test_levels_follow_the_clips_own_ssim(cache_folder):
    batch = batches_of(cache_folder, 12, text_drop=0).step(0)
    by_clip = dict(zip(batch.text_ids[:, 0].tolist(), batch.levels[:, 0].tolist(), strict=True))
    levels = [by_clip[100 + i] for i in range(CLIPS)]
    assert levels == sorted(levels, reverse=True) and levels[0] == 10 and levels[-1] == 1


def test_shifted_timesteps_crowd_the_noisy_end_and_stay_stratified():
    """Shift 3 maps the middle of the schedule to three quarters of it."""
    plain, shifted = (drawn_timesteps(5, 64, 1000, 0, shift).sort().values for shift in (1.0, 3.0))
    assert (plain >= 500).sum() == 32
    assert abs(int((shifted >= 750).sum()) - 32) <= 1 and shifted.min() >= 0 and shifted.max() <= 999
    share = (torch.arange(64) + 0.5) / 64
    torch.testing.assert_close(shifted.float() / 1000, 3 * share / (1 + 2 * share), atol=0.025, rtol=0)


def test_drawn_frames_keep_the_order_and_come_from_the_whole_clip():
    places = drawn_places(3, 16, 8, 0)
    assert len(places) == 8 and torch.equal(places, places.unique())
    assert {int(p) for step in range(60) for p in drawn_places(step, 16, 2, 0)} == set(range(16))
    assert drawn_places(3, 16, 0, 0) is None and drawn_places(3, 16, 16, 0) is None


def test_drawn_frames_train_where_their_numbers_lie(run_file):
    """Frames 0 and 2 of a clip of three; all three by number are the whole clip."""
    model, *_ = prepare(load_run(run_file()))
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(2, 3, 12, 8, 8, generator=generator) for _ in range(2))
    whole = Batch(
        latents=latents,
        noise=noise,
        timesteps=torch.tensor([10, 700]),
        text_ids=torch.ones(2, 77, dtype=torch.long),
        tokens=torch.randn(2, 64, 24, generator=generator),
        grid=(8, 8),
        levels=torch.full((2, 3), 5.0),
        places=None,
        length=3,
        text=torch.randn(2, 77, 24, generator=generator),
    )
    torch.testing.assert_close(model(replace(whole, places=torch.arange(3))), model(whole))
    places = torch.tensor([0, 2])
    drawn = model(replace(whole, noise=noise[:, places], levels=whole.levels[:, places], places=places))
    drawn.mean().backward()
    assert all(p.grad.isfinite().all() for p in model.trained().values())
    # a device other than the CPU's, where no GPU is
    assert whole.condition(latents[:, 0]).position.device.type == "cpu"
    assert replace(whole, places=places.to("meta")).condition(latents[:, 0]).position.device.type == "meta"


def test_motion_weights_have_mean_one_and_stress_what_moves():
    latents = torch.zeros(1, 2, 3, 4, 4)
    latents[0, 1, :, 0, 0] = 1
    found = motion_weights(latents, latents[:, 0], 2.0)
    assert found.mean() == pytest.approx(1) and found[0, 1, 0, 0, 0] > 10 * found[0, 1, 0, 3, 3]


def test_motion_weights_of_a_single_late_frame_compare_it_with_the_clips_first():
    """The first frame need not be among those drawn."""
    latents = torch.zeros(1, 1, 3, 4, 4)
    latents[..., 0, 0] = 1
    found = motion_weights(latents, torch.zeros(1, 3, 4, 4), 2.0)
    assert found[0, 0, 0, 0, 0] > 10 * found[0, 0, 0, 3, 3]


def test_the_first_frame_is_stressed_where_it_is_drawn():
    assert first_frame_weights(torch.tensor([0, 3, 5]), 4.0).flatten().tolist() == [2, 0.5, 0.5]
    assert first_frame_weights(torch.tensor([3, 5]), 4.0).flatten().tolist() == [1, 1]


def test_stress_on_the_first_frame_is_in_the_loss(run_file):
    """Of two frames the first counts three quarters; what the others' losses are is seen by stressing hardly anything else."""
    losses = {}
    for factor in (1.0, 3.0, 1e6):
        model, batches, *_ = prepare(load_run(run_file(first_frame_weight=factor)))
        with torch.no_grad():
            losses[factor] = model(batches.fixed([2, 3], 500))
    first, second = losses[1e6], 2 * losses[1.0] - losses[1e6]
    torch.testing.assert_close(losses[3.0], (3 * first + second) / 4, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(first, second, rtol=0.01)


def test_the_weights_of_words_and_of_the_ends_and_what_follows():
    weights = torch.tensor([[[0.1, 0.2, 0.4, 0.6], [0.1, 0.2, 0.6, 0.8]]])
    words, padding = token_weights(weights, torch.tensor([[1, 5, 9, 9]]))
    assert (words.item(), padding.item()) == (pytest.approx(0.3), pytest.approx(1.2))
    # a text that fills every token ends with the last
    words, padding = token_weights(weights, torch.tensor([[1, 5, 6, 9]]))
    assert (words.item(), padding.item()) == (pytest.approx(0.8), pytest.approx(0.7))


@pytest.mark.parametrize(("option", "part"), [("word_penalty", 0), ("padding_penalty", 1)])
def test_a_price_is_paid_in_the_loss_and_lowers_the_weight_of_its_tokens(run_file, tmp_path, option, part):
    losses, shares = [], []
    for name, price in (("free", 0.0), ("priced", 0.1)):
        file = run_file(name, **{option: price}, rate_factors={}, steps=12)
        model, batches, *_ = prepare(load_run(file))
        batch = batches.fixed([2, 3], 500)
        with torch.no_grad():
            losses.append(model(batch))
            start = token_weights(model.weigh_text(batch)[1], batch.text_ids)[part]
        train(file)
        trained = load_adapter(tmp_path / name / "adapter.safetensors").reweight
        with torch.no_grad():
            weights = trained(batch.text, 2)
            shares.append(token_weights(weights, batch.text_ids)[part].mean())
    torch.testing.assert_close(losses[1] - losses[0], 0.1 * start)
    assert shares[1] < 0.9 * shares[0]


def test_a_frozen_text_encoder_is_not_there_and_batches_bring_its_texts(run_file, tiny_base_folder, tmp_path):
    model, batches, *_ = prepare(load_run(run_file(text_drop=0.5)))
    assert model.text_encoder is None and len(list((tmp_path / "run" / "cache").glob("texts-*/*"))) == 1
    encoder = load_base(tiny_base_folder).text_encoder
    stepped = [batches.step(step) for step in range(4)]
    empty = [torch.equal(ids, batches.empty_ids) for batch in stepped for ids in batch.text_ids]
    assert any(empty) and not all(empty)
    for batch in (*stepped, batches.fixed([3, 0], 500)):
        with torch.no_grad():
            wanted = encoder(batch.text_ids).last_hidden_state
        torch.testing.assert_close(batch.text, wanted, rtol=1e-3, atol=1e-3)


def test_training_lowers_the_loss_and_leaves_a_frozen_base_alone(run_file, tmp_path, tiny_base_folder):
    model, batches, *_ = prepare(load_run(run_file()))
    before = {name: p.clone() for name, p in model.unet.state_dict().items()}
    batch = batches.step(0)
    first = model(batch).mean().item()
    optimizer = torch.optim.Adam(model.trained().values(), lr=3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        loss = model(batch).mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.9 * first
    assert all(name.startswith("adapter.") for name in model.trained())
    assert all(torch.equal(before[name], p) for name, p in model.unet.state_dict().items())


def test_a_base_that_trains_is_saved_whole_beside_the_adapter(run_file, tmp_path, tiny_base):
    train(run_file(freeze_base=False, steps=2))
    out = tmp_path / "run"
    saved = load_base(out)
    assert read_config(out / "adapter.safetensors").prediction_type == tiny_base.prediction_type == "v_prediction"
    assert (saved.schedule, saved.prediction_type) == (tiny_base.schedule, tiny_base.prediction_type)
    text = ["camera pans left", ""]
    assert saved.tokenizer(text).input_ids == tiny_base.tokenizer(text).input_ids
    for part, trains in {"vae": False, "image_encoder": False, "unet": True, "text_encoder": True}.items():
        before, after = (getattr(base, part).state_dict() for base in (tiny_base, saved))
        assert before.keys() == after.keys()
        assert trains is not all(torch.equal(value, before[name]) for name, value in after.items()), part
    Image.effect_noise((80, 60), 60).convert("RGB").save(tmp_path / "photo.png")
    model = ["--base", str(out), "--model", str(out / "adapter.safetensors")]
    clip = str(tmp_path / "clip.webp")
    assert main(["animate", str(tmp_path / "photo.png"), "camera pans left", "--steps", "1", *model, "-o", clip]) == 0
    assert read_clip(clip).frames.shape == (FRAMES, 3, 64, 64)


def test_what_trains_without_a_frozen_base(run_file):
    model, *_ = prepare(load_run(run_file(freeze_base=False)))
    assert {n.split(".")[0] for n in model.trained()} == {"adapter", "unet", "text_encoder"}


def test_an_export_that_fails_leaves_nothing(run_file, tmp_path):
    run = load_run(run_file(freeze_base=False))
    model, batches, _, sampler = prepare(run)
    with torch.no_grad():
        next(model.adapter.parameters()).fill_(1e6)
    with pytest.raises(LivePhotoError, match="not finite"):
        export(model, sampler.base, tmp_path / "out", batches.thresholds, run, 1)
    assert list((tmp_path / "out").iterdir()) == []


def test_gradient_checkpointing_and_accumulation_change_nothing(run_file, tmp_path):
    for name, values in {"plain": {}, "parts": {"accumulate": 2}, "checkpointed": {"gradient_checkpointing": True}}.items():
        train(run_file(name, steps=2, clip_gradients=0.0, **values))
    plain = moments(tmp_path / "plain")
    assert plain
    for other in ("parts", "checkpointed"):
        same_moments(moments(tmp_path / other), plain)


def moments(folder):
    """The running means of a run's gradients: their scale shows in these alone, AdamW's steps do not depend on it."""
    state = torch.load(folder / "state.pt", weights_only=True)["optimizer"]["state"]
    return {index: values["exp_avg"] for index, values in state.items()}


def same_moments(found, expected):
    assert found.keys() == expected.keys()
    for index, value in expected.items():
        torch.testing.assert_close(found[index], value, atol=1e-5 * float(value.abs().max()) + 1e-9, rtol=1e-3)


def cli(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "livephoto_core.cli", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


@pytest.mark.timeout(600)
def test_killed_and_resumed_is_unbroken(run_file, tmp_path):
    unbroken = run_file("unbroken", steps=24)
    assert cli("train", unbroken).wait(190) == 0
    broken = run_file("broken", steps=24)
    process = cli("train", broken)
    state, adapter = tmp_path / "broken" / "state.pt", tmp_path / "broken" / "adapter.safetensors"
    deadline = time.monotonic() + 190
    while not adapter.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < torch.load(state, weights_only=True)["step"] < 24, "the run ended before it was killed"
    assert load_adapter(adapter).config.ssim_thresholds == THRESHOLDS, "what was learnt so far can be used"
    # as a kill amid a save leaves them
    (tmp_path / "broken" / ".state.0123abcd.pt").write_bytes(b"half")
    (tmp_path / "broken" / ".0123abcd").mkdir()
    assert cli("train", broken, "--resume").wait(190) == 0
    assert sorted(os.listdir(tmp_path / "broken")) == sorted(os.listdir(tmp_path / "unbroken"))
    expected = weights(tmp_path / "unbroken")
    for key, value in weights(tmp_path / "broken").items():
        assert torch.equal(value, expected[key]), key


def test_a_run_is_finished_when_its_last_adapter_is_there(run_file, tmp_path):
    out = tmp_path / "run"
    assert not is_finished(out, 2)
    train(run_file(steps=2))
    assert is_finished(out, 2) and not is_finished(out, 3), "an adapter of two steps"
    adapter = load_adapter(out / "adapter.safetensors")
    save_adapter(adapter, out / "adapter.safetensors")
    assert is_finished(out, 3), "as they were written before, at the end alone"


def test_a_finished_run_without_its_adapter_writes_it(run_file, tmp_path):
    train(run_file(steps=2))
    expected = weights(tmp_path / "run")
    (tmp_path / "run" / "adapter.safetensors").unlink()
    train(run_file(steps=2), resume=True)
    for key, value in weights(tmp_path / "run").items():
        assert torch.equal(value, expected[key]), key


def test_a_run_with_muon_goes_on_where_it_was(run_file, tmp_path):
    values = {"optimizer": "muon", "freeze_base": False, "validate_every": 0}
    train(run_file("unbroken", steps=4, **values))
    train(run_file("broken", steps=2, **values))
    train(run_file("broken", steps=4, **values), resume=True)
    groups = torch.load(tmp_path / "broken" / "state.pt", weights_only=True)["optimizer"]["param_groups"]
    assert {group["orthogonal"] for group in groups} == {True, False}
    expected = weights(tmp_path / "unbroken")
    for key, value in weights(tmp_path / "broken").items():
        assert torch.equal(value, expected[key]), key
    with pytest.raises(LivePhotoError, match="optimizer muon, the config has adamw"):
        train(run_file("broken", steps=6, freeze_base=False), resume=True)


LAUNCHERS = {
    # on a CPU accelerate's own launcher starts one process, whatever number it is given; torch's starts two
    "accelerate": ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_several_processes_give_the_gradients_of_one(launcher, run_file, tmp_path):
    train(run_file("one", steps=2, clip_gradients=0.0))
    config = str(run_file("two", steps=2, clip_gradients=0.0))
    command = [sys.executable, *LAUNCHERS[launcher], "-m", "livephoto_core.cli", "train", config]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    if launcher == "torchrun":
        assert b"2 processes" in done.stdout
    assert moments(tmp_path / "one")
    same_moments(moments(tmp_path / "two"), moments(tmp_path / "one"))


def test_processes_that_would_train_alone_are_refused(run_file, monkeypatch):
    # accelerate keeps the state that it had before there were two
    assert process_state().num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(LivePhotoError, match="2 processes were started, and each would train alone"):
        train(run_file("alone", steps=1))


def test_clips_in_a_folder_are_cached_once_and_bad_ones_named(tmp_path, tiny_base_folder, tiny_adapter_file, capsys):
    clips = tmp_path / "clips"
    clips.mkdir()
    rows = ["path,caption"]
    for i in range(11):
        frames = torch.rand(1, 3, 8, 8).repeat(3, 1, 8, 8)
        write_clip(frames + 0.05 * i * torch.arange(3)[:, None, None, None] / 3, clips / f"{i}.gif", settings={})
        rows.append(f"{i}.gif,camera pans left")
    (clips / "broken.gif").write_bytes(b"GIF89a, but no more")
    rows.append("broken.gif,broken")
    (clips / "clips.csv").write_text("\n".join(rows))
    run = run_from_dict(
        {
            "base": str(tiny_base_folder),
            "out": str(tmp_path / "out"),
            "start_adapter": str(tiny_adapter_file),
            "data": {"kind": "folder", "path": str(clips), "held_out": 1},
            "batch": 2,
        }
    )
    _, batches, held_out, _ = prepare(run)
    assert "broken.gif" in capsys.readouterr().out
    assert len(batches.clips) == 11 and held_out == [0]
    stamp = (tmp_path / "out" / "cache" / "finished.txt").stat().st_mtime_ns
    prepare(run)
    assert (tmp_path / "out" / "cache" / "finished.txt").stat().st_mtime_ns == stamp
    said = capsys.readouterr().out
    assert "broken.gif" in said and f"delete {tmp_path / 'out' / 'cache'}" in said, "it may be there now"


def test_sample_sheets_are_drawn_and_the_hooks_are_back(run_file, tmp_path, cache_folder):
    model, batches, _, sampler = prepare(load_run(run_file(sample_cfg=1.0)))
    batch = batches.step(0)
    before = model(batch)
    sampler(model, 7)
    assert (tmp_path / "run" / "samples" / "step-000007.png").stat().st_size > 1000
    assert torch.equal(model(batch), before)


def test_sheets_take_captions_that_the_pipeline_refuses(tiny_base):
    long = " ".join(["camera pans left"] * 60)
    cut = readable(tiny_base, long)
    assert long.startswith(cut) and not overlong_text(tiny_base, cut) and len(cut) > 100
    assert overlong_text(tiny_base, "x" * 2000) and not overlong_text(tiny_base, readable(tiny_base, "x" * 2000))
    assert readable(tiny_base, " ") == NO_CAPTION
    assert readable(tiny_base, "camera pans left") == "camera pans left"


def test_one_ahead_keeps_the_order_and_tells_errors():
    assert list(one_ahead(lambda x: x * x, range(5))) == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        list(one_ahead(lambda x: 1 / x, (1, 0, 2)))


@pytest.fixture
def started(run_file):
    """A model, its optimizer after a step, its average and its fixed settings, and a run of other settings by keyword."""

    def make(**values):
        run = load_run(run_file(**values))
        model, batches, *_ = prepare(run)
        optimizer = torch.optim.AdamW(parameter_groups(model, run))
        model(batches.step(0)).mean().backward()
        optimizer.step()
        return model, optimizer, Average(model.trained(), run.ema), fixed_settings(run, model, batches)

    return make


def test_state_comes_back_whole_with_the_scale_of_half_precision(started, tmp_path):
    model, optimizer, average, settings = started()
    save_state(tmp_path, model, optimizer, average, 7, settings, torch.amp.GradScaler("cpu", init_scale=8.0))
    saved = {name: p.detach().clone() for name, p in model.trained().items()}
    with torch.no_grad():
        for parameter in (*model.trained().values(), *average.values.values()):
            parameter.zero_()
    scaler = torch.amp.GradScaler("cpu")
    assert load_state(tmp_path, model, optimizer, average, settings, scaler) == 7
    assert scaler.state_dict()["scale"] == 8.0
    for name, parameter in model.trained().items():
        assert torch.equal(parameter, saved[name]) and torch.equal(average.values[name], saved[name])
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    new = ("pure_noise", "own_guesses", "adapter.shared_noise", "adapter.shared_noise_still")
    before = {name: value for name, value in json.loads(state["settings"]).items() if name not in new}
    before["adapter.content"].pop("centred")
    torch.save({**state, "settings": json.dumps(before)}, tmp_path / "state.pt")
    uncentred = {**settings, "adapter.content": {**settings["adapter.content"], "centred": False}}
    assert load_state(tmp_path, model, optimizer, average, uncentred, scaler) == 7, "from before there were shares and centres"
    with pytest.raises(LivePhotoError, match=r"adapter\.content .*'centred': False.* the config has .*'centred': True"):
        load_state(tmp_path, model, optimizer, average, settings, scaler)
    with pytest.raises(LivePhotoError, match=r"pure_noise 0\.0, the config has 0\.1"):
        load_state(tmp_path, model, optimizer, average, {**uncentred, "pure_noise": 0.1}, scaler)
    with pytest.raises(LivePhotoError, match=r"adapter\.shared_noise_still 0\.0, the config has 0\.9"):
        load_state(tmp_path, model, optimizer, average, {**uncentred, "adapter.shared_noise_still": 0.9}, scaler)
    torch.save({key: state[key] for key in ("step", "model", "average", "optimizer")}, tmp_path / "state.pt")
    assert load_state(tmp_path, model, optimizer, average, settings, scaler) == 7, "a state of the first version"


def test_foreign_states_are_refused_and_nothing_changes(started, tmp_path):
    model, optimizer, average, settings = started()
    save_state(tmp_path, model, optimizer, average, 7, settings)
    good = torch.load(tmp_path / "state.pt", weights_only=True)
    name = next(iter(good["model"]))
    number = next(iter(good["optimizer"]["state"]))
    groups = good["optimizer"]["param_groups"]
    moments = {**good["optimizer"]["state"], number: {**good["optimizer"]["state"][number], "exp_avg": torch.zeros(3)}}
    bad = {
        "no whole training state": [
            {},
            [1],
            {k: v for k, v in good.items() if k != "average"},
            {**good, "step": "7"},
            {**good, "optimizer": {}},
        ],
        "another model": [{**good, "model": {**good["model"], name: torch.zeros(1, 2, 3)}}, {**good, "average": {}}],
        "other optimizer groups": [{**good, "optimizer": {"state": {}, "param_groups": groups[:1]}}],
        "moments of another optimizer": [{**good, "optimizer": {"state": moments, "param_groups": groups}}],
        "written with seed 1, the config has 0": [{**good, "settings": json.dumps({"seed": 1, "of the future": 2})}],
    }
    with torch.no_grad():
        for parameter in model.trained().values():
            parameter.zero_()
    for words, states in bad.items():
        for state in states:
            torch.save(state, tmp_path / "state.pt")
            with pytest.raises(LivePhotoError, match=words):
                load_state(tmp_path, model, optimizer, average, settings)
    assert not any(p.any() for p in model.trained().values())


def test_settings_that_must_stay_are_named_but_paths_may_move(run_file, tmp_path, cache_folder):
    run = load_run(run_file())
    model, batches, *_ = prepare(run)
    settings = fixed_settings(run, model, batches)
    moved = replace(run, base=f"/elsewhere/{Path(run.base).name}", steps=99, learning_rate=1.0)
    assert fixed_settings(moved, model, batches) == settings
    from_elsewhere = replace(run, data=replace(run.data, kind="folder", path="/elsewhere", csv="clips.csv", cache="/cache"))
    assert fixed_settings(from_elsewhere, model, batches) == settings
    other = fixed_settings(replace(run, text_drop=0.1), model, batches)
    assert [name for name in settings if settings[name] != other[name]] == ["text_drop"]


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from livephoto_core.errors import LivePhotoError
from livephoto_core.training.trainer import Average, save_state

class Model(torch.nn.Linear):
    def trained(self):
        return dict(self.named_parameters())

model = Model(300, 300)
average, optimizer = Average(model.trained(), 0.9), torch.optim.AdamW(model.parameters())
folder = Path(sys.argv[1])
save_state(folder, model, optimizer, average, 1, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_state(folder, model, optimizer, average, 2, {})
except LivePhotoError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files, which stands in for a full disk")
def test_full_disk_keeps_the_last_state(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot write" in done.stdout and len(done.stdout.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 1


FULL_DISK_LOG = """
import resource, signal, sys, threading
from pathlib import Path
from livephoto_core.errors import LivePhotoError
from livephoto_core.training.log import TrainingLog

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    log = TrainingLog(Path(sys.argv[1]), None)
    for step in range(1000):
        log.add(step, {"loss": 0.5})
    log.close()
except LivePhotoError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files, which stands in for a full disk")
@pytest.mark.parametrize("limit", [20, 5000])
def test_full_disk_ends_the_log_in_one_line(limit, tmp_path):
    command = [sys.executable, "-c", FULL_DISK_LOG, tmp_path, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "cannot write the log" in done.stdout and "free some space" in done.stdout and len(done.stdout.splitlines()) == 1


def test_diverged_run_keeps_its_last_good_state(run_file, tmp_path):
    train(run_file(steps=2))
    state = (tmp_path / "run" / "state.pt").read_bytes()
    run = run_file(steps=4, learning_rate=1e30)
    with pytest.raises(LivePhotoError, match=r"diverged by step 4 .*state\.pt holds the last good state: lower learning_rate"):
        train(run, resume=True)
    assert (tmp_path / "run" / "state.pt").read_bytes() == state


def test_validation_in_parts_is_validation_at_once(run_file):
    model, batches, *_ = prepare(load_run(run_file()))
    whole = validation_errors(model.eval(), batches, [0, 1, 2], (300,), 3)
    assert validation_errors(model, batches, [0, 1, 2], (300,), 2) == pytest.approx(whole, rel=1e-4)


def test_precision_of_bfloat16_validates_and_samples(run_file, tmp_path):
    """In a process of its own: accelerate keeps the first precision that a process asks for."""
    config = run_file(steps=1, mixed_precision="bf16", sample_every=1, sample_cfg=1.0)
    process = cli("train", config)
    assert process.wait(250) == 0, process.stderr.read().decode()[-2000:]
    assert (tmp_path / "run" / "samples" / "step-000001.png").is_file()


def test_a_run_may_learn_from_a_part_of_the_clips(run_file, cache_folder):
    part = {"kind": "cache", "path": str(cache_folder), "held_out": 0, "least_level": 3, "words": ["left", "up"]}
    _, batches, *_ = prepare(load_run(run_file(data=part)))
    captions = {batches.clips.captions[i] for i in batches.indices}
    assert captions == {"camera pans left", "camera pans up"}
    assert all(float(batches.clips.ssims[i]) < THRESHOLDS[1] for i in batches.indices)
    with pytest.raises(LivePhotoError, match=r"one of data\.words"):
        prepare(load_run(run_file(data={"kind": "cache", "path": str(cache_folder), "words": ["sideways"]})))


def test_clips_of_chosen_words_are_met_more_often(run_file, cache_folder, capsys):
    part = {"kind": "cache", "path": str(cache_folder), "held_out": 0, "repeats": {"left": 3, "camera": 2}}
    _, batches, *_ = prepare(load_run(run_file(data=part)))
    captions = batches.clips.captions
    assert len(set(batches.indices)) == len(captions)
    for i, caption in enumerate(captions):
        assert batches.indices.count(i) == (3 if "left" in caption else 2 if "camera" in caption else 1), caption
    prepare(load_run(run_file(data={**part, "repeats": {"Left": 3, "camera": 2}})))
    assert "data.repeats: no caption has 'Left'" in capsys.readouterr().out
    prepare(load_run(run_file(data={**part, "unguessed": ["left", "sideways"]})))
    assert "data.unguessed: no caption has 'sideways'" in capsys.readouterr().out


def test_a_run_may_be_told_where_in_its_levels_a_clip_lies(run_file, cache_folder, tmp_path):
    data = {"kind": "cache", "path": str(cache_folder), "held_out": 0, "fine_levels": True}
    _, fine, *_ = prepare(load_run(run_file(data=data)))
    _, whole, *_ = prepare(load_run(run_file(data={**data, "fine_levels": False})))
    ssims = [float(fine.clips.ssims[index]) for index in range(CLIPS)]
    for batches, of in ((fine, fractional_level), (whole, level)):
        told = batches.fixed(list(range(CLIPS)), 500).levels
        assert told[:, 0].tolist() == pytest.approx([of(ssim, THRESHOLDS) for ssim in ssims], abs=1e-5)
        assert torch.equal(told, told[:, :1].expand_as(told))
    assert not torch.equal(fine.step(0).levels, whole.step(0).levels)
    train(run_file(steps=2, data={**data, "fine_levels": False}))
    with pytest.raises(LivePhotoError, match=r"data\.fine_levels False, the config has True"):
        train(run_file(steps=4, data=data), resume=True)


def test_a_run_on_shared_noise_says_so_in_its_checkpoint(run_file, tmp_path, cache_folder):
    train(run_file(steps=1, shared_noise=0.6))
    made = tmp_path / "run" / "adapter.safetensors"
    assert load_adapter(made).config.shared_noise == 0.6
    # a run that says nothing goes on as the adapter says
    assert prepare(load_run(run_file(start_adapter=str(made))))[1].shared_noise == 0.6
    batches, own = (prepare(load_run(run_file(shared_noise=share)))[1] for share in (0.6, 0.0))
    assert torch.equal(batches.step(3).noise[:, 0], own.step(3).noise[:, 0])
    assert not torch.allclose(batches.step(3).noise[:, 1], own.step(3).noise[:, 1])
    assert torch.equal(batches.fixed([2], 500).noise, share_noise(own.fixed([2], 500).noise, 0.6))


def test_no_clip_shares_more_noise_in_training_than_what_moves_most(run_file, tmp_path, cache_folder):
    train(run_file(steps=1, shared_noise=0.5, shared_noise_still=0.95))
    made = tmp_path / "run" / "adapter.safetensors"
    kept = load_adapter(made).config
    assert (kept.shared_noise, kept.shared_noise_still) == (0.5, 0.95)
    batches, own = (prepare(load_run(run_file(start_adapter=str(made), **noise)))[1] for noise in ({}, {"shared_noise": 0.0}))
    found = set()
    for index in range(12):
        shared, plain = (b.fixed([index], 500) for b in (batches, own))
        found.add(float(shared.levels[0, 0]))
        assert torch.allclose(shared.noise, share_noise(plain.noise, 0.5), atol=1e-6)
    assert len(found) > 5 and min(found) < 3
    for step in range(3):
        shared, plain = (b.step(step).noise for b in (batches, own))
        shares = [drawn_share(step * len(shared) + row, 0.5, 0) for row in range(len(shared))]
        expected = torch.cat([share_noise(noise[None], share) for noise, share in zip(plain, shares, strict=True)])
        assert torch.allclose(shared, expected, atol=1e-5)


def test_a_share_of_the_clips_is_seen_as_pure_noise_at_the_last_timestep(run_file):
    model, batches, *_ = prepare(load_run(run_file(pure_noise=0.4)))
    plain = prepare(load_run(run_file()))[1]
    found = [(batches.step(step), plain.step(step)) for step in range(100)]
    unseen = torch.stack([mixed.unseen for mixed, _ in found])
    assert 0.3 < unseen.float().mean() < 0.5 and not any(own.unseen.any() for _, own in found)
    for mixed, own in found:
        assert torch.equal(mixed.timesteps, torch.where(mixed.unseen, 999, own.timesteps))
        assert torch.equal(mixed.noise, own.noise) and torch.equal(mixed.text_ids, own.text_ids)
    batch = next(mixed for mixed, _ in found if mixed.unseen.any() and not mixed.unseen.all())
    given = []
    model.unet.register_forward_pre_hook(lambda unet, inputs: given.append(inputs[0]))
    model(batch)
    same = (given[0].unflatten(0, batch.noise.shape[:2]) == batch.noise).flatten(1).all(1)
    assert torch.equal(same, batch.unseen)


def test_a_share_of_the_clips_is_made_anew_from_the_models_own_guess(run_file):
    model, batches, *_ = prepare(load_run(run_file(own_guesses=0.5, pure_noise=0.2)))
    plain = prepare(load_run(run_file(pure_noise=0.2)))[1]
    found = [(batches.step(step), plain.step(step)) for step in range(100)]
    guessed = torch.stack([mixed.guessed for mixed, _ in found])
    assert 0.3 < guessed.float().mean() < 0.5 and not any(own.guessed.any() for _, own in found)
    for mixed, own in found:
        assert not (mixed.guessed & mixed.unseen).any() and torch.equal(mixed.unseen, own.unseen)
        assert torch.equal(mixed.timesteps[~mixed.guessed], own.timesteps[~mixed.guessed])
        assert (mixed.timesteps[mixed.guessed] >= 500).all()
    batch = next(b for b, _ in found if b.guessed.any() and not b.guessed.all() and not b.unseen.any())
    calls = []
    model.unet.register_forward_hook(lambda unet, inputs, output: calls.append((*inputs[:2], output.sample)))
    loss = model(batch)
    (first, last, guess), (noisy, _, output) = calls
    shape = batch.noise.shape[:2]
    assert (last == 999).all() and torch.equal(first.unflatten(0, shape), batch.noise) and not guess.requires_grad
    kept = kept_at(model.alphas, batch.timesteps)
    made, _ = clean_and_noise(batch.noise, guess.unflatten(0, shape), model.alphas[-1], "v_prediction")
    rows = batch.guessed[:, None, None, None, None]
    given = torch.where(rows, add_noise(made, batch.noise, kept), add_noise(batch.latents, batch.noise, kept))
    assert torch.allclose(noisy.unflatten(0, shape), given, atol=1e-6)
    # what it is to make of them is the clip, whatever they were made of
    clean, _ = clean_and_noise(given, output.unflatten(0, shape), kept, "v_prediction")
    error = (clean - batch.latents).square().mean((1, 2, 3, 4)) / (1 - kept.flatten())
    assert torch.allclose(loss, error, rtol=1e-4)


def test_there_are_no_guesses_of_what_no_text_tells(run_file, cache_folder):
    data = {"kind": "cache", "path": str(cache_folder), "held_out": 2, "unguessed": ["left", "up"]}
    _, batches, *_ = prepare(load_run(run_file(data=data, own_guesses=1.0, text_drop=0.0)))
    captions = CachedClips(cache_folder).captions
    told = [tuple(batches.text_ids[i].tolist()) for i, caption in enumerate(captions) if caption.endswith(("right", "down"))]
    found = [batches.step(step) for step in range(6)]
    texts = [tuple(ids) for batch in found for ids in batch.text_ids.tolist()]
    guessed = [row for batch in found for row in batch.guessed.tolist()]
    assert guessed == [text in told for text in texts] and set(guessed) == {True, False}


def test_a_guess_under_autocast_leaves_every_weight_its_gradient(run_file):
    model, batches, *_ = prepare(load_run(run_file(own_guesses=1.0)))
    batch = batches.step(0)
    with torch.autocast("cpu", torch.bfloat16):
        model(batch).mean().backward()
    lost = {name for name, p in model.trained().items() if p.grad is None}
    plain, batches, *_ = prepare(load_run(run_file()))
    plain(batches.step(0)).mean().backward()
    assert lost == {name for name, p in plain.trained().items() if p.grad is None}


def test_pure_noise_and_guesses_from_it_are_for_bases_that_predict_v(run_file, tiny_base_folder, tmp_path):
    shutil.copytree(tiny_base_folder, tmp_path / "eps")
    path = tmp_path / "eps" / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("v_prediction", "epsilon"))
    for name in ("pure_noise", "own_guesses"):
        with pytest.raises(LivePhotoError, match=rf"{name} is 0.2, but .* predicts epsilon"):
            prepare(load_run(run_file(base=str(tmp_path / "eps"), **{name: 0.2})))


def test_one_share_alone_is_for_all_levels(run_file, tmp_path, cache_folder):
    train(run_file(steps=1, shared_noise=0.5, shared_noise_still=0.95))
    start = {"start_adapter": str(tmp_path / "run" / "adapter.safetensors")}
    for given, kept in ({"shared_noise": 0.6}, (0.6, 0.0)), ({"shared_noise_still": 0.8}, (0.5, 0.8)), ({}, (0.5, 0.95)):
        config = adapter_config_of(load_run(run_file(**start, **given)))
        assert (config.shared_noise, config.shared_noise_still) == kept


def test_frames_share_the_first_ones_noise_where_it_is_not_among_them():
    shape = 3, 4, 64, 64
    with_first, without = (drawn_noise(5, shape, 0.36, has_first, 0) for has_first in (True, False))
    found = [torch.corrcoef(noise.flatten(1))[[0, 0, 1], [1, 2, 2]] for noise in (with_first, without)]
    assert torch.allclose(found[0], torch.tensor([0.6, 0.6, 0.36]), atol=0.03)
    assert torch.allclose(found[1], torch.full((3,), 0.36), atol=0.03)


def test_half_of_the_clips_have_the_whole_share_and_the_others_less():
    shares = torch.tensor([drawn_share(position, 0.6, 0) for position in range(2000)])
    whole, none = shares == 0.6, shares == 0
    assert 0.47 < float(whole.float().mean()) < 0.53
    assert 0.17 < float(none.float().mean()) < 0.23
    assert torch.histc(shares[~whole & ~none], 3, 0, 0.6).min() > 160
    assert all(drawn_share(position, 0.0, 0) == 0 for position in range(20))


def test_learning_rate_rises_holds_and_falls():
    run = RunConfig(base="x", steps=100, warmup=10, decay_from=0.5)
    assert learning_rate(0, run) == pytest.approx(0.1)
    assert learning_rate(30, run) == 1
    assert learning_rate(99, run) < 0.06


@pytest.mark.parametrize(
    "values, words",
    [
        ({}, "names no base"),
        ({"base": "b", "bach": 3}, "unknown names bach"),
        ({"base": "b", "mixed_precision": "int8"}, "int8"),
        ({"base": "b", "optimizer": "sgd"}, "sgd"),
        ({"base": "b", "batch": 5, "accumulate": 2}, "not a multiple"),
        ({"base": "b", "text_drop": 1.5}, "1.5"),
        ({"base": "b", "data": {"kind": "zip"}}, "zip"),
        ({"base": "b", "data": {"kind": "cache", "path": "c", "least_level": 11}}, "11"),
        ({"base": "b", "frames_per_clip": 99}, "99"),
        ({"base": "b", "first_frame_weight": 0}, "first_frame_weight is 0"),
        ({"base": "b", "padding_penalty": -1}, "padding_penalty is -1"),
        ({"base": "b", "sample_cfg": 0.5}, "sample_cfg is 0.5"),
        ({"base": "b", "seed": 2**63}, "seed is 9223372036854775808"),
        ({"base": "b", "adapter": {"size": 100}}, "adapter.size is 100"),
        ({"base": "b", "pure_noise": 1.5}, "pure_noise is 1.5"),
        ({"base": "b", "own_guesses": -0.1}, "own_guesses is -0.1"),
        ({"base": "b", "shared_noise": 2}, "shared_noise is 2"),
        ({"base": "b", "shared_noise": -0.5}, "shared_noise is -0.5"),
        ({"base": "b", "shared_noise_still": 1.5}, "shared_noise_still is 1.5"),
        ({"base": "b", "data": {"kind": "cache", "path": "c", "repeats": {"spins": 1.5}}}, r"data.repeats.spins is 1.5"),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(LivePhotoError, match=words):
        run_from_dict(values)


def test_bad_files_are_named(tmp_path):
    (tmp_path / "a.toml").write_text("steps = ")
    (tmp_path / "a.json").write_text("{}")
    for name, words in {"none.toml": "no training config", "a.toml": "not TOML", "a.json": "ends in"}.items():
        with pytest.raises(LivePhotoError, match=words):
            load_run(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LivePhotoError, match="no cached clips"):
        CachedClips(tmp_path / "empty")


def test_resuming_nothing_says_so(run_file):
    with pytest.raises(LivePhotoError, match="nothing to resume"):
        train(run_file(), resume=True)


def test_the_exported_adapter_knows_its_thresholds(run_file, tmp_path, cache_folder):
    data = {"kind": "cache", "path": str(cache_folder), "held_out": 2, "intensity_from": "frames"}
    train(run_file(steps=1, data=data))
    adapter = load_adapter(tmp_path / "run" / "adapter.safetensors")
    assert adapter.config.ssim_thresholds == THRESHOLDS
    assert adapter.config.intensity_from == "frames"
    metadata = read_metadata(tmp_path / "run" / "adapter.safetensors")
    training = json.loads(metadata["training"])
    assert metadata["base"] == training["base"] == "base" and training["batch"] == 4 and training["data"]["held_out"] == 2
    assert "ssim_thresholds" in to_json(adapter.config)
