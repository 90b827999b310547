"""Files in the layout of LivePhoto-Wan2.1's release: small ones, and ones of zeros.

The small ones hold the weights that belong to data/wan_golden.safetensors, the outputs of the official code. That file's metadata
("golden", JSON) has the config, the shapes, the LoRA's targets and a description of every entry.
"""

import json
import math
import zlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "data" / "wan_golden.safetensors"
# rows of a prompt; zeros follow
ROWS = {"input.context": 37, "input.context_negative": 126}


def golden():
    """The entries by name."""
    return load_file(GOLDEN)


def about():
    """The description: {"parameters": {name: shape}, "inputs": {name: shape}, "lora": {...}, ...}."""
    with safe_open(GOLDEN, framework="pt") as file:
        return json.loads(file.metadata()["golden"])


def draw(name, shape):
    """Standard normal numbers that the name decides."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def weight(name, shape):
    """A parameter, or a LoRA's matrix."""
    if name.endswith(".warmup"):
        return torch.tensor(0.6)
    z = draw(name, shape)
    if name.endswith(".modulation") or name == "motion_intensity_embed.weight":
        return 0.3 * z
    if ".lora_B." in name:
        return 0.1 * z
    if len(shape) == 1:
        return 0.1 * z + float(name.endswith(".weight"))
    return 0.8 * z / math.sqrt(math.prod(shape[1:]))


def weights():
    """Every tensor of the small base file."""
    return {name: weight(name, shape) for name, shape in about()["parameters"].items()}


def lora():
    """The LoRA under the names that the authors' training gives."""
    found, shapes = {}, about()["parameters"]
    for layer in about()["lora"]["targets"]:
        outputs, inputs = shapes[f"{layer}.weight"]
        for name, shape in (("lora_A", (4, inputs)), ("lora_B", (outputs, 4))):
            key = f"{layer}.{name}.default.weight"
            found[key] = weight(key, shape)
    return found


def inputs():
    """What the official code was given."""
    found = {name: draw(name, shape) for name, shape in about()["inputs"].items()}
    for name, rows in ROWS.items():
        found[name][:, rows:] = 0
    return found


def save_zeros(path, shapes, kinds=None):
    """A safetensors file of zeros, bfloat16 where `kinds` says nothing else, that takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        kind = (kinds or {}).get(name, "BF16")
        begin, end = end, end + math.prod(shape) * {"BF16": 2, "I64": 8}[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path
