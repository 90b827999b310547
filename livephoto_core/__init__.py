"""LivePhoto: animate a photo from a text and a motion intensity, on any Stable Diffusion v1.5 base."""

__version__ = "0.1.0"
