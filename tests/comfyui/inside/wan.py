"""LivePhoto-Wan2.1 on ComfyUI's Wan2.1 model, with the weights and inputs of the official run (tests/wan_recipe.py)."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.ldm.wan.model
import comfy.model_management
import comfy.ops
import comfy.samplers
import comfy.sd
import folder_paths
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_apg, nodes_context_windows
from comfy_extras import nodes_custom_sampler as custom
from kit import case, demo, node, pack, part, refused
from safetensors.torch import load_file
from small_umt5 import small_clip

import nodes

BASE, LORA, DIT_LORA, OTHER_SPELLING = "base.safetensors", "lora.safetensors", "dit.safetensors", "kohya.safetensors"
STEPS, SHIFT, LEVEL, FRAMES = 12, 5.0, 5, 5
CLEAN_FIRST = (0.0, 1.0, 1.0, 1.0, 1.0)
MIXED = (146, 731, 999, 37, 511)


@functools.cache
def given() -> dict[str, torch.Tensor]:
    """The inputs of the official run."""
    return load_file(Path(folder_paths.get_input_directory()) / "golden.safetensors")


@functools.cache
def loaded(lora: str = "none", timesteps: str = "float32") -> tuple[Any, Any]:
    """MODEL and text module of Load LivePhoto-Wan2.1."""
    return node("LivePhotoWanLoader", model_name=BASE, lora_name=lora, lora_strength=1.2, timesteps=timesteps)


def conditioning(name: str = "input.context") -> list:
    return [[given()[name], {"pooled_output": None}]]


@functools.cache
def at_level(level: int, lora: str = "none", name: str = "input.context") -> torch.Tensor:
    """A text of the official run at a level."""
    return part("nodes.wan_inputs").at_level(loaded(lora)[1], conditioning(name), level, "positive")[0][0]


@functools.cache
def branches() -> tuple:
    """The three CONDITIONINGs of Motion Intensity (Wan)."""
    texts = {"positive": conditioning(), "negative": conditioning("input.context_negative")}
    return node("LivePhotoWanIntensity", wan_text=loaded()[1], level=LEVEL, **texts)


def recorded(model: Any) -> tuple[Any, list[dict]]:
    """A clone of a MODEL, and the list that will hold what ComfyUI's Wan model was given."""
    calls: list[dict] = []

    def wrapper(executor: Any, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, *more: Any, **named: Any):
        calls.append({"x": x.clone(), "t": timesteps.clone(), "context": context.clone()})
        return executor(x, timesteps, context, *more, **named)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "recorder", wrapper)
    return clone, calls


def velocity(model: Any, text: torch.Tensor, timestep: int, noisy: tuple | None, latents: str = "input.latents") -> torch.Tensor:
    """What the MODEL predicts, through the path of a sampling; `noisy` is each frame's share of the timestep."""
    comfy.model_management.load_models_gpu([model])
    # between two whole numbers, so that cutting gives this one whatever the last bit is
    sigma, x = torch.tensor([(timestep + 0.5) / 1000]), given()[latents]
    options = {"wrappers": model.wrappers, "cond_or_uncond": [0]}
    if noisy is not None:
        options[part("nodes.wan_host").KEY] = torch.tensor([noisy])
    denoised = model.model.apply_model(x, sigma, c_crossattn=text, transformer_options=options)
    return (x - denoised) / sigma


class Given:
    """A NOISE of given numbers."""

    seed = 0

    def __init__(self, noise: torch.Tensor):
        self.noise = noise

    def generate_noise(self, latent: dict) -> torch.Tensor:
        return self.noise


def latent_of(*photos: torch.Tensor) -> dict[str, torch.Tensor]:
    """The LATENT of clips of photos that are given in the model's scale."""
    scaled = loaded()[0].model.process_latent_out(torch.cat(photos))
    return part("nodes.wan_inputs").clip_latent(scaled, FRAMES)


def guider(model: Any, cfg: float) -> Any:
    positive, negative, empty = branches()
    return node("LivePhotoWanGuider", model=model, positive=positive, negative=negative, empty=empty, cfg=cfg)[0]


