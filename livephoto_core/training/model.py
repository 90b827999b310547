"""One training step's arithmetic: from cached latents to the loss."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import rearrange, repeat
from torch import nn

from ..conditioning import ClipCondition
from ..config import NoiseSchedule
from ..diffusers_host import DiffusersHost
from ..model.adapter import LivePhotoAdapter
from ..schedule import add_noise, alphas_cumprod, clean_and_noise, implied_noise, prediction_target


@dataclass(frozen=True)
class Batch:
    """Clips of one step.

    latents: whole clips [B, length, C, h, w], scaled as the UNet's latents are.
    noise: [B, F, C, h, w], for the F frames that `places` names.
    timesteps: [B].
    text_ids: the captions' token ids [B, 77].
    tokens, grid, levels, places, length: as in ClipCondition.
    unseen: [B], true for clips of which nothing is left in what the UNet is given; None for none.
    guessed: [B], true for clips of which the UNet is given what it makes of their noise alone, noised again; None for none.
    text: the captions' embeddings [B, 77, D] where they are cached; None for the text encoder to make them.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    text_ids: torch.Tensor
    tokens: torch.Tensor
    grid: tuple[int, int]
    levels: torch.Tensor
    places: torch.Tensor | None
    length: int
    unseen: torch.Tensor | None = None
    guessed: torch.Tensor | None = None
    text: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **moved)

    def condition(self, reference: torch.Tensor) -> ClipCondition:
        """What the adapter is told; `reference` [B, C, h, w] is the latent of the whole clip's first frame."""
        return ClipCondition(reference, self.tokens, self.grid, self.levels, self.places, self.length)


