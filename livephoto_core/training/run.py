"""A training run from its config file: load the base, cache the clips, train, export."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..animatediff import load_motion, motion_shape_of
from ..base import Base, load_base
from ..checkpoint import load_adapter, read_config
from ..config import AdapterConfig, MotionShape, check_prediction
from ..diffusers_host import base_shape, check_fit
from ..encoding import text_length
from ..errors import LivePhotoError
from ..intensity import calibrate, fractional_level, level
from ..model.adapter import LivePhotoAdapter
from .batches import Batches
from .cache import CachedClips, check_made_from, made_from_of
from .caching import check_cache, encoding_of, fill_cache
from .config import AS_THE_ADAPTER_SAYS, NOISE_SHARES, DataConfig, RunConfig, check_frames, check_measure, load_run
from .model import LossWeights, TrainingModel
from .remeasure import remeasure
from .samples import Sampler
from .texts import CachedTexts, Texts, fill_texts, texts_folder
from .trainer import STATE, fit

# a process that hangs must not keep the others for good; the first one's sheets and exports take minutes
_PATIENCE = timedelta(hours=1)
# but encoding clips takes it days
_CACHING = timedelta(days=30)


def check_levels(run: RunConfig, config: AdapterConfig, measured_on: str) -> None:
    """Refuse clips measured on something else than the levels that a run starts with, a checkpoint's or the config's.

    Raises:
        LivePhotoError: names both and the setting.
    """
    if config.ssim_thresholds and config.intensity_from != measured_on:
        fix = f"set data.intensity_from to {config.intensity_from!r}" + ", and cache them again" * (run.data.kind == "cache")
        own = f"; or, if those were calibrated on {measured_on!r}, set adapter.intensity_from to that"
        raise LivePhotoError(
            f"the clips' motion is measured on {measured_on!r}, the levels of {run.start_adapter or 'adapter.ssim_thresholds'} are "
            f"of {config.intensity_from!r}: {fix}{'' if run.start_adapter else own}"
        )


def adapter_config_of(run: RunConfig) -> AdapterConfig:
    """The config of the adapter that a run trains, without its weights.

    Raises:
        LivePhotoError: a checkpoint or a motion module that cannot be read, or a schedule, a number of frames or a measure that do
            not fit.
    """
    config = read_config(run.start_adapter) if run.start_adapter else run.adapter
    if run.motion_modules:
        if config.schedule.kind != "linear":
            raise LivePhotoError(
                f"AnimateDiff's motion modules were trained on linear betas, adapter.schedule.kind is {config.schedule.kind!r}: "
                "set it to 'linear', or leave motion_modules out"
            )
        if config.motion == MotionShape():
            config = replace(config, motion=motion_shape_of(run.motion_modules))
    check_frames(run.frames_per_clip, config.frames)
    check_measure(run.data, config)
    return _with_shares(config, run)


def _with_shares(config: AdapterConfig, run: RunConfig) -> AdapterConfig:
    given = {name: getattr(run, name) for name in NOISE_SHARES if getattr(run, name) != AS_THE_ADAPTER_SAYS}
    # one share alone is for all levels, whatever the adapter says of some
    if set(given) == {"shared_noise"}:
        given["shared_noise_still"] = 0.0
    return replace(config, **given)


def build_adapter(run: RunConfig, config: AdapterConfig) -> LivePhotoAdapter:
    """A new adapter, or the one the run starts from; motion modules from an AnimateDiff file where one is named."""
    torch.manual_seed(run.seed)
    adapter = load_adapter(run.start_adapter) if run.start_adapter else LivePhotoAdapter(config)
    if run.motion_modules:
        print(load_motion(run.motion_modules, adapter).summary())
    return adapter


def load_run_base(run: RunConfig) -> Base:
    """The base that a run names, on the CPU.

    Raises:
        LivePhotoError: it cannot be read, or lacks a part that the run needs.
    """
    if os.path.isfile(run.base) and not run.tokenizer:
        raise LivePhotoError(
            f"{run.base} is a single file and holds no tokenizer: set tokenizer to a folder with CLIP's vocab.json and merges.txt"
        )
    base = load_base(run.base, run.image_encoder or None, run.tokenizer or None)
    if base.image_encoder is None and run.data.kind != "cache":
        raise LivePhotoError(f"{run.base} has no image encoder: set image_encoder to the folder of a DINOv2")
    return base


def token_ids_of(tokenizer: Any, texts: list[str], length: int) -> torch.Tensor:
    """Token ids [N, length], cut and padded as the text encoder wants them."""
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def encoded_texts(base: Base, ids: torch.Tensor, cache: Path) -> CachedTexts:
    """What a base's frozen text encoder makes of token ids [N, L], read from the cache's folder, or computed first.

    Raises:
        LivePhotoError: the folder cannot be written, or holds damaged texts.
    """
    texts = Texts(ids)
    folder = texts_folder(cache, texts, base.text_encoder)
    in_first_process(lambda device: fill_texts(folder, texts, base.text_encoder, device))
    return CachedTexts(folder, texts)


def is_wanted(clips: CachedClips, index: int, thresholds: tuple[float, ...], data: DataConfig) -> bool:
    """Whether a clip is of the part of the clips that a run learns from."""
    words = words_of(clips.captions[index])
    return level(float(clips.ssims[index]), thresholds) >= data.least_level and (not data.words or not words.isdisjoint(data.words))


def words_of(caption: str) -> set[str]:
    """A caption's words, in lower case."""
    return set(caption.lower().split())