def sigmas(steps: int = STEPS) -> torch.Tensor:
    return node("LivePhotoWanSigmas", steps=steps, shift=SHIFT)[0]


def clip(model: Any, latent: dict, noise: torch.Tensor, cfg: float = 5.0, steps: int = 2) -> torch.Tensor:
    """Out of SamplerCustomAdvanced, in the model's scale."""
    sampler = comfy.samplers.sampler_object("euler")
    out = custom.SamplerCustomAdvanced().sample(Given(noise), guider(model, cfg), sampler, sigmas(steps), latent)[0]
    return model.model.process_latent_in(out["samples"]).clone()


@case
def layout() -> dict[str, Any]:
    """ComfyUI's own Wan2.1-T2V-1.3B without its gigabytes, against our list; and that the small one was filled whole."""
    files = part("livephoto_core.wan_files")
    network = comfy.ldm.wan.model.WanModel(
        dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, device="meta", operations=comfy.ops.disable_weight_init
    )
    released = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    stored = load_file(folder_paths.get_full_path_or_raise("diffusion_models", BASE))
    small = loaded()[0].model.diffusion_model.state_dict()
    return {
        "released": released == files.wan_shapes(files.WanSize()),
        "small": all(torch.equal(tensor, stored[name]) for name, tensor in small.items()) and len(small) + 28 == len(stored),
        "kind": type(loaded()[0].model).__name__,
        "dtype": str(loaded()[0].model_dtype()),
    }


@case
def forward() -> dict[str, torch.Tensor]:
    model = loaded()[0]
    found = {
        "forward.uniform": velocity(model, at_level(3), 731, None),
        "forward.clean_first": velocity(model, at_level(3), 731, CLEAN_FIRST),
        "forward.mixed": velocity(model, at_level(6), 999, tuple((t + 0.5) / 999.5 for t in MIXED)),
        "forward.nonsquare": velocity(model, at_level(3), 416, CLEAN_FIRST[:3], "input.latents_nonsquare"),
        "forward.clean_first_level0": velocity(model, at_level(0), 731, CLEAN_FIRST),
        "forward.clean_first_warmup_off": velocity(model, given()["input.context"], 731, CLEAN_FIRST),
    }
    negative = at_level(0, name="input.context_negative")
    return {**found, "forward.clean_first_negative_level0": velocity(model, negative, 731, CLEAN_FIRST)}


@case
def lora() -> dict[str, torch.Tensor]:
    return {
        "lora.clean_first": velocity(loaded(LORA)[0], at_level(3, LORA), 731, CLEAN_FIRST),
        "lora.clean_first_dit_only": velocity(loaded(DIT_LORA)[0], at_level(3), 731, CLEAN_FIRST),
        "other spelling": velocity(loaded(OTHER_SPELLING)[0], at_level(3, OTHER_SPELLING), 731, CLEAN_FIRST),
    }


@case
def levels() -> dict[str, torch.Tensor]:
    """The prediction at each level, none first, and the text of the null branch."""
    found = [velocity(loaded()[0], at_level(level), 731, CLEAN_FIRST) for level in range(7)]
    return {"velocities": torch.cat(found), "level 0": at_level(0), "empty": branches()[2][0][0]}


def end_to_end(cfg: float) -> dict[str, torch.Tensor]:
    model, states = loaded()[0], []
    clone, calls = recorded(model)
    latent = latent_of(given()["input.reference"])
    samples = guider(clone, cfg).sample(
        given()["input.noise"],
        latent["samples"],
        comfy.samplers.sampler_object("euler"),
        sigmas(),
        denoise_mask=latent["noise_mask"],
        callback=lambda step, denoised, x, total: states.append(x.clone()),
        disable_pbar=True,
    )
    return {
        "final": model.model.process_latent_in(samples),
        # the frame that is kept is put in at the end, not at every step
        "step1": states[1][:, :, 1:],
        "timesteps": torch.stack([call["t"][0] for call in calls]),
        "branches": [len(call["x"]) for call in calls],
        "rows": sorted({call["context"].shape[1] for call in calls}),
    }


