"""The workflows: the UI and API form of each are one graph that ComfyUI knows, and each makes a clip over HTTP."""

import copy
import gc
import json
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from livephoto_core.media import read_clip

FOLDER = Path(__file__).parents[2] / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
# on the page alone: the server does not see them
NOTES = {"Note", "MarkdownNote"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
FEW = 2
PHOTO = "example.png"


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def known(server):
    return server.object_info()


def test_each_has_both_forms_and_a_picture():
    assert len(NAMES) == 7
    assert sorted(path.stem for path in (FOLDER / "api").glob("*.json")) == NAMES
    assert sorted(path.stem for path in FOLDER.glob("*.jpg")) == NAMES


def declared(info):
    """{name: (type, options)} of a node's inputs, in the page's order."""
    found = {}
    for part in ("required", "optional"):
        for name in info["input_order"].get(part, []):
            kind, *options = info["input"][part][name]
            found[name] = ("COMBO" if isinstance(kind, list) else kind, options[0] if options else {})
    return found


def widget_values(node, info):
    """{input: value} of the widgets of a node on the page."""
    names = []
    for name, (kind, options) in declared(info).items():
        if kind in WIDGETS and not options.get("forceInput"):
            names.append(name)
            # the page adds these two widgets itself
            names += [None] * bool(options.get("control_after_generate")) + [None] * bool(options.get("image_upload"))
    values = node.get("widgets_values", [])
    assert len(values) == len(names), (node["id"], node["type"], names, values)
    return {name: value for name, value in zip(names, values, strict=True) if name}


def as_api(ui, known):
    """The graph that the page would queue for a workflow."""
    sources = {number: [str(node), slot] for number, node, slot, *_ in ui["links"]}
    graph = {}
    for node in ui["nodes"]:
        if node["type"] not in NOTES:
            linked = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
            inputs = {**widget_values(node, known[node["type"]]), **linked}
            graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_are_the_same_graph(name, known):
    ui, api = read(FOLDER / f"{name}.json"), read(FOLDER / "api" / f"{name}.json")
    assert as_api(ui, known) == {key: {part: node[part] for part in ("class_type", "inputs")} for key, node in api.items()}
    titles = {str(node["id"]): node["title"] for node in ui["nodes"] if "title" in node and node["type"] not in NOTES}
    assert titles == {key: api[key]["_meta"]["title"] for key in titles}


@pytest.mark.parametrize("name", NAMES)
def test_links_are_whole(name, known):
    ui = read(FOLDER / f"{name}.json")
    nodes = {node["id"]: node for node in ui["nodes"]}
    assert len(nodes) == len(ui["nodes"])
    assert ui["last_node_id"] >= max(nodes)
    assert ui["last_link_id"] >= max(number for number, *_ in ui["links"])
    leaving = Counter(number for node in ui["nodes"] for slot in node["outputs"] for number in slot["links"] or [])
    arriving = Counter(slot["link"] for node in ui["nodes"] for slot in node["inputs"] if slot["link"] is not None)
    assert leaving == arriving == Counter(number for number, *_ in ui["links"])
    assert set(arriving.values()) == {1}
    for number, source, place, target, socket, kind in ui["links"]:
        output, entry = nodes[source]["outputs"][place], nodes[target]["inputs"][socket]
        assert number in output["links"]
        assert number == entry["link"]
        assert kind == output["type"]
        assert entry["type"] in (kind, "*"), (name, number)


@pytest.mark.parametrize("name", NAMES)
def test_only_comfyuis_nodes_and_ours(name, known):
    for node in read(FOLDER / f"{name}.json")["nodes"]:
        if node["type"] in NOTES:
            continue
        info = known[node["type"]]
        ours = info["python_module"] == "custom_nodes.ComfyUI-LivePhoto"
        assert ours or info["python_module"] == "nodes" or info["python_module"].startswith("comfy_extras."), node["type"]
        assert not info.get("experimental") and not info.get("deprecated"), node["type"]
        assert [(slot["name"], slot["type"]) for slot in node["outputs"]] == list(
            zip(info["output_name"], info["output"], strict=True)
        )
        kinds = {entry: kind for entry, (kind, _) in declared(info).items()}
        shown = {slot["name"]: slot["type"] for slot in node["inputs"]}
        assert shown.items() <= kinds.items()
        assert {entry for entry, kind in kinds.items() if kind not in WIDGETS} <= shown.keys(), node["type"]
        assert node["properties"]["cnr_id"] == ("comfyui-livephoto" if ours else "comfy-core")


def with_few_steps(graph):
    """The same with a few steps of sampling and inversion."""
    graph = copy.deepcopy(graph)
    for node in graph.values():
        if isinstance(node["inputs"].get("steps"), int):
            node["inputs"]["steps"] = FEW
        if node["_meta"]["title"] == "Steps":
            node["inputs"]["value"] = FEW
    return graph


def check_clip(server, run, graph):
    """A run ended in a clip of as many frames as its workflow says, which is neither grey nor still; returns its size."""
    assert run.error is None, run.error
    [saving] = [key for key, node in graph.items() if node["class_type"] in ("SaveAnimatedWEBP", "SaveVideo")]
    [path] = server.files(run, saving)
    assert path.parent == server.base / "output" / "livephoto"
    frames = read_clip(path).frames
    [expected] = [node["inputs"]["value"] for node in graph.values() if node["_meta"]["title"] == "Frames"]
    assert len(frames) == expected
    assert frames.std((1, 2, 3)).min() > 0.02
    assert (frames[0] - frames[-1]).abs().mean() > 1e-3
    return tuple(frames.shape[-2:])


@pytest.fixture(scope="module")
def photo(comfyui, server):
    """The photo that ComfyUI brings and the workflows open with, in the input folder."""
    shutil.copy(comfyui.path / "input" / PHOTO, server.base / "input" / PHOTO)


def test_demo_takes_less_than_a_minute(server, photo):
    graph = read(FOLDER / "api" / "livephoto_demo.json")
    begin = time.monotonic()
    run = server.run(graph)
    seconds = time.monotonic() - begin
    print(f"demo: {seconds:.1f} s")
    assert check_clip(server, run, graph) == (256, 256)
    assert seconds < 60


@pytest.mark.parametrize("name", ("prior_noise", "long_clip", "intensity_sweep"))
def test_workflow_saves_a_clip(server, photo, name):
    graph = with_few_steps(read(FOLDER / "api" / f"livephoto_{name}.json"))
    begin = time.monotonic()
    run = server.run(graph)
    print(f"{name}, {FEW} steps: {time.monotonic() - begin:.1f} s")
    height, width = check_clip(server, run, graph)
    assert (width > height) == (name != "long_clip")


FILES = (
    ("checkpoints/v1-5-pruned-emaonly-fp16.safetensors", "save_checkpoint"),
    ("clip_vision/dinov2-large.safetensors", "save_dinov2"),
    ("livephoto/livephoto_sd15.safetensors", "save_adapter"),
    ("loras/your_sd15_lora.safetensors", "save_lora"),
    ("controlnet/control_v11p_sd15_canny_fp16.safetensors", "save_controlnet"),
)


@pytest.fixture(scope="module")
def sd15_server(serving, standins, comfyui):
    """A server with random models of real size under the names that the workflows open with: 5 GB, deleted afterwards."""

    def prepare(base):
        shutil.copy(comfyui.path / "input" / PHOTO, base / "input" / PHOTO)
        for place, maker in FILES:
            path = base / "models" / place
            path.parent.mkdir(exist_ok=True)
            getattr(standins, maker)(path)
        gc.collect()

    with serving(prepare) as running:
        yield running


def of_two_small_frames(graph):
    graph = with_few_steps(graph)
    for node in graph.values():
        if node["class_type"] == "LivePhotoReferenceEncode":
            node["inputs"] |= {"width": 64, "height": 64}
        if node["_meta"]["title"] == "Frames":
            node["inputs"]["value"] = 2
    return graph


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ("sd15", "lora_controlnet"))
def test_sd15_workflow_saves_a_clip(sd15_server, name):
    """Needs 12 GB of memory."""
    graph = of_two_small_frames(read(FOLDER / "api" / f"livephoto_{name}.json"))
    begin = time.monotonic()
    run = sd15_server.run(graph, timeout=900)
    print(f"{name}: {time.monotonic() - begin:.1f} s")
    assert check_clip(sd15_server, run, graph) == (64, 64)
    log = sd15_server.log()
    for complaint in ("lora key not loaded", "missing clip vision", "missing controlnet keys", "unet missing", "unet unexpected"):
        assert complaint not in log