def kept_at(alphas: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """A schedule's shares of signal power [T] at timesteps [B], shaped [B, 1, 1, 1, 1] to multiply latents."""
    return alphas[timesteps][:, None, None, None, None]


def motion_weights(latents: torch.Tensor, reference: torch.Tensor, strength: float) -> torch.Tensor:
    """Loss weights [B, F, 1, h, w] of mean 1, larger where latents [B, F, C, h, w] differ from the reference [B, C, h, w].

    From MotiF (arXiv 2412.16153); strength 0 weighs all alike.
    """
    change = (latents - reference[:, None]).abs().mean(2, keepdim=True)
    weights = 1 + strength * change / change.mean((1, 2, 3, 4), keepdim=True).clamp(min=1e-6)
    return weights / weights.mean((1, 2, 3, 4), keepdim=True)


def first_frame_weights(places: torch.Tensor, factor: float) -> torch.Tensor:
    """Loss weights [F, 1, 1, 1] of mean 1 for frames at `places` [F] of a clip: `factor` on its first, place 0.

    The photo itself is easy beside what moves: a plain mean does not care for its last decibels.
    """
    weights = torch.where(places == 0, factor, 1.0)
    return (weights / weights.mean())[:, None, None, None]


def token_weights(weights: torch.Tensor, text_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the words of texts [B, L] weigh in all [B], and what their ends and the padding behind, all like the last token, do.

    weights: [B, F, L]. Sums over tokens, for one open token is enough to read a sentence from.
    """
    padding = text_ids == text_ids[:, -1:]
    mean = weights.mean(1)
    return mean.masked_fill(padding, 0).sum(1), mean.masked_fill(~padding, 0).sum(1)


@dataclass(frozen=True)
class LossWeights:
    """What a loss stresses beside the paper's plain mean (section 4.1); the defaults stress nothing.

    motion: as in `motion_weights`. first_frame: the factor on the clip's first frame.
    padding: the price of a token of padding that weighs 1. A text encoder that trains along and looks back along the text writes
    the sentence there, where the UNet then reads it from seventy tokens alike, and no word's own weight matters. words: the price
    of a word that weighs 1. Words that help pay for themselves; without a price the others have no reason to weigh less.
    """

    motion: float = 0.0
    first_frame: float = 1.0
    padding: float = 0.0
    words: float = 0.0


class TrainingModel(nn.Module):
    """UNet, adapter and text encoder as one module, for the optimizer and for averaging gradients over processes.

    The adapter's hooks are on the UNet from the start. `prediction` is the base's, "epsilon" or "v_prediction". Batches whose
    texts are cached need no text encoder.

    Raises:
        LivePhotoError: the adapter was not made for this UNet.
    """

    def __init__(
        self,
        unet: nn.Module,
        adapter: LivePhotoAdapter,
        text_encoder: nn.Module | None,
        schedule: NoiseSchedule,
        prediction: str,
        freeze_base: bool,
        loss_weights: LossWeights = LossWeights(),
    ):
        super().__init__()
        self.unet, self.adapter, self.text_encoder = unet, adapter, text_encoder
        self.prediction, self.loss_weights = prediction, loss_weights
        self.register_buffer("alphas", alphas_cumprod(schedule), persistent=False)
        for part in (unet, text_encoder):
            if part is not None:
                part.requires_grad_(not freeze_base)
        self.host = DiffusersHost(unet, adapter)
        self.host.attach()

    def weigh_text(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The captions' embeddings [B, L, D], and the tokens' weights [B, F, L] in the batch's frames."""
        text = self.text_encoder(batch.text_ids).last_hidden_state if batch.text is None else batch.text
        weights = self.adapter.reweight(text, batch.length)
        return text, weights if batch.places is None else weights[:, batch.places]

    def predict(self, batch: Batch, noisy: torch.Tensor, reference: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The UNet's output [B, F, C, h, w] for noisy latents of that shape.

        reference: [B, C, h, w], as in `Batch.condition`. text: a weighted text a frame [(b f), L, D].
        """
        clips, frames = noisy.shape[:2]
        self.host.condition(batch.condition(reference))
        output = self.unet(
            rearrange(noisy, "b f c h w -> (b f) c h w"), repeat(batch.timesteps, "b -> (b f)", f=frames), text
        ).sample
        return rearrange(output, "(b f) c h w -> b f c h w", b=clips)

    @torch.no_grad()
    def guess(self, batch: Batch, reference: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The clips [B, F, C, h, w] that the model makes of a batch's noise alone, in one step as sampling begins; as `predict`."""
        last = torch.full_like(batch.timesteps, len(self.alphas) - 1)
        output = self.predict(replace(batch, timesteps=last), batch.noise, reference, text)
        # in older torch autocast keeps the halves of the weights that it made here, which know no gradients
        torch.clear_autocast_cache()
        return clean_and_noise(batch.noise, output.float(), kept_at(self.alphas, last), self.prediction)[0]

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss of each clip [B] (paper section 4.1: mean square error)."""
        latents, places = batch.latents, batch.places
        reference = latents[:, 0]
        if places is None:
            places = torch.arange(latents.shape[1], device=latents.device)
        else:
            latents = latents[:, places]
        kept = kept_at(self.alphas, batch.timesteps)
        noise = batch.noise
        noisy = add_noise(latents, noise, kept)
        if batch.unseen is not None:
            noisy = torch.where(batch.unseen[:, None, None, None, None], noise, noisy)
        text, weights = self.weigh_text(batch)
        weighted = self.host.weigh(text, weights)
        if batch.guessed is not None and batch.guessed.any():
            guessed = batch.guessed[:, None, None, None, None]
            noisy = torch.where(guessed, add_noise(self.guess(batch, reference, weighted), noise, kept), noisy)
            noise = torch.where(guessed, implied_noise(noisy, latents, kept), noise)
        wanted = prediction_target(latents, noise, kept, self.prediction)
        error = (self.predict(batch, noisy, reference, weighted).float() - wanted).square()
        stress = self.loss_weights
        error = error * motion_weights(latents, reference, stress.motion)
        error = error * first_frame_weights(places, stress.first_frame)
        words, padding = token_weights(weights, batch.text_ids)
        return error.mean((1, 2, 3, 4)) + stress.padding * padding + stress.words * words

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}