@case
def cfg5() -> dict[str, Any]:
    return end_to_end(5.0)


@case
def cfg1() -> dict[str, Any]:
    return end_to_end(1.0)


@case
def stock_guider() -> dict[str, torch.Tensor]:
    """ComfyUI's DualCFGGuider says the same formula with two numbers."""
    latent, noise = latent_of(given()["input.reference"]), given()["input.noise"]
    positive, negative, empty = branches()
    dual = custom.DualCFGGuider().get_guider(loaded()[0], positive, empty, negative, 10.0, 5.0, "regular")[0]
    sampler = comfy.samplers.sampler_object("euler")
    out = custom.SamplerCustomAdvanced().sample(Given(noise), dual, sampler, sigmas(2), latent)[0]
    return {"stock": loaded()[0].model.process_latent_in(out["samples"]), "ours": clip(loaded()[0], latent, noise)}


def sampled(latent: dict, levels: torch.Tensor, noise: torch.Tensor | None, sampler: str = "euler") -> dict:
    """The LATENT out of SamplerCustomAdvanced; without noise as under DisableNoise."""
    source = custom.DisableNoise().get_noise()[0] if noise is None else Given(noise)
    chosen = comfy.samplers.sampler_object(sampler)
    return custom.SamplerCustomAdvanced().sample(source, guider(loaded()[0], 5.0), chosen, levels, latent)[0]


@case
def split_run() -> dict[str, torch.Tensor]:
    """All steps at once, and the same in two stages through SplitSigmas."""
    latent, noise = latent_of(given()["input.reference"]), given()["input.noise"]
    high, low = custom.SplitSigmas().get_sigmas(sigmas(6), 3)
    first = sampled(latent, high, noise)
    scaled = loaded()[0].model.process_latent_in
    return {
        "photo": latent["samples"][:, :, :1],
        "first stage": first["samples"][:, :, :1],
        "whole": scaled(sampled(latent, sigmas(6), noise)["samples"]),
        "split": scaled(sampled(first, low, None)["samples"]),
    }


@case
def other_samplers() -> dict[str, torch.Tensor]:
    """The frame that is kept, out of samplers that do not end at sigma 0."""
    latent, noise = latent_of(given()["input.reference"]), given()["input.noise"]
    kept = {name: sampled(latent, sigmas(4), noise, name)["samples"][:, :, :1] for name in ("uni_pc", "uni_pc_bh2", "dpm_fast")}
    return {"photo": latent["samples"][:, :, :1], **kept}


@case
def halved_mask() -> dict[str, torch.Tensor]:
    """A frame that the mask keeps by half, against what ComfyUI makes of it without our wrapper of the sampler."""
    latent, noise = latent_of(given()["input.reference"]), given()["input.noise"]
    latent["noise_mask"][:, :, 1] = 0.5
    latent["samples"][:, :, 1] = latent["samples"][:, :, 0]
    plain = loaded()[0].clone()
    key = part("nodes.wan_host").KEY
    remember = plain.wrappers[WrappersMP.SAMPLER_SAMPLE][key][0]

    def without(executor: Any, *given: Any) -> torch.Tensor:
        made = []

        def keep(*more: Any) -> torch.Tensor:
            made.append(executor(*more))
            return made[0]

        remember(keep, *given)
        return made[0]

    plain.wrappers[WrappersMP.SAMPLER_SAMPLE][key] = [without]
    return {"ours": clip(loaded()[0], latent, noise), "ComfyUI's": clip(plain, latent, noise)}


@case
def pre_cfg() -> dict[str, Any]:
    """A function before ComfyUI's formula that counts its calls and halves the guidance, against half of the strength."""
    latent, noise, seen = latent_of(given()["input.reference"]), given()["input.noise"], []
    clone = loaded()[0].clone()

    def halve(args: dict) -> list:
        seen.append({name: len(value) if name.startswith("conds") else value for name, value in args.items()})
        cond, uncond = args["conds_out"]
        return [uncond + (cond - uncond) / 2, uncond]

    clone.set_model_sampler_pre_cfg_function(halve)
    halved = clip(clone, latent, noise)
    return {
        "halved": halved,
        "half": clip(half_guidance(), latent, noise),
        "whole": clip(loaded()[0], latent, noise),
        "names": sorted(seen[0]),
        "calls": [[call["conds"], call["conds_out"], call["cond_scale"]] for call in seen],
        "APG": clip(nodes_apg.APG.execute(loaded()[0], 0.0, 5.0, 0.0).result[0], latent, noise),
    }