WAN_FOLDERS = ("diffusion_models", "vae")


@pytest.fixture(scope="module")
def wan_server(serving, standins, comfyui):
    """A server with LivePhoto-Wan2.1 at small size, Wan2.1's VAE, and a node for a small umt5: 0.6 GB, deleted afterwards."""

    def prepare(base):
        shutil.copy(comfyui.path / "input" / PHOTO, base / "input" / PHOTO)
        for folder in WAN_FOLDERS:
            (base / "models" / folder).mkdir()
        standins.save_wan(base / "models" / "diffusion_models" / "livephoto_wan2.1_base.safetensors")
        standins.save_wan_lora(base / "models" / "loras" / "livephoto_wan2.1_lora.safetensors")
        standins.save_wan_vae(base / "models" / "vae" / "wan_2.1_vae.safetensors")
        # Load CLIP reads umt5-xxl in its full size alone, 11 GB
        shutil.copy(Path(__file__).parent / "inside" / "small_umt5.py", base / "custom_nodes" / "small_umt5.py")
        gc.collect()

    with serving(prepare) as running:
        yield running


def small_wan(graph, **changes):
    """The workflow with small_umt5.py's node for Load CLIP and two latent frames of 8x8; `changes` are inputs by node type."""
    graph = with_few_steps(graph)
    for node in graph.values():
        if node["class_type"] == "CLIPLoader":
            node |= {"class_type": "SmallUMT5", "inputs": {}}
        if node["class_type"] == "LivePhotoWanReference":
            node["inputs"] |= {"width": 64, "height": 64}
        if node["_meta"]["title"] == "Frames":
            node["inputs"]["value"] = 5
        node["inputs"] |= changes.get(node["class_type"], {})
    return graph


