"""One clip out of each of ComfyUI's samplers and of LivePhoto Sampler."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import comfy.model_patcher
import comfy.ops
import comfy.samplers
import torch
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras import nodes_model_advanced
from kit import FRAMES, LEVEL, apply, case, demo, node, part, prompts, recorded, recording, reference, refused, text

import nodes

SEED, STEPS, CFG, SAMPLER, SCHEDULER = 3, 4, 2.0, "dpmpp_2m", "sgm_uniform"


@functools.cache
def photo() -> Any:
    """The reference with its inverted latent."""
    return node("LivePhotoPriorInversion", model=demo().model, empty_text=text(""), reference=reference(), steps=4)[0]


@contextmanager
def demo_saying(**values: Any) -> Iterator[Any]:
    """The demo's checkpoint with another config."""
    adapter = demo().livephoto.adapter
    own = adapter.config
    adapter.config = replace(own, **values)
    try:
        yield demo().livephoto
    finally:
        adapter.config = own


def empty() -> dict[str, torch.Tensor]:
    return {"samples": torch.zeros(FRAMES, *photo().latent.shape[1:])}


def ksampler(model: Any, sampler: str = SAMPLER) -> torch.Tensor:
    return nodes.KSampler().sample(model, SEED, STEPS, CFG, sampler, SCHEDULER, *prompts(), empty())[0]["samples"]


def livephoto_sampler(start: float, end: float) -> torch.Tensor:
    positive, negative = prompts()
    settings = {"frames": FRAMES, "seed": SEED, "steps": STEPS, "cfg": CFG, "sampler_name": SAMPLER, "scheduler": SCHEDULER}
    wired = {"model": apply(), "positive": positive, "negative": negative, "reference": photo()}
    return node("LivePhotoSampler", **wired, **settings, prior_start=start, prior_end=end)[0]["samples"]


def advanced(noise: Any) -> torch.Tensor:
    """SamplerCustomAdvanced."""
    model = apply()
    guider = custom.CFGGuider().get_guider(model, *prompts(), CFG)[0]
    sampler = comfy.samplers.sampler_object(SAMPLER)
    sigmas = custom.BasicScheduler().get_sigmas(model, SCHEDULER, STEPS, 1.0)[0]
    return custom.SamplerCustomAdvanced().sample(noise, guider, sampler, sigmas, empty())[0]["samples"]


@case
def ksampler_recorded() -> dict[str, Any]:
    clone, calls = recorded(apply())
    return {"latents": ksampler(clone), **recording(calls, reference())}


@case
def few_steps() -> dict[str, Any]:
    """As with an LCM-LoRA: ModelSamplingDiscrete before Apply LivePhoto, the sampler lcm."""
    distilled = nodes_model_advanced.ModelSamplingDiscrete().patch(demo().model, "lcm", False)[0]
    # LCMs predict eps
    with demo_saying(prediction_type="epsilon"):
        model, calls = recorded(apply(distilled))
        sampling, own = model.get_model_object("model_sampling"), demo().model.get_model_object("model_sampling")
        latents = nodes.KSampler().sample(model, SEED, STEPS, 1.0, "lcm", "sgm_uniform", *prompts(), empty())[0]["samples"]
    found = {"kinds": [kind.__name__ for kind in type(sampling).__mro__], "levels": len(sampling.sigmas)}
    return {**found, "most": sampling.sigmas[-1], "own most": own.sigmas[-1], "latents": latents, **recording(calls, reference())}


@case
def inversion_by_lcm() -> dict[str, Any]:
    """By steps: at which timesteps a MODEL behind ModelSamplingDiscrete set to lcm is asked."""
    distilled, calls = recorded(nodes_model_advanced.ModelSamplingDiscrete().patch(demo().model, "lcm", False)[0])
    found = {}
    for steps in (2, 20, 100):
        calls.clear()
        node("LivePhotoPriorInversion", model=distilled, empty_text=text(""), reference=reference(), steps=steps)
        found[str(steps)] = [float(call["t"][0]) for call in calls]
    return found