def half_guidance() -> Any:
    """A MODEL whose formula itself, in its place, takes half of the strength."""
    clone = loaded()[0].clone()
    clone.set_model_sampler_cfg_function(lambda args: args["uncond"] + (args["cond"] - args["uncond"]) * args["cond_scale"] / 2)
    return clone


@case
def reload() -> dict[str, Any]:
    """Wan2.1 loaded anew as newer versions of ComfyUI do, from what the MODEL says of itself."""
    loader, asked = comfy.sd.load_diffusion_model_state_dict, []

    def newer(state_dict: dict, disable_dynamic: bool = False) -> Any:
        asked.append(disable_dynamic)
        return loader(state_dict)

    # ComfyUI's clone takes the attribute along from the version on that has it
    factory, arguments = loaded(LORA)[0].parent.cached_patcher_init
    comfy.sd.load_diffusion_model_state_dict = newer
    try:
        again = [factory(*arguments), factory(*arguments, disable_dynamic=True)]
    finally:
        comfy.sd.load_diffusion_model_state_dict = loader
    # takes the LoRA off the weights
    comfy.model_management.unload_all_models()
    weights = loaded(LORA)[0].parent.model.state_dict()
    return {
        "asked": asked,
        "equal": [
            found.model.state_dict().keys() == weights.keys()
            and all(torch.equal(value, weights[name]) for name, value in found.model.state_dict().items())
            for found in again
        ],
        "another": all(found.model is not loaded(LORA)[0].model for found in again),
        "held": [len(found.patches) + len(found.object_patches) for found in again],
        "says": [found.cached_patcher_init == (factory, arguments) for found in again],
    }


@case
def bfloat16() -> dict[str, torch.Tensor]:
    """The timesteps that the model sees when they are rounded as in the official run."""
    clone, calls = recorded(loaded(timesteps="bfloat16")[0])
    clip(clone, latent_of(given()["input.reference"]), given()["input.noise"], 1.0, STEPS)
    return {"timesteps": torch.stack([call["t"][0] for call in calls])}


@case
def two_photos() -> dict[str, torch.Tensor]:
    """Two clips at once, and each alone."""
    photos = given()["input.reference"], given()["input.reference"].flip(-1)
    noise = given()["input.noise"], given()["input.noise"].flip(2)
    both = clip(loaded()[0], latent_of(*photos), torch.cat(noise))
    return {"both": both, "alone": torch.cat([clip(loaded()[0], latent_of(p), n) for p, n in zip(photos, noise, strict=True)])}


@case
def traces() -> dict[str, Any]:
    """A plain Wan2.1 MODEL before, and after samplings of its LivePhoto clone, one of them broken off."""
    pack()
    plain = comfy.sd.load_diffusion_model_state_dict(dict(loaded()[0].model.diffusion_model.state_dict()))
    weights = {name: value.clone() for name, value in plain.model.state_dict().items()}
    latent, noise = latent_of(given()["input.reference"]), given()["input.noise"]

    def stock() -> torch.Tensor:
        plain_guider = custom.CFGGuider().get_guider(plain, branches()[0], branches()[1], 5.0)[0]
        sampler = comfy.samplers.sampler_object("euler")
        return custom.SamplerCustomAdvanced().sample(Given(noise), plain_guider, sampler, sigmas(2), latent)[0]["samples"].clone()

    before = stock()
    patched = part("nodes.wan_host").apply(plain, torch.float32)
    first = clip(patched, latent, noise)

    def fail(*_: Any) -> None:
        raise RuntimeError("broken off")

    broken = refused(
        lambda: guider(patched, 5.0).sample(noise, latent["samples"], comfy.samplers.sampler_object("euler"), sigmas(2), None, fail)
    )
    after, again = stock(), clip(patched, latent, noise)
    comfy.model_management.unload_all_models()
    return {
        "before": before,
        "after": after,
        "first": first,
        "again": again,
        "broken": broken["message"],
        "same weights": all(torch.equal(value, weights[name]) for name, value in plain.model.state_dict().items()),
        "own method": "scale_latent_inpaint" not in vars(plain.model),
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in plain.model.modules()),
        "held": [len(held) for held in (plain.wrappers, plain.object_patches, plain.patches, plain.callbacks, plain.injections)],
        "options": plain.model_options["transformer_options"],
    }


