"""LivePhoto and its peers on the same random weights: a denoising step, and a clip with encoding and decoding, of each.

The weights are SD1.5's UNet, and an adapter, whose motion modules the peers get. A peer is what diffusers' pipeline of the name
runs in a step: AnimateDiff's UNetMotionModel, the same with PIA's nine input channels, and the plain UNet on a batch of frames.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import nn

from livephoto_core.base import SD15_CONFIGS, Base, load_tokenizer
from livephoto_core.commands.model_files import DEMO_FOLDER
from livephoto_core.conditioning import ClipCondition, even_levels
from livephoto_core.config import AdapterConfig, BaseShape, NoiseSchedule
from livephoto_core.diffusers_host import DiffusersHost
from livephoto_core.encoding import decode_latents, encode_pictures
from livephoto_core.model.adapter import LivePhotoAdapter
from livephoto_core.model.reweight import apply_weights
from livephoto_core.pipeline import LivePhoto, Settings, make_sampler

SYSTEMS = ("plain", "animatediff", "pia", "livephoto")
NAMES = {
    "plain": "UNet alone, a batch of frames",
    "animatediff": "AnimateDiff (diffusers)",
    "pia": "PIA (diffusers)",
    "livephoto": "LivePhoto",
}
TEXT_TOKENS, TEXT_WIDTH = 77, 768
TEXT = "the camera pans left"
VOCABULARY = 1000


@dataclass(frozen=True)
class Case:
    """One measurement: pixels a side, frames, guidance, the UNet's widths, and where and how it runs."""

    size: int = 256
    frames: int = 16
    cfg: float = 1.0
    channels: tuple[int, ...] = BaseShape().block_channels
    device: str = "cpu"
    precision: str = "float32"

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.precision)

    @property
    def full(self) -> bool:
        """With SD1.5's own widths; the encoders are thinner where the UNet is."""
        return self.channels == BaseShape().block_channels

    @property
    def branches(self) -> int:
        """Conditions in a step: one, or two with guidance."""
        return 1 if self.cfg == 1 else 2


@torch.no_grad()
def fill(module: nn.Module) -> nn.Module:
    """Random weights of a useful size, drawn once and repeated, as a billion draws would take longer than a measurement."""
    draw = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
            for part in tensor.view(-1).split(len(draw)):
                torch.mul(draw[: len(part)].to(part.device), scale, out=part)
    return module.eval().requires_grad_(False)


def made(make: Callable[[], nn.Module], case: Case) -> nn.Module:
    """A module with random weights in the case's dtype, on its device."""
    with torch.device("meta"):
        module = make().to(case.dtype)
    return fill(module.to_empty(device=case.device))


def make_unet(case: Case, state: dict[str, torch.Tensor] | None = None) -> nn.Module:
    """SD1.5's UNet of the case's widths; on given weights it takes no memory of its own."""
    from diffusers import UNet2DConditionModel

    def make() -> nn.Module:
        return UNet2DConditionModel(cross_attention_dim=TEXT_WIDTH, block_out_channels=case.channels)

    return made(make, case) if state is None else _on(make, state)


def make_adapter(case: Case) -> LivePhotoAdapter:
    """An adapter for that UNet, DINOv2-large's 1369 tokens of width 1024 included."""
    config = AdapterConfig(base=BaseShape(block_channels=case.channels), frames=case.frames, size=case.size)
    return made(lambda: LivePhotoAdapter(config), case)


