"""The arms of the paper's ablations (Tables 1 to 3): which parts each is trained with, and the prior it is sampled with.

An arm lacks its part in all of its training, and in every sampling. Table 2 and 3 leave out motion intensity or text
re-weighting. Table 1 adds to the reference latent the content encoder, then prior inversion, with intensity and re-weighting in
every row: its rows are "without content encoder, prior off", "prior off" and "full". "reference latent only" is barer than any row
of the paper: of what tells the UNet about the photo, the level and the text's words, it has the reference latent alone, without the
frame embedding too (the motion modules still know the frames' order). Prior inversion is no part of training.

"levels by ..." keep every part and learn levels of another measure of motion, which the paper tried before SSIM (3.4).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from ..checkpoint import CONFIG_KEY, expected_shapes, opened, read_config, save_tensors
from ..config import AdapterConfig, Parts, to_json
from ..errors import LivePhotoError

FULL = "full"


@dataclass(frozen=True)
class Variant:
    """What an adapter is trained with: its parts, and the measure that its levels are of; None keeps that of where it starts."""

    parts: Parts = field(default_factory=Parts)
    measure: str | None = None

    def config(self, source: AdapterConfig) -> AdapterConfig:
        """Of the adapter that a variant of a whole one starts from; thresholds of another measure are left to training."""
        if self.measure in (None, source.intensity_measure):
            return replace(source, parts=self.parts)
        return replace(source, parts=self.parts, intensity_measure=self.measure, ssim_thresholds=())


# what is trained, by name
TRAINED = {
    FULL: Variant(),
    "without intensity": Variant(Parts(intensity=False)),
    "without re-weighting": Variant(Parts(reweight=False)),
    "without content encoder": Variant(Parts(content=False)),
    "reference latent only": Variant(Parts(intensity=False, frame_embedding=False, content=False, reweight=False)),
    "levels by mse": Variant(measure="mse"),
    "levels by flow": Variant(measure="flow"),
}


@dataclass(frozen=True)
class Arm:
    """A row of the table: one of TRAINED, sampled with the paper's share of the inverted photo times `prior`."""

    name: str
    trained: str
    prior: float = 1.0


ARMS = (
    Arm(FULL, FULL),
    Arm("without intensity", "without intensity"),
    Arm("without re-weighting", "without re-weighting"),
    Arm("without content encoder", "without content encoder"),
    Arm("without content encoder, prior off", "without content encoder", 0),
    Arm("reference latent only", "reference latent only", 0),
    Arm("prior off", FULL, 0),
    Arm("prior x0.5", FULL, 0.5),
    Arm("prior x2", FULL, 2),
    Arm("prior x5", FULL, 5),
    Arm("levels by mse", "levels by mse"),
    Arm("levels by flow", "levels by flow"),
)


def write_variant(source: str | os.PathLike, variant: Variant, target: str | os.PathLike) -> None:
    """Write the checkpoint that a variant is trained from; what is left of the source keeps its weights.

    Raises:
        LivePhotoError: `source` is no LivePhoto checkpoint or lacks a part that the variant has, or `target` cannot be written.
    """
    config = read_config(source)
    if lacking := sorted(set(config.parts.missing) - set(variant.parts.missing)):
        raise LivePhotoError(f"{source} has no {' and no '.join(lacking)}: start from a checkpoint with every part")
    config = variant.config(config)
    names = expected_shapes(config)
    with opened(source) as file:
        # copies: a mapped file must not be replaced under its own tensors
        tensors = {name: file.get_tensor(name).clone() for name in names}
    save_tensors(tensors, target, {CONFIG_KEY: to_json(config)})