@case
def without_a_photo() -> dict[str, Any]:
    """A LATENT without a noise mask: text to video, one timestep for all frames."""
    clone, calls = recorded(loaded()[0])
    clip(clone, {"samples": torch.zeros_like(given()["input.noise"])}, given()["input.noise"], 1.0)
    return {"timesteps": torch.stack([call["t"] for call in calls])}


@case
def trimmed_text() -> dict[str, torch.Tensor]:
    """A text without the rows behind the prompt, as some packs give it, and another pack's key in its options."""
    short = [[given()["input.context"][:, :37], {"other": "kept"}]]
    found = part("nodes.wan_inputs").at_level(loaded()[1], short, 3, "positive")
    return {"short": found[0][0], "whole": at_level(3), "options": found[0][1]}


@case
def reference() -> dict[str, Any]:
    """Two photos of another shape through Wan2.1's VAE."""
    vae = nodes.VAELoader().load_vae("wan_2.1_vae.safetensors")[0]
    photos = torch.rand(2, 40, 64, 3, generator=torch.Generator().manual_seed(1))
    settings = {"image": photos, "vae": vae, "width": 48, "height": 32, "length": 9, "fit": "crop"}
    latent, image = node("LivePhotoWanReference", **settings)
    alone = torch.cat([vae.encode(photo[None]) for photo in image])
    return {**latent, "image": image, "alone": alone}


def report(name: str) -> str:
    """What Load LivePhoto-Wan2.1 shows."""
    pack()
    run = nodes.NODE_CLASS_MAPPINGS["LivePhotoWanLoader"].execute
    return run(model_name=name, lora_name="none", lora_strength=1.2, timesteps="bfloat16").ui.as_dict()["text"][0]


@case
def reports() -> dict[str, str]:
    return {"open": report(BASE), "shut": report("shut.safetensors")}


def piece_of(tokens: list) -> list:
    """Numbers and weights without padding."""
    return [[int(token), round(weight, 4)] for token, weight in tokens if token != 0]


@case
def brackets() -> dict[str, Any]:
    """What brackets in a prompt do to the tokens, and to the text at a level."""
    prompts = {
        "escaped": r"a cat \(small\) runs",
        "plain": "a cat (small) runs",
        "weighted": "a cat (small:1.5) runs",
        "bare": "a cat small runs",
    }
    tokenizer = small_clip().tokenizer.clip_umt5xxl.tokenizer.tokenizer
    found: dict[str, Any] = {"verbatim": tokenizer.encode("a cat (small) runs")}
    for name, prompt in prompts.items():
        text = nodes.CLIPTextEncode().encode(small_clip(), prompt)[0]
        found |= {f"{name} tokens": piece_of(small_clip().tokenize(prompt)["umt5xxl"][0]), f"{name} text": text[0][0]}
    for name in ("plain", "weighted"):
        text = [[found[f"{name} text"], {}]]
        found[f"{name} at level"] = part("nodes.wan_inputs").at_level(loaded()[1], text, 3, "positive")[0][0]
    return found


def load_error(name: str, lora: str = "none", timesteps: str = "float32", strength: float = 1.2) -> dict[str, Any]:
    settings = {"model_name": name, "lora_name": lora, "lora_strength": strength, "timesteps": timesteps}
    found = refused(lambda: node("LivePhotoWanLoader", **settings))
    # the folder is another one in every run
    return {**found, "message": re.sub(r"/\S*/", "", found["message"])}