def tell_unknown_words(name: str, words: Iterable[str], captions: Iterable[str]) -> None:
    """Tell of words in a setting of that name that no caption has."""
    if unknown := sorted(set(words).difference(*map(words_of, captions))):
        print(f"{name}: no caption has {', '.join(map(repr, unknown))} (words are in lower case)")


def as_often_as_met(indices: list[int], captions: list[str], repeats: dict[str, float]) -> list[int]:
    """Clips, by their places in `captions`, each as many times as an epoch is to meet it."""
    words = {index: words_of(captions[index]) for index in indices}
    return [index for index in indices for _ in range(int(max((repeats[w] for w in words[index] & repeats.keys()), default=1)))]


def process_state() -> Any:
    """accelerate's PartialState: which process of how many this is, and its device.

    Raises:
        LivePhotoError: started as one of several processes that accelerate does not bring together.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # accelerate brings processes on CPUs together only if told so; the Accelerator takes the state as it finds it
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu, timeout=_PATIENCE)
    started = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    if started > state.num_processes:
        raise LivePhotoError(
            f"{started} processes were started, and each would train alone on {state.device}: start one, or set "
            "ACCELERATE_USE_CPU=true to train on the CPU in all of them"
        )
    return state


def in_first_process(make: Callable[[torch.device], None]) -> None:
    """Let the first of several processes make something, on its device, while the others wait for as long as it takes."""
    state = process_state()
    # a group of its own, for its patience; gloo, which does not keep a GPU busy with waiting
    waiting = dist.new_group(backend="gloo", timeout=_CACHING) if state.num_processes > 1 else None
    if state.is_main_process:
        make(state.device)
    if waiting is not None:
        dist.barrier(waiting)
        dist.destroy_process_group(waiting)


def prepare(run: RunConfig) -> tuple[TrainingModel, Batches, list[int], Sampler]:
    """The model, the batches, the held-out clips and the sheet drawer of a run.

    What costs little is checked before clips are cached. The first of several processes fills the cache, the others wait.
    """
    config = adapter_config_of(run)
    base = load_run_base(run)
    for name in ("pure_noise", "own_guesses"):
        if getattr(run, name) and base.prediction_type != "v_prediction":
            raise LivePhotoError(
                f"{name} is {getattr(run, name):g}, but {run.base} predicts {base.prediction_type}, "
                "which pure noise gives away: set it to 0"
            )
    check_fit(config, base_shape(base.unet))
    without = "leave start_adapter out" if run.start_adapter else f"set adapter.prediction_type to {base.prediction_type!r}"
    check_prediction(config, base.prediction_type, f"take the base that it was trained on, or {without}")
    adapter = build_adapter(run, config)
    folder = own = Path(run.data.cache or Path(run.out) / "cache")
    if run.data.kind != "cache":
        check_levels(run, config, run.data.intensity_from)
    if run.sample_every and run.data.held_out and base.image_encoder is None and config.parts.content:
        raise LivePhotoError(
            f"{run.base} has no image encoder, which sample sheets need: set image_encoder to the folder of "
            f"{config.content.encoder}, or sample_every to 0"
        )
    if run.data.kind == "cache":
        given = Path(run.data.path)
        fix = "cache the clips anew for this base and adapter, or name those that it was made for"
        check_made_from(given, made_from_of(given), encoding_of(base, config), fix)
        if made_from_of(given)["data.intensity_measure"] == config.intensity_measure:
            folder = given
        else:
            in_first_process(lambda device: remeasure(given, folder, base, config.intensity_measure, device))
    else:
        in_first_process(lambda device: fill_cache(run, base, config, folder, device))
    clips = CachedClips(folder)
    check_cache(clips, folder, config)
    measured_on = made_from_of(folder).get("data.intensity_from", run.data.intensity_from)
    shares = {name: getattr(config, name) for name in NOISE_SHARES}
    adapter.config = replace(adapter.config, intensity_from=measured_on, prediction_type=base.prediction_type, **shares)
    held_out = min(run.data.held_out, len(clips) // 10)
    if held_out < (unseen := made_from_of(folder).get("data.held_out", 0)):
        raise LivePhotoError(
            f"the first {unseen} clips of {folder} were drawn to be held out, data.held_out is {run.data.held_out}: "
            f"set it to {unseen}"
        )
    check_levels(run, config, measured_on)
    thresholds = config.ssim_thresholds or calibrate(clips.ssims[held_out:].tolist())
    train = [i for i in range(held_out, len(clips)) if is_wanted(clips, i, thresholds, run.data)]
    if not train:
        raise LivePhotoError(
            f"none of {len(clips)} clips has level {run.data.least_level} or more and one of data.words: ask for less"
        )
    stress = LossWeights(run.motion_weight, run.first_frame_weight, run.padding_penalty, run.word_penalty)
    ids, empty = (token_ids_of(base.tokenizer, texts, text_length(base)) for texts in (clips.captions, [""]))
    texts = encoded_texts(base, torch.cat([ids, empty]), own) if run.freeze_base else None
    text_encoder = base.text_encoder if texts is None else None
    for name in ("repeats", "unguessed"):
        tell_unknown_words(f"data.{name}", getattr(run.data, name), (clips.captions[i] for i in train))
    unguessed = frozenset(i for i in train if not words_of(clips.captions[i]).isdisjoint(run.data.unguessed))
    model = TrainingModel(base.unet, adapter, text_encoder, config.schedule, base.prediction_type, run.freeze_base, stress)
    batches = Batches(
        clips,
        as_often_as_met(train, clips.captions, run.data.repeats),
        ids,
        empty[0],
        thresholds,
        run.batch,
        run.seed,
        run.text_drop,
        run.frames_per_clip,
        config.schedule.timesteps,
        run.timestep_shift,
        config.shared_noise,
        run.pure_noise,
        run.own_guesses,
        unguessed,
        texts,
        fractional_level if run.data.fine_levels else level,
    )
    sampler = Sampler(base, batches, list(range(held_out)), run.sample_texts, Path(run.out) / "samples", run.sample_cfg)
    return model, batches, list(range(held_out)), sampler


def check_ready(run: RunConfig, resume: bool) -> None:
    """The checks that need neither base nor clips.

    Raises:
        LivePhotoError: a missing package, a folder that cannot be written, a run that is there or is not, a batch that cannot
            be shared.
    """
    missing = [name for name in ("accelerate", "tensorboard") if find_spec(name) is None]
    if missing:
        raise LivePhotoError(f"training needs {' and '.join(missing)}: pip install 'comfyui-livephoto[train]'")
    out = Path(run.out)
    for name, folder in {"out": out, "data.cache": Path(run.data.cache or out)}.items():
        _check_writable(name, folder)
    state = out / STATE
    if resume and not state.is_file():
        raise LivePhotoError(f"there is nothing to resume: {state} does not exist; start without --resume")
    if not resume and state.exists():
        raise LivePhotoError(f"{out} holds a run: add --resume to go on with it, or choose another out")
    if not (run.freeze_base or resume):
        _check_base_stays(run)
    processes = process_state().num_processes
    if run.batch % (run.accumulate * processes):
        raise LivePhotoError(
            f"batch {run.batch} cannot be shared by {processes} processes and {run.accumulate} accumulated parts: use a multiple "
            f"of {run.accumulate * processes}"
        )


def _check_base_stays(run: RunConfig) -> None:
    # a base that trains is written into out, in place of the parts of that name
    out = Path(run.out).resolve()
    parts = {"image_encoder": run.image_encoder, "tokenizer": run.tokenizer}
    if out == Path(run.base).resolve() or any(path and Path(path).resolve() == out / name for name, path in parts.items()):
        raise LivePhotoError(
            f"the base trains, and would be written over the one in {out}: set out to another folder, or freeze_base to true"
        )


def _check_writable(name: str, folder: Path) -> None:
    # os.path: Path.exists raises for a name that is too long
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.exists(place))
    if not there.is_dir():
        raise LivePhotoError(f"{name} is {folder}, but {there} is a file: name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise LivePhotoError(f"{name} is {folder}, but {there} cannot be written: choose a folder you can write to")


def train(config: str | Path, resume: bool = False) -> None:
    """Run the training that a config file describes.

    Raises:
        LivePhotoError: the config, the base or the data cannot be used; nothing to resume, or a run that is there already.
    """
    run = load_run(Path(config))
    check_ready(run, resume)
    model, batches, held_out, sampler = prepare(run)
    fit(model, sampler.base, batches, held_out, run, resume, sampler)
