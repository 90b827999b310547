"""Makes the demo model from nothing: `python -m livephoto_core.demo.build OUT`.

The steps are tokenizer, VAE, patch encoder, clip cache, a start from stills, and the training of base and adapter together by
`livephoto train`. What exists in OUT is kept, so that a stopped build goes on where it was; a patch encoder that was not yet whole
starts over.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, Dinov2Model, PreTrainedTokenizerFast

from ..checkpoint import CONFIG_KEY, opened, read_config, save_tensors
from ..config import to_json
from ..errors import LivePhotoError
from ..files import atomic_folder, atomic_path
from ..training.cache import CachedClips
from ..training.run import token_ids_of
from ..training.trainer import is_finished
from . import patches
from .base import adapter_config, new_scheduler, new_unet, train_on_stills
from .captions import corpus
from .clip_cache import HELD_OUT, held_out_clips, make_cache, training_clips
from .padding import shut_padding
from .phrasings import MOVES, THINGS
from .portable import make_portable
from .preview import preview_map
from .stills import Stills, held_out_stills
from .text import LENGTH, new_text_encoder, teach_words, train_tokenizer
from .vae import train_vae

TEXT_STEPS = 600
CAMERA_WORDS = ("camera", "pan", "panning", "zooming", "clockwise", "counterclockwise")
TEST_STILLS = 96
# with each frame's own noise alone a model as small as this trembles, which counts as motion
SHARED_NOISE, SHARED_NOISE_STILL = 0.6, 0.95
COMPONENT_STILLS = 512
STILLS_AT_ONCE = 48
LIGHT = ("flickers", "flickering", "flicker", "blinks", "blinking")
FALLING = ("snow", "snows", "snowing", "snowflakes", "rain", "rains", "raining", "raindrops")
# what no text tells (when light flickers, where snow falls), so that a guess at it is an average
UNTOLD = (
    *(*LIGHT, *FALLING, "ripples", "rippling", "waves"),
    *("fireworks", "appears", "appearing", "nowhere", "pops", "shows"),
)


@dataclass(frozen=True)
class Phase:
    """A part of the joint training: the same trainer, another share of each clip.

    The camera's motions first: they teach the content attention to fetch. Among all motions, most of which leave the picture where
    it is, its finest level settles on looking straight ahead, and stays there. Two frames of many clips then teach what moves where
    sooner than sixteen of a few; words must be read before a price on them can tell those that help from the rest. Whole clips at
    last teach the frames to go together, and the first to be the photo, so that it is stressed and what moves is stressed less; and
    then, without a price on words, what is to be made of noise alone, with which sampling begins, and of the
    guesses made of it, with which sampling goes on; there each clip's level is told to a fraction.
    """

    name: str
    steps: int
    batch: int
    frames_per_clip: int
    learning_rate: float
    decay_from: float
    timestep_shift: float
    motion_weight: float
    first_frame_weight: float = 1.0
    word_penalty: float = 0.0
    pure_noise: float = 0.0
    own_guesses: float = 0.0
    unguessed: tuple[str, ...] = ()
    fine_levels: bool = False
    words: tuple[str, ...] = ()
    repeats: dict[str, int] = field(default_factory=dict)


def thing_repeats(moves: int, often: dict[str, int]) -> dict[str, int]:
    """How often an epoch meets clips of things that move, and by motion of others, by the last words of their verbs."""
    verbs = [(verb, moves) for verb in MOVES] + [(verb, often[motion]) for motion, verbs in THINGS.items() for verb in verbs]
    return {form.split()[-1]: times for forms, times in verbs for form in forms}


# what things do in their place is learnt last, going somewhere and shrinking before it
EARLY = thing_repeats(2, {"grow": 3, "shrink": 2, "spin": 3, "shake": 3})
LATE = thing_repeats(4, {"grow": 6, "shrink": 2, "spin": 6, "shake": 2})

APART = Phase(
    name="apart",
    steps=3000,
    batch=32,
    frames_per_clip=2,
    learning_rate=1.2e-3,
    decay_from=0.0,
    timestep_shift=2.0,
    motion_weight=1.0,
    word_penalty=0.004,
)


def make_vae(base: Path, steps: int) -> None:
    """The VAE, saved in the base folder."""
    if (base / "vae").exists():
        return
    stills, test = Stills(training_clips()), held_out_stills(held_out_clips(), TEST_STILLS)
    vae = train_vae(stills, torch.stack([*islice(stills, COMPONENT_STILLS)]), test, steps, 24, base)
    with atomic_folder(base / "vae") as folder:
        vae.save_pretrained(folder)


def make_patch_encoder(base: Path, steps: int, processes: int) -> None:
    """The patch encoder, saved in the base folder."""
    if not (base / "image_encoder").exists():
        launch(processes, patches.__name__, str(base / "image_encoder"), "--steps", str(steps))


def make_base(base: Path, steps: int) -> None:
    """Tokenizer, scheduler, UNet and text encoder after their start from stills."""
    if (base / "unet").exists():
        return
    torch.manual_seed(0)
    clips = CachedClips(base / "cache")
    tokenizer = train_tokenizer([*corpus(), *clips.captions])
    unet, text_encoder = new_unet(), new_text_encoder(tokenizer)
    ids = token_ids_of(tokenizer, clips.captions, LENGTH)
    teach_words(text_encoder, ids[HELD_OUT:], TEXT_STEPS)
    train_on_stills(unet, text_encoder, clips, ids, token_ids_of(tokenizer, [""], LENGTH)[0], HELD_OUT, steps, STILLS_AT_ONCE)
    parts = {"tokenizer": tokenizer, "scheduler": new_scheduler(), "text_encoder": text_encoder, "unet": unet}
    for name, part in parts.items():
        with atomic_folder(base / name) as folder:
            part.save_pretrained(folder)


def write_run(base: Path, out: Path, cache: Path, phase: Phase, start_adapter: Path | None) -> Path:
    """The config file of a phase of the joint training, a new adapter's config in it or the one to start from."""
    adapter: dict[str, object] = (
        {"adapter": asdict(adapter_config(UNet2DConditionModel.from_pretrained(base / "unet")))}
        if start_adapter is None
        else {"start_adapter": str(start_adapter)}
    )
    run = {
        "base": str(base),
        "out": str(out),
        **adapter,
        "data": {
            "kind": "cache",
            "path": str(cache),
            "held_out": HELD_OUT,
            "intensity_from": "reconstruction",
            "words": list(phase.words),
            "repeats": phase.repeats,
            "unguessed": list(phase.unguessed),
            "fine_levels": phase.fine_levels,
        },
        "freeze_base": False,
        "optimizer": "muon",
        "timestep_shift": phase.timestep_shift,
        "shared_noise": SHARED_NOISE,
        "shared_noise_still": SHARED_NOISE_STILL,
        "steps": phase.steps,
        "batch": phase.batch,
        "frames_per_clip": phase.frames_per_clip,
        "learning_rate": phase.learning_rate,
        "decay_from": phase.decay_from,
        "warmup": 100,
        "text_drop": 0.15,
        "motion_weight": phase.motion_weight,
        "first_frame_weight": phase.first_frame_weight,
        "padding_penalty": 0.01,
        "word_penalty": phase.word_penalty,
        "pure_noise": phase.pure_noise,
        "own_guesses": phase.own_guesses,
        "ema": 0.998,
        "save_every": 200,
        "validate_every": 200,
        "sample_every": 1000,
        "sample_cfg": 1.0,
    }
    path = out.with_suffix(".yaml")
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(run, indent=1), encoding="utf-8")
    return path


