"""The pack in a running server."""

import io
import json
import re
import shutil
from pathlib import Path
from urllib.request import urlopen

import pytest
from PIL import Image

from livephoto_core.checkpoint import load_adapter, save_adapter

DEMO = {"class_type": "LivePhotoDemoLoader", "inputs": {}}


def declared_nodes():
    """The node ids that nodes/ declares, read from the source: importing it takes ComfyUI."""
    sources = (Path(__file__).parents[2] / "nodes").glob("*.py")
    return {name for source in sources for name in re.findall(r'node_id="(\w+)"', source.read_text(encoding="utf-8"))}


def test_every_node_is_there(server):
    nodes, known = declared_nodes(), server.object_info()
    assert "LivePhotoApply" in nodes
    assert nodes <= set(known)
    for name in nodes:
        assert known[name]["category"].startswith("LivePhoto")
        assert known[name]["description"]


def test_english_texts_are_those_of_the_schema(server):
    """The page shows the locale's texts: a tooltip changed in nodes/ alone would not be seen."""
    known = server.object_info()
    path = Path(__file__).parents[2] / "locales" / "en" / "nodeDefs.json"
    texts = json.loads(path.read_text(encoding="utf-8"))
    assert set(texts) == declared_nodes()
    for name, node in texts.items():
        shown = known[name]
        assert (node["display_name"], node["description"]) == (shown["display_name"], shown["description"])
        inputs = {key: value for part in ("required", "optional") for key, value in shown["input"].get(part, {}).items()}
        tooltips = {key: value[1]["tooltip"] for key, value in inputs.items()}
        assert {key: node["inputs"][key]["tooltip"] for key in inputs} == tooltips
        assert [node["outputs"][str(i)]["tooltip"] for i in range(len(shown["output"]))] == shown["output_tooltips"], name


@pytest.mark.parametrize("name", sorted(declared_nodes()))
def test_node_has_help_and_texts_in_both_languages(name):
    root = Path(__file__).parents[2]
    english, chinese = (
        json.loads((root / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))[name] for language in ("en", "zh")
    )
    for part in ("inputs", "outputs"):
        assert english[part].keys() == chinese[part].keys() if part in english else part not in chinese
    for page in (f"{name}.md", f"{name}/zh.md"):
        text = (root / "web" / "docs" / page).read_text(encoding="utf-8")
        assert text.startswith("# ")
        # the page adds this widget to a seed
        assert english.get("inputs", {}).keys() - {"control_after_generate"} <= set(re.findall(r"\w+", text))


@pytest.mark.parametrize("name", sorted(declared_nodes()))
def test_help_pages_show_a_picture_that_is_served(server, name):
    """In each language ComfyUI's page looks for a page's pictures in web/docs itself, and not where the page lies."""
    for page in (f"{name}.md", f"{name}/zh.md"):
        text = (Path(__file__).parents[2] / "web" / "docs" / page).read_text(encoding="utf-8")
        addresses = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
        assert addresses == [f"{name}/graph.webp"], page
        with urlopen(f"{server.url}/extensions/ComfyUI-LivePhoto/docs/{addresses[0]}") as answer:
            served = answer.read()
        assert len(served) <= 60_000
        assert Image.open(io.BytesIO(served)).width >= 1000


def test_import_succeeds_and_is_quick(server):
    log = server.log()
    assert "IMPORT FAILED" not in log
    assert "Error while calling comfy_entrypoint" not in log
    seconds = re.search(r"([\d.]+) seconds: .*ComfyUI-LivePhoto", log)
    print(seconds[0])
    assert float(seconds[1]) < 1


def test_graph_runs(server):
    graph = {
        "demo": DEMO,
        "photo": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0x806040}},
        "encode": {"class_type": "VAEEncode", "inputs": {"pixels": ["photo", 0], "vae": ["demo", 2]}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["encode", 0], "vae": ["demo", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "round"}},
    }
    run = server.run(graph)
    assert run.error is None
    [picture] = server.files(run, "save")
    assert picture.stat().st_size > 0


def loading(name):
    return {
        "load": {"class_type": "LivePhotoModelLoader", "inputs": {"model_name": name}},
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["load", 0]}},
    }


def test_errors_name_their_node(server):
    (server.base / "models" / "livephoto" / "cut.safetensors").write_bytes(b"\x00" * 20)
    error = server.run(loading("cut.safetensors")).error
    assert error["node_id"] == "load"
    assert error["exception_type"].endswith("LivePhotoError")
    assert "cut.safetensors" in error["exception_message"]
    assert "get it again" in error["exception_message"] or "give the path" in error["exception_message"]


def test_a_checkpoint_written_anew_is_loaded_anew(server):
    """As `livephoto calibrate --write` and training do, while ComfyUI runs."""
    path = server.base / "models" / "livephoto" / "again.safetensors"
    shutil.copy(Path(__file__).parents[2] / "livephoto_core" / "demo" / "weights" / "adapter.safetensors", path)
    graph = loading(path.name)
    assert server.run(graph).error is None
    assert "load" in server.run(graph).cached
    adapter = load_adapter(path)
    save_adapter(adapter, path, {"note": "written anew"})
    run = server.run(graph)
    assert run.error is None and "load" not in run.cached


def test_missing_checkpoint_is_named(server, refused):
    """ComfyUI 0.3.64 does not compare the choices of a node of ours with its list; others may refuse the graph."""
    try:
        error = server.run(loading("none.safetensors")).error
    except refused as answer:
        error = answer.answer["node_errors"]["load"]
    assert "none.safetensors" in str(error)


def test_graph_with_a_missing_input_is_refused(server, refused):
    graph = {"encode": {"class_type": "VAEEncode", "inputs": {}}, "show": {"class_type": "PreviewAny", "inputs": {}}}
    with pytest.raises(refused, match="required_input_missing"):
        server.queue(graph)