@case
def bad_files() -> dict[str, Any]:
    return {
        "plain Wan": load_error("wan2.1_t2v_1.3B.safetensors"),
        "missing": load_error("missing.safetensors"),
        "none": load_error("none.safetensors"),
        "no such LoRA": load_error(BASE, "none.safetensors"),
        "other LoRA": load_error(BASE, "sd15.safetensors"),
        "cut LoRA": load_error(BASE, "cut.safetensors"),
        "rounding": load_error(BASE, timesteps="int8"),
        "strength": load_error(BASE, strength=float("nan")),
    }


@case
def bad_inputs() -> dict[str, Any]:
    text = loaded()[1]
    positive, negative, empty = branches()
    settings = {"image": torch.rand(1, 32, 32, 3), "vae": None, "width": 64, "height": 64, "length": 9, "fit": "crop"}

    def intensity(rows: torch.Tensor, level: int = 3) -> dict[str, Any]:
        texts = {"positive": [[rows, {}]], "negative": conditioning()}
        return refused(lambda: node("LivePhotoWanIntensity", wan_text=text, level=level, **texts))

    def photo(**changed: Any) -> dict[str, Any]:
        return refused(lambda: node("LivePhotoWanReference", **{**settings, **changed}))

    def guiding(**changed: Any) -> dict[str, Any]:
        wired = {"model": loaded()[0], "positive": positive, "negative": negative, "empty": empty, "cfg": 5.0}
        return refused(lambda: node("LivePhotoWanGuider", **{**wired, **changed}))

    plain = comfy.sd.load_diffusion_model_state_dict(dict(loaded()[0].model.diffusion_model.state_dict()))
    windows = nodes_context_windows.WanContextWindowsManualNode.execute(
        loaded()[0], 9, 1, "standard_static", 1, False, "pyramid"
    ).result[0]
    latent = latent_of(given()["input.reference"])
    return {
        "level": intensity(given()["input.context"], 7),
        "another encoder": intensity(torch.zeros(1, 77, 768)),
        "long text": intensity(torch.zeros(1, 600, 4096)),
        "twice": refused(lambda: part("nodes.wan_inputs").at_level(text, positive, 3, "positive")),
        "width": photo(width=850),
        "height": photo(height=100),
        "length": photo(length=80),
        "fit": photo(fit="squeeze"),
        "image VAE": photo(vae=demo().vae),
        "no level": guiding(positive=conditioning()),
        "swapped": guiding(negative=empty, empty=negative),
        "plain model": guiding(model=plain),
        "cfg": guiding(cfg=float("nan")),
        "shift": refused(lambda: node("LivePhotoWanSigmas", steps=2, shift=float("nan"))),
        "windows": refused(lambda: clip(windows, latent, given()["input.noise"])),
    }


@case
def replaced_files() -> dict[str, Any]:
    """What tells ComfyUI that the released files, or the demo's, were replaced."""
    pack()
    wan, demo_loader = (nodes.NODE_CLASS_MAPPINGS[name] for name in ("LivePhotoWanLoader", "LivePhotoDemoLoader"))
    file = Path(folder_paths.get_full_path_or_raise("diffusion_models", BASE))

    def states(told: Callable[[], str], file: Path) -> list[str]:
        """What is told of a file twice, and then when it is newer."""
        found, state = [told(), told()], file.stat()
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000))
        return [*found, told()]

    def wan_told() -> str:
        return wan.fingerprint_inputs(model_name=BASE, lora_name=LORA, lora_strength=1.0, timesteps="bfloat16")

    lora = Path(folder_paths.get_full_path_or_raise("loras", LORA))
    found = {"base": states(wan_told, file), "lora": states(wan_told, lora)}
    found["by a wire"] = wan.fingerprint_inputs(model_name=None, lora_name=None)
    module = part("nodes.demo_model")
    # the demo's weights lie in folders of their own
    own, module.FOLDER = module.FOLDER, file.parent.parent
    try:
        return {**found, "demo": states(demo_loader.fingerprint_inputs, file)}
    finally:
        module.FOLDER = own