def test_wan_workflow_saves_a_clip(wan_server):
    graph = small_wan(read(FOLDER / "api" / "livephoto_wan.json"))
    begin = time.monotonic()
    run = wan_server.run(graph)
    print(f"wan: {time.monotonic() - begin:.1f} s")
    assert check_clip(wan_server, run, graph) == (64, 64)
    [loader] = [key for key, node in graph.items() if node["class_type"] == "LivePhotoWanLoader"]
    assert run.outputs[loader]["text"] == ["warmup 0.602, gate 0.60: the motion level acts"]
    log = wan_server.log()
    for complaint in ("lora key not loaded", "unet missing", "unet unexpected", "Missing VAE keys"):
        assert complaint not in log


def test_wan_mistakes_are_said_on_their_nodes(wan_server):
    path = FOLDER / "api" / "livephoto_wan.json"
    for kind, inputs, said in (
        ("LivePhotoWanReference", {"length": 80}, "length is 80, Wan2.1 makes 4n + 1 frames: take 81"),
        ("LivePhotoWanLoader", {"model_name": "none.safetensors"}, "models/diffusion_models has no file none.safetensors"),
    ):
        error = wan_server.run(small_wan(read(path), **{kind: inputs})).error
        assert (error["node_type"], error["exception_type"].rpartition(".")[2]) == (kind, "LivePhotoError")
        assert said in error["exception_message"]


def test_wan_level_beyond_the_last_is_refused(wan_server, refused):
    graph = small_wan(read(FOLDER / "api" / "livephoto_wan.json"), LivePhotoWanIntensity={"level": 7})
    with pytest.raises(refused, match="value_bigger_than_max"):
        wan_server.queue(graph)
