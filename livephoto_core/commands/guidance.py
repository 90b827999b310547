"""Options of guidance, and what it is where the user says nothing: the same for every command that makes clips."""

from __future__ import annotations

import argparse

# 4 is for SD1.5; guided evenly, the demo's small model gives a first frame that is no longer the photo
SD15_CFG, DEMO_CFG, DEMO_MIN_CFG = 4.0, 2.5, 1.0
# a model distilled for few steps has guidance in its weights already
LCM, LCM_CFG = "lcm", 1.0


def add_guidance_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """--cfg and --min-cfg."""
    parser.add_argument(
        "--cfg",
        type=float,
        help=f"guidance, 1 is none (default {SD15_CFG:g}; for the demo {DEMO_CFG:g}; with --sampler lcm {LCM_CFG:g})",
    )
    parser.add_argument(
        "--min-cfg",
        type=float,
        metavar="CFG",
        help=f"guidance of the first frame, rising to --cfg in the last (default: --cfg; for the demo {DEMO_MIN_CFG:g})",
    )


def guidance(cfg: float | None, min_cfg: float | None, sampler: str, demo: bool) -> tuple[float, float | None]:
    """(cfg, min_cfg) as given, where they are None those of the model and the sampler."""
    if cfg is None:
        cfg = LCM_CFG if sampler == LCM else DEMO_CFG if demo else SD15_CFG
    if min_cfg is None and demo and cfg > DEMO_MIN_CFG:
        min_cfg = DEMO_MIN_CFG
    return cfg, min_cfg