def make_motion_unet(case: Case, unet: dict[str, torch.Tensor], adapter: LivePhotoAdapter, in_channels: int = 4) -> nn.Module:
    """diffusers' UNetMotionModel on the UNet's weights and the adapter's motion modules."""
    from diffusers import UNetMotionModel
    from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers

    state = {**unet, **convert_animatediff_checkpoint_to_diffusers(dict(adapter.motion.state_dict()))}
    if in_channels != 4:
        first = state["conv_in.weight"]
        state["conv_in.weight"] = first.repeat(1, -(-in_channels // 4), 1, 1)[:, :in_channels].contiguous()

    def make() -> nn.Module:
        return UNetMotionModel(cross_attention_dim=TEXT_WIDTH, block_out_channels=case.channels, in_channels=in_channels)

    return _on(make, state)


def _on(make: Callable[[], nn.Module], state: dict[str, torch.Tensor]) -> nn.Module:
    with torch.device("meta"):
        module = make()
    module.load_state_dict(state, strict=False, assign=True)
    left = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    if left:
        raise RuntimeError(f"{len(left)} weights were not given, such as {left[0]}")
    like = next(iter(state.values()))
    for name, buffer in list(module.named_buffers()):
        # position tables are no weights; what stands in them costs the same
        if buffer.is_meta:
            owner, _, last = name.rpartition(".")
            module.get_submodule(owner)._buffers[last] = torch.zeros(buffer.shape, device=like.device, dtype=like.dtype)
    return module.eval().requires_grad_(False)


class Systems:
    """The systems of a case that are asked for, on shared weights. Each `step` gets latents [1, F, 4, h, w] and returns such."""

    def __init__(self, case: Case, names: tuple[str, ...] = SYSTEMS):
        self.case, self.names = case, names
        side, like = case.size // 8, {"device": case.device, "dtype": case.dtype}
        state = make_unet(case).state_dict()
        self.adapter = adapter = make_adapter(case) if set(names) != {"plain"} else None
        self.latents = torch.randn(1, case.frames, 4, side, side, **like)
        self.words = torch.randn(case.branches, TEXT_TOKENS, TEXT_WIDTH, **like)
        self.weights = torch.rand(case.branches, case.frames, TEXT_TOKENS, **like)
        self.text = apply_weights(self.words, self.weights)
        self.time = torch.tensor(500, device=case.device)
        self.photo = torch.rand(1, 3, case.size, case.size, **like)
        self.parts = {}
        if "plain" in names:
            self.parts["plain"] = make_unet(case, state)
        if "animatediff" in names:
            self.parts["animatediff"] = make_motion_unet(case, state, adapter)
        if "pia" in names:
            self.parts["pia"] = make_motion_unet(case, state, adapter, in_channels=9)
            self.masked = torch.randn(case.branches, 5, case.frames, side, side, **like)
        if "livephoto" in names:
            self.parts["livephoto"] = make_unet(case, state)
            self.host = DiffusersHost(self.parts["livephoto"], adapter)
            self.host.attach()
            rows = adapter.config.content.image_size // adapter.config.content.patch_size
            tokens = torch.randn(1, rows * rows, adapter.config.content.token_width, **like)
            levels = even_levels(5, 1, case.frames).to(case.device)
            self.condition = ClipCondition(self.latents[:, 0], tokens, (rows, rows), levels)
            with torch.no_grad():
                self.host.condition(self.condition.repeated(case.branches))
            self.text = self.host.weigh(self.words, self.weights)

    @torch.no_grad()
    def step(self, name: str, latents: torch.Tensor | None = None, text: torch.Tensor | None = None) -> torch.Tensor:
        """One call of the system's UNet, with guidance where the case has it, on a text a frame [(branches F), L, D]."""
        x, text = self.latents if latents is None else latents, self.text if text is None else text
        module, branches = self.parts[name], self.case.branches
        if name in ("plain", "livephoto"):
            flat = repeat(x, "b f c h w -> (t b f) c h w", t=branches)
            out = rearrange(module(flat, self.time, text).sample, "(t f) c h w -> t f c h w", t=branches)
        else:
            clip = repeat(x, "b f c h w -> (t b) c f h w", t=branches)
            if name == "pia":
                clip = torch.cat([clip, self.masked], 1)
            out = rearrange(module(clip, self.time, text).sample, "t c f h w -> t f c h w")
        return (out[:1] if branches == 1 else out[:1] + self.case.cfg * (out[1:] - out[:1])).to(x)

    def steps(self) -> dict[str, Callable[[], torch.Tensor]]:
        """Each system's step as a function without arguments."""
        return {name: (lambda name=name: self.step(name)) for name in self.names}

    @torch.no_grad()
    def clip(self, name: str, steps: int, encoders: Encoders) -> torch.Tensor:
        """A clip as a user gets it: text encoded, and the photo by those that take one, the steps, and the frames decoded.

        LivePhoto's is all of `LivePhoto.animate` with its usual settings, prior inversion included.
        """
        case = self.case
        if name == "livephoto":
            # `animate` attaches a host of its own
            self.host.detach()
            base = encoders.base(self.parts[name])
            settings = Settings(TEXT, frames=case.frames, size=case.size, steps=steps, cfg=case.cfg)
            frames = LivePhoto(base, self.adapter).animate(self.photo[0], settings)
            self.host.attach()
            self.text = self.host.weigh(self.words, self.weights)
            return frames
        text = repeat(encoders.texts(case.branches), "t l d -> (t f) l d", f=case.frames)
        if name == "pia":
            encode_pictures(encoders.vae, self.photo)
        solver = make_sampler("dpmpp_2m", AdapterConfig().schedule, "epsilon")
        solver.set_timesteps(steps)
        x = self.latents
        for time in solver.timesteps:
            x = solver.step(self.step(name, x, text), time, x).prev_sample
        return decode_latents(encoders.vae, x[0])


class Encoders:
    """SD1.5's VAE and text encoder, and DINOv2-large, with random weights."""

    def __init__(self, case: Case):
        from transformers import Dinov2Config, Dinov2Model

        large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518, "patch_size": 14}
        small = {**large, "num_hidden_layers": 1}
        self.vae, self.text_encoder = make_vae(case), make_text_encoder(case)
        self.image = made(lambda: Dinov2Model(Dinov2Config(**(large if case.full else small))), case)
        # padded to as many tokens as CLIP's own, the demo's costs the same
        self.tokenizer = load_tokenizer(DEMO_FOLDER / "tokenizer")

    def base(self, unet: nn.Module) -> Base:
        """A whole base model on a UNet."""
        return Base(self.vae, self.text_encoder, self.tokenizer, unet, NoiseSchedule(), "epsilon", self.image)

    def texts(self, count: int) -> torch.Tensor:
        """Embeddings [count, L, D] of a text."""
        ids = self.tokenizer([TEXT] * count, padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt").input_ids
        return self.text_encoder(ids.to(self.text_encoder.device)).last_hidden_state


def make_vae(case: Case) -> nn.Module:
    """SD1.5's VAE."""
    from diffusers import AutoencoderKL

    settings = json.loads((SD15_CONFIGS / "vae" / "config.json").read_text(encoding="utf-8"))
    if not case.full:
        settings["block_out_channels"] = [32, 32, 32, 32]
    return made(lambda: AutoencoderKL.from_config(settings), case)


def make_text_encoder(case: Case) -> nn.Module:
    """SD1.5's text encoder for a small vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH if case.full else 32,
        num_hidden_layers=12 if case.full else 1,
        num_attention_heads=12,
        max_position_embeddings=TEXT_TOKENS,
        bos_token_id=1,
        eos_token_id=2,
    )
    return CLIPTextModel(config).to(case.device, case.dtype).eval().requires_grad_(False)