@case
def schedule_set_behind() -> dict[str, Any]:
    """A checkpoint on linear betas; ModelSamplingDiscrete behind Apply LivePhoto sets SD1.5's, before it does not."""
    node = nodes_model_advanced.ModelSamplingDiscrete()
    with demo_saying(schedule=replace(demo().livephoto.config.schedule, kind="linear")):
        before = apply(node.patch(demo().model, "v_prediction", False)[0])
        latents = ksampler(before)
        behind = refused(lambda: ksampler(node.patch(apply(), "v_prediction", False)[0]))
    return {**behind, "latents": latents}


@case
def sampling_of_another_kind() -> dict[str, Any]:
    edm = nodes_model_advanced.ModelSamplingContinuousEDM().patch(demo().model, "v_prediction", 120.0, 0.002)[0]
    return refused(lambda: ksampler(apply(edm)))


@case
def zero_terminal_snr() -> dict[str, Any]:
    """ModelSamplingDiscrete's zsnr before Apply LivePhoto and behind it."""
    node = nodes_model_advanced.ModelSamplingDiscrete()
    before, behind = apply(node.patch(demo().model, "v_prediction", True)[0]), node.patch(apply(), "v_prediction", True)[0]
    sigmas = [model.get_model_object("model_sampling").sigmas for model in (before, behind, apply())]
    found = {"latents before": ksampler(before), "latents behind": ksampler(behind)}
    return {**found, "before": sigmas[0], "behind": sigmas[1], "without": sigmas[2]}


@case
def random_noise() -> dict[str, Any]:
    return {"latents": advanced(custom.RandomNoise().get_noise(SEED)[0])}


@case
def prior_noise() -> dict[str, Any]:
    noise = node("LivePhotoPriorNoise", reference=photo(), noise_seed=SEED, prior_start=0.033, prior_end=0.016)[0]
    plain = torch.randn(empty()["samples"].shape, generator=torch.manual_seed(SEED))
    found = {"noise": noise.generate_noise(empty()), "plain": plain, "inverted": photo().inverted}
    return {**found, "latents": advanced(noise)}


@case
def livephoto_sampler_without_prior() -> dict[str, Any]:
    return {"latents": livephoto_sampler(0.0, 0.0)}


@case
def livephoto_sampler_with_prior() -> dict[str, Any]:
    return {"latents": livephoto_sampler(0.033, 0.016)}


@case
def halves() -> dict[str, Any]:
    """KSamplerAdvanced twice, and KSampler, with a sampler that remembers nothing from one step to the next."""
    half, common, model = STEPS // 2, (STEPS, CFG, "euler", SCHEDULER, *prompts()), apply()
    first = nodes.KSamplerAdvanced().sample(model, "enable", SEED, *common, empty(), 0, half, "enable")[0]
    second = nodes.KSamplerAdvanced().sample(model, "disable", SEED, *common, first, half, 10000, "disable")[0]
    return {"first": first["samples"], "latents": second["samples"], "whole": ksampler(model, "euler")}


@case
def no_inverted_latent() -> dict[str, Any]:
    bare = part("nodes.sampling").PriorNoise(replace(photo(), inverted=None), SEED, 0.033, 0.016)
    return refused(lambda: bare.generate_noise(empty()))


def first_latents(share: float, clips: int = 1, still: float = 0.0, seeds: list[int] | None = None) -> torch.Tensor:
    """What the UNet is first given by KSampler, the checkpoint's frames sharing so much of their noise (at level 1 `still`).

    `seeds` are the latents' places in the noise of the seed, as LatentBatchSeedBehavior and LatentBatch set them.
    """
    livephoto = demo().livephoto
    own, livephoto.adapter.config = livephoto.config, replace(livephoto.config, shared_noise=share, shared_noise_still=still)
    try:
        model, calls = recorded(apply(count=clips))
        latent = {"samples": torch.zeros(clips * FRAMES, *photo().latent.shape[1:])}
        latent |= {} if seeds is None else {"batch_index": seeds}
        nodes.KSampler().sample(model, SEED, 1, 1.0, SAMPLER, SCHEDULER, *prompts(), latent)
    finally:
        livephoto.adapter.config = own
    return calls[0]["x"]


