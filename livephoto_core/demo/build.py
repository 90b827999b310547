"""Makes the demo model from nothing: `python -m livephoto_core.demo.build OUT`.

The steps are tokenizer, VAE, patch encoder, clip cache, a start from stills, and the training of base and adapter together by
`livephoto train`. What exists in OUT is kept, so that a stopped build goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, Dinov2Model, PreTrainedTokenizerFast

from ..training.cache import CachedClips, build_cache
from ..training.run import token_ids_of
from .base import adapter_config, new_scheduler, new_unet, train_on_stills
from .captions import corpus
from .clips import ClipSet
from .encode import encode_clip, load_encoders
from .patches import train_patch_encoder
from .photos import load_photos, package_folders, split_photos
from .sprites import HELD_OUT_SHAPES, SHAPES
from .stills import Stills, held_out_stills
from .text import new_text_encoder, teach_words, train_tokenizer
from .vae import refine_decoder, round_trip_psnr, train_vae

PHOTO_SIDE = 192
# far beyond the clips' own numbers, so that the patch encoder sees other scenes than the cache holds
PATCH_SCENES = 500_000
DECODER_SCENES = 700_000
TEXT_STEPS = 600


def training_clips() -> ClipSet:
    """The clips that the demo learns from."""
    train, _ = split_photos(load_photos(package_folders(), PHOTO_SIDE))
    return ClipSet(train, SHAPES)


def held_out_clips(thing_share: float) -> ClipSet:
    """Clips of photographs and shapes that the demo never sees."""
    _, test = split_photos(load_photos(package_folders(), PHOTO_SIDE))
    return ClipSet(test, HELD_OUT_SHAPES, seed=1, thing_share=thing_share)


def make_vae(base: Path, steps: int) -> None:
    """The VAE, saved in the base folder."""
    if (base / "vae").exists():
        return
    test = held_out_stills(held_out_clips(0.0), 96)
    vae = train_vae(Stills(training_clips()), test, steps, 24, base)
    vae.save_pretrained(base / "vae")
    print(f"VAE: {round_trip_psnr(vae, test):.2f} dB on held-out photographs")


def make_patch_encoder(base: Path, steps: int) -> None:
    """The patch encoder, saved in the base folder."""
    if not (base / "image_encoder").exists():
        train_patch_encoder(Stills(training_clips(), PATCH_SCENES), steps, 16).save_pretrained(base / "image_encoder")


def make_decoder(base: Path, trained: Path, steps: int) -> None:
    """The VAE with its decoder trained further, saved beside the trained parts; the encoder and so the latents stay."""
    if (trained / "vae").exists():
        return
    vae = AutoencoderKL.from_pretrained(base / "vae")
    test = held_out_stills(held_out_clips(0.0), 96)
    refine_decoder(vae, Stills(training_clips(), DECODER_SCENES), test, steps, 24).save_pretrained(trained / "vae")


def make_cache(base: Path, count: int, process: int, processes: int) -> None:
    """This process's share of the clip cache."""
    vae, patches = load_encoders(base)
    clips = training_clips()
    torch.set_num_threads(1)
    build_cache(base / "cache", count, lambda i: encode_clip(clips, i, vae, patches), process, processes)


def make_base(base: Path, steps: int) -> None:
    """Tokenizer, scheduler, UNet and text encoder after their start from stills."""
    if (base / "unet").exists():
        return
    torch.manual_seed(0)
    tokenizer = train_tokenizer(corpus())
    tokenizer.save_pretrained(base / "tokenizer")
    new_scheduler().save_pretrained(base / "scheduler")
    clips = CachedClips(base / "cache")
    unet, text_encoder = new_unet(), new_text_encoder(tokenizer)
    ids = token_ids_of(tokenizer, clips.captions, 77)
    teach_words(text_encoder, ids, TEXT_STEPS)
    train_on_stills(unet, text_encoder, clips, ids, token_ids_of(tokenizer, [""], 77)[0], steps, 48, base)


def write_run(base: Path, out: Path, steps: int, frames_per_clip: int) -> Path:
    """The joint training's config file."""
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    run = {
        "base": str(base),
        "out": str(out),
        "adapter": asdict(adapter_config(unet)),
        "data": {"kind": "cache", "path": str(base / "cache"), "held_out": 24},
        "freeze_base": False,
        "steps": steps,
        "batch": 8,
        "learning_rate": 1e-3,
        "warmup": 200,
        "decay_from": 0.6,
        "text_drop": 0.15,
        "frames_per_clip": frames_per_clip,
        "ema": 0.998,
        "save_every": 250,
        "validate_every": 250,
    }
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(run, indent=1), encoding="utf-8")
    return path


def assemble(base: Path, trained: Path, out: Path) -> None:
    """The shipped folder: every part of the base in fp16, the tokenizer, the scheduler and the adapter."""
    out.mkdir(parents=True, exist_ok=True)
    sources = {"vae": AutoencoderKL, "image_encoder": Dinov2Model, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    for name, kind in sources.items():
        folder = trained / name if (trained / name).exists() else base / name
        kind.from_pretrained(folder).half().save_pretrained(out / name)
    PreTrainedTokenizerFast.from_pretrained(base / "tokenizer").save_pretrained(out / "tokenizer")
    new_scheduler().save_pretrained(out / "scheduler")
    shutil.copy(trained / "adapter.safetensors", out / "adapter.safetensors")


def launch(processes: int, *module: str) -> None:
    """Run a module in several processes of one thread: two such beat one process with two threads by far."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run([*command, "-m", *module], env=environment, check=True)


def build(
    out: Path,
    vae_steps: int,
    patch_steps: int,
    clips: int,
    still_steps: int,
    steps: int,
    decoder_steps: int,
    processes: int,
) -> None:
    """All steps, one after the other."""
    base, trained = out / "base", out / "trained"
    base.mkdir(parents=True, exist_ok=True)
    make_vae(base, vae_steps)
    make_patch_encoder(base, patch_steps)
    cachers = [
        subprocess.Popen([sys.executable, "-m", __spec__.name, str(out), "--clips", str(clips), "--cache", f"{p}/{processes}"])
        for p in range(processes)
    ]
    if any(process.wait() for process in cachers):
        raise SystemExit("caching the clips failed: see above")
    make_base(base, still_steps)
    config = write_run(base, trained, steps, 8)
    resume = ["--resume"] if (trained / "state.pt").exists() else []
    launch(processes, "livephoto_core.cli", "train", str(config), *resume)
    make_decoder(base, trained, decoder_steps)
    assemble(base, trained, out / "demo")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m livephoto_core.demo.build", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for everything that is made; the model itself is OUT/demo")
    parser.add_argument("--vae-steps", type=int, default=1800)
    parser.add_argument("--patch-steps", type=int, default=450)
    parser.add_argument("--clips", type=int, default=2048)
    parser.add_argument("--still-steps", type=int, default=120)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--decoder-steps", type=int, default=1500)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cache", metavar="K/N", help="only fill share K of N of the cache")
    options = parser.parse_args()
    if options.cache:
        process, processes = (int(v) for v in options.cache.split("/"))
        make_cache(options.out / "base", options.clips, process, processes)
        return
    build(
        options.out,
        options.vae_steps,
        options.patch_steps,
        options.clips,
        options.still_steps,
        options.steps,
        options.decoder_steps,
        options.processes,
    )


if __name__ == "__main__":
    main()
