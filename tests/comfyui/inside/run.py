"""Runs a script's cases inside ComfyUI: python run.py COMFYUI SCRIPT OUT OPTION ..., the options being ComfyUI's own.

What each case returns, a dict of tensors and plain values, comes to OUT/tensors.safetensors and OUT/values.json.
"""

import importlib
import json
import sys
import traceback
from pathlib import Path


def main(comfyui: str, script: str, out: str, *options: str) -> None:
    sys.path.insert(0, comfyui)
    sys.argv = ["main.py", *options]
    import comfy.options

    comfy.options.enable_args_parsing()
    import kit
    import torch
    from safetensors.torch import save_file

    importlib.import_module(script)
    tensors, values = {}, {}
    for name, function in kit.CASES.items():
        try:
            # as ComfyUI's own executor does
            with torch.inference_mode():
                found = function()
        except Exception:
            found = {"traceback": traceback.format_exc()}
        values[name] = {}
        for key, value in found.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}/{key}"] = value.detach().float().clone().contiguous()
            else:
                values[name][key] = value
    save_file(tensors, str(Path(out) / "tensors.safetensors"))
    (Path(out) / "values.json").write_text(json.dumps(values), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
