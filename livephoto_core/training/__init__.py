"""Training on accelerate: one trainer for Stable Diffusion v1.5 and for the demo model."""