@case
def shared_noise() -> dict[str, Any]:
    names = {"one": 1, "two": 2}
    found = {f"{name}, {share}": first_latents(share, clips) for name, clips in names.items() for share in (0.0, 0.6)}
    return {**found, "by level": first_latents(0.5, still=0.95), "level": LEVEL}


@case
def repeated_noise() -> dict[str, Any]:
    """Frames that are given the first frame's noise: all of them, and one."""
    one = [0, 1, 0, 2]
    found = {"one": first_latents(0.6, seeds=one), "own": first_latents(0.0, seeds=one)}
    return {**found, "all": first_latents(0.6, seeds=[0] * FRAMES)}


@case
def another_reference() -> dict[str, Any]:
    """LivePhoto Sampler with two photos, and with another one, where Apply LivePhoto has one."""
    positive, negative = prompts()
    settings = {"frames": FRAMES, "seed": SEED, "steps": 1, "cfg": CFG, "sampler_name": SAMPLER, "scheduler": SCHEDULER}
    wired = {"model": apply(), "positive": positive, "negative": negative, "prior_start": 0.0, "prior_end": 0.0}
    other = replace(reference(), latent=reference(2).latent[1:])
    return {
        name: refused(lambda given=given: node("LivePhotoSampler", reference=given, **wired, **settings))
        for name, given in {"two": reference(2), "other": other}.items()
    }


@case
def other_predictions() -> dict[str, Any]:
    """The demo's MODEL set to eps before and behind Apply LivePhoto, to other kinds and to v; a checkpoint that does not say."""
    node = nodes_model_advanced.ModelSamplingDiscrete()
    found = {
        "eps before": refused(lambda: ksampler(apply(node.patch(demo().model, "eps", False)[0]))),
        "eps behind": refused(lambda: ksampler(node.patch(apply(), "eps", False)[0])),
        "lcm": refused(lambda: ksampler(apply(node.patch(demo().model, "lcm", False)[0]))),
        "x0": refused(lambda: ksampler(apply(node.patch(demo().model, "x0", False)[0]))),
        "v": refused(lambda: ksampler(apply(node.patch(demo().model, "v_prediction", False)[0]))),
    }
    with demo_saying(prediction_type=""):
        return {**found, "not told": refused(lambda: ksampler(apply(node.patch(demo().model, "eps", False)[0])))}


@case
def no_content_attention() -> dict[str, Any]:
    """A checkpoint trained without content attention, and a photo that another encoder looked at."""
    types, own, photo, cpu = part("nodes.types"), demo().livephoto, reference(), torch.device("cpu")
    config = replace(own.config, parts=replace(own.config.parts, content=False))
    adapter = part("livephoto_core.model.adapter").LivePhotoAdapter(config, comfy.ops.manual_cast)
    names = adapter.state_dict()
    adapter.load_state_dict({name: tensor for name, tensor in own.adapter.state_dict().items() if name in names})
    bare = types.LoadedModel(comfy.model_patcher.ModelPatcher(adapter.eval(), load_device=cpu, offload_device=cpu), "bare")

    def clip(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        seen = replace(photo, tokens=tokens, grid=grid)
        return ksampler(part("nodes.comfy_host").apply(demo().model, bare, seen, types.Motion(LEVEL), 1.0, 1.0))

    return {"own": clip(photo.tokens, photo.grid), "others": clip(torch.ones(1, 9, 20), (3, 3)), "whole": ksampler(apply())}


@case
def other_sizes_of_the_photo() -> dict[str, Any]:
    """A checkpoint whose DINOv2 was shown another size than ComfyUI shows it."""
    with demo_saying(content=replace(demo().livephoto.config.content, encoder="facebook/dinov2-large", image_size=224)):
        return refused(apply)
