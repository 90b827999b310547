"""A ComfyUI without the pack, then what the import of the pack brings into it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import folder_paths
from kit import case, pack, sample, tiny_model, tiny_prompts

import nodes


@case
def sampled() -> dict[str, Any]:
    assert not any("LivePhoto" in name for name in sys.modules)
    return {"latents": sample(tiny_model(), *tiny_prompts())}


@case
def imports() -> dict[str, Any]:
    before, path, used = set(sys.modules), list(sys.path), time.process_time()
    name = pack().__name__
    used = time.process_time() - used
    new = [module for module in set(sys.modules) - before if not module.startswith(name)]
    return {
        "seconds": used,
        "packages": sorted({module.partition(".")[0] for module in new}),
        "transformers": sorted(module for module in new if module.startswith("transformers.")),
        "same path": sys.path == path,
        "nodes is ComfyUI's": Path(sys.modules["nodes"].__file__).parent == Path(folder_paths.__file__).parent,
        "ids": sorted(node for node in nodes.NODE_CLASS_MAPPINGS if node.startswith("LivePhoto")),
        "folder": folder_paths.get_filename_list("livephoto"),
    }
