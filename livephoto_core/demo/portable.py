"""Makes a saved model folder readable everywhere: by transformers 4 and 5, and without traces of the disk it was made on."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from ..checkpoint import save_tensors
from ..files import atomic_path

TEXT_PREFIX = "text_model."


def make_portable(folder: Path) -> None:
    """Change a model folder in diffusers' layout in place."""
    for path in folder.rglob("config.json"):
        _edit(path, drop=("_name_or_path",), put={})
    # transformers 5 names its own class there, which 4 does not know
    tokenizer = folder / "tokenizer" / "tokenizer_config.json"
    _edit(tokenizer, drop=("backend", "is_local", "local_files_only"), put={"tokenizer_class": "PreTrainedTokenizerFast"})
    prefix_text_encoder(folder / "text_encoder" / "model.safetensors")


def prefix_text_encoder(path: Path) -> None:
    """Give a text encoder's tensors the prefix that transformers 4 asks for and 5 still reads."""
    tensors = {f"{TEXT_PREFIX}{name.removeprefix(TEXT_PREFIX)}": tensor for name, tensor in load_file(path).items()}
    save_tensors({name: tensor.clone() for name, tensor in tensors.items()}, path, {"format": "pt"})


def _edit(path: Path, drop: tuple[str, ...], put: dict[str, str]) -> None:
    values = {name: value for name, value in json.loads(path.read_text(encoding="utf-8")).items() if name not in drop}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({**values, **put}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
