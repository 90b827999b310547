"""Whether an adapter fits a UNet, which each host asks before it binds the two."""

from __future__ import annotations

from .config import AdapterConfig, BaseShape
from .errors import LivePhotoError


def check_fit(config: AdapterConfig, shape: BaseShape) -> None:
    """Refuse a UNet that the adapter was not made for.

    Raises:
        LivePhotoError: names what differs and what to load instead.
    """
    ours = config.base
    if shape == ours:
        return
    if shape.context_width != ours.context_width and ours == BaseShape():
        raise LivePhotoError(
            f"LivePhoto needs an SD1.5 model (cross-attention width {ours.context_width}); this one has "
            f"{shape.context_width}: load an SD1.5 checkpoint"
        )
    for name in ours.__dataclass_fields__:
        if getattr(shape, name) != getattr(ours, name):
            raise LivePhotoError(
                f"the LivePhoto checkpoint was trained on a UNet with {name} {getattr(ours, name)}; this one has "
                f"{getattr(shape, name)}: load the base model that belongs to the checkpoint"
            )
