"""Measuring what a model makes: which motion is seen, how well it fits, how the level is followed."""
