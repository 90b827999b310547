"""The demo's parts as they are shipped: the same model for transformers 4 and 5, with nothing of the maker's disk in it."""

import json
import shutil

from safetensors.torch import load_file, save_file

from livephoto_core.base import load_base
from livephoto_core.commands.model_files import DEMO_FOLDER
from livephoto_core.demo.portable import make_portable
from livephoto_core.encoding import encode_text


def test_a_saved_model_becomes_portable_and_stays_the_same_model(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DEMO_FOLDER, folder)
    before = encode_text(load_base(folder), ["camera pans left"])
    path = folder / "text_encoder" / "model.safetensors"
    save_file({name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": "/home/somebody/unet"}))
    make_portable(folder)
    assert all(name.startswith("text_model.") for name in load_file(path))
    assert json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not any("/home/somebody" in p.read_text() for p in folder.rglob("*.json"))
    assert (encode_text(load_base(folder), ["camera pans left"]) == before).all()