def train_phase(base: Path, out: Path, cache: Path, phase: Phase, start_adapter: Path | None, processes: int) -> None:
    """Run a phase, or go on with it."""
    if is_finished(out, phase.steps):
        return
    config = write_run(base, out, cache, phase, start_adapter)
    resume = ["--resume"] if (out / "state.pt").exists() else []
    launch(processes, f"{__spec__.parent.rpartition('.')[0]}.cli", "train", str(config), *resume)


def make_preview(folder: Path) -> None:
    """The colours of latents beside a VAE, for hosts that show a clip while it is sampled."""
    vae = AutoencoderKL.from_pretrained(folder)
    with atomic_path(folder / "preview.json") as temporary:
        temporary.write_text(json.dumps(preview_map(vae, held_out_stills(held_out_clips(), TEST_STILLS))), encoding="utf-8")


def copy_adapter(source: Path, target: Path) -> None:
    """The adapter with nothing but its config in the metadata: a run's settings name folders of the maker's disk."""
    with opened(source) as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    save_tensors(tensors, target, {CONFIG_KEY: to_json(read_config(source))})


def assemble(base: Path, trained: Path, out: Path) -> None:
    """A whole model folder: every part of the base in fp16, the tokenizer, the scheduler and the adapter."""
    sources = {"vae": AutoencoderKL, "image_encoder": Dinov2Model, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    with atomic_folder(out) as folder:
        for name, kind in sources.items():
            source = trained / name if (trained / name).exists() else base / name
            kind.from_pretrained(source).half().save_pretrained(folder / name)
        PreTrainedTokenizerFast.from_pretrained(base / "tokenizer").save_pretrained(folder / "tokenizer")
        new_scheduler().save_pretrained(folder / "scheduler")
        make_portable(folder)
        copy_adapter(trained / "adapter.safetensors", folder / "adapter.safetensors")


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
    camera_steps: int,
    steps: int,
    whole_steps: int,
    further_steps: int,
    guess_steps: int,
    processes: int,
) -> None:
    """All steps, one after the other.

    Raises:
        LivePhotoError: too few clips, no photo package, or what lies in `out` is another model's.
    """
    if clips < HELD_OUT + STILLS_AT_ONCE:
        raise LivePhotoError(f"--clips is {clips}: use {HELD_OUT + STILLS_AT_ONCE} or more, thousands for a model that moves")
    base = out / "base"
    base.mkdir(parents=True, exist_ok=True)
    make_vae(base, vae_steps)
    make_patch_encoder(base, patch_steps, processes)
    make_cache(base, base / "cache", clips, processes)
    make_base(base, still_steps)
    whole = replace(
        APART,
        name="whole",
        steps=whole_steps,
        batch=4,
        frames_per_clip=0,
        learning_rate=6e-4,
        decay_from=0.3,
        motion_weight=0.8,
        first_frame_weight=6.0,
        word_penalty=0.002,
        repeats=EARLY,
    )
    further = replace(
        whole,
        name="further",
        steps=further_steps,
        learning_rate=5e-4,
        decay_from=0.1,
        word_penalty=0.0,
        pure_noise=0.15,
    )
    guesses = replace(
        further,
        name="guesses",
        steps=guess_steps,
        learning_rate=4e-4,
        first_frame_weight=14.0,
        own_guesses=0.5,
        unguessed=UNTOLD,
        fine_levels=True,
        repeats={**LATE, **dict.fromkeys(LIGHT, 4), **dict.fromkeys(FALLING, 3)},
    )
    phases = (
        replace(APART, name="camera", steps=camera_steps, decay_from=1.0, timestep_shift=3.0, word_penalty=0.0, words=CAMERA_WORDS),
        replace(APART, steps=steps, repeats=EARLY),
        whole,
        further,
        guesses,
    )
    cache, start, adapter = base / "cache", base, None
    texts = list(dict.fromkeys([*CachedClips(cache).captions, *corpus()]))
    for phase in phases:
        train_phase(start, out / phase.name, cache, phase, adapter, processes)
        start = out / ("demo" if phase is phases[-1] else f"after-{phase.name}")
        assemble(base, out / phase.name, start)
        shut_padding(start, texts)
        adapter = start / "adapter.safetensors"
    make_preview(start / "vae")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m livephoto_core.demo.build", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for everything that is made; the model itself is OUT/demo")
    parser.add_argument("--vae-steps", type=int, default=1800)
    parser.add_argument("--patch-steps", type=int, default=patches.STEPS)
    parser.add_argument("--clips", type=int, default=6016)
    parser.add_argument("--still-steps", type=int, default=120)
    parser.add_argument("--steps", type=int, default=APART.steps)
    parser.add_argument("--camera-steps", type=int, default=700)
    parser.add_argument("--whole-steps", type=int, default=2000)
    parser.add_argument("--further-steps", type=int, default=2500)
    parser.add_argument("--guess-steps", type=int, default=7000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    try:
        build(
            options.out,
            options.vae_steps,
            options.patch_steps,
            options.clips,
            options.still_steps,
            options.camera_steps,
            options.steps,
            options.whole_steps,
            options.further_steps,
            options.guess_steps,
            options.processes,
        )
    except LivePhotoError as error:
        raise SystemExit(f"build: {error}") from error


if __name__ == "__main__":
    main()
