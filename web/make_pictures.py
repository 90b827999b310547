"""Makes web/docs/NODE/graph.webp, the pictures in the nodes' help pages, from ComfyUI's own page in a headless Chromium.

    python web/make_pictures.py --server http://127.0.0.1:8188 --photo chelsea.jpg [NODE ...]

Needs this project installed (pip install -e .), a Chromium (see tests/comfyui/browser.py), and a ComfyUI with this pack and with
default settings, addressed as 127.0.0.1, with livephoto_core/demo/photos/chelsea.jpg in its input folder. Each picture is a piece
of one of the workflows, as the page draws it.
"""

import argparse
import base64
import io
import json
import runpy
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from livephoto_core.files import atomic_path

ROOT = Path(__file__).parents[1]
# node: (workflow, whether it is run first, columns of nodes from left to right by their titles there; in brackets if folded)
PICTURES = {
    "LivePhotoApply": (
        "livephoto_sd15",
        False,
        "(SD1.5 checkpoint); LivePhotoModelLoader; (LivePhotoPriorInversion); LivePhotoIntensity > LivePhotoApply"
        " > (LivePhotoSampler)",
    ),
    "LivePhotoContextWindows": (
        "livephoto_long_clip",
        False,
        "(LivePhotoApply) > LivePhotoContextWindows > (Rising guidance); Frames > LivePhotoSampler",
    ),
    "LivePhotoDemoLoader": (
        "livephoto_demo",
        False,
        "LivePhotoDemoLoader > (LivePhotoPriorInversion); (LivePhotoApply); (Encode the text); (Negative text);"
        " (Re-weight Motion Text); (LivePhotoReferenceEncode); (VAEDecode); (LivePhotoMeasureMotion)",
    ),
    "LivePhotoIntensity": ("livephoto_demo", True, "LivePhotoIntensity > LivePhotoApply; LivePhotoMeasureMotion"),
    "LivePhotoMeasureMotion": (
        "livephoto_demo",
        True,
        "(VAEDecode); LivePhotoDemoLoader; LivePhotoIntensity > LivePhotoMeasureMotion",
    ),
    "LivePhotoModelLoader": (
        "livephoto_sd15",
        False,
        "SD1.5 checkpoint; LivePhotoModelLoader; DINOv2-large > (LivePhotoApply); (Re-weight Motion Text); (Re-weight negative);"
        " (LivePhotoMeasureMotion); (LivePhotoReferenceEncode)",
    ),
    "LivePhotoPriorInversion": (
        "livephoto_sd15",
        False,
        "(SD1.5 checkpoint); Empty text, for the inversion; (LivePhotoReferenceEncode) > LivePhotoPriorInversion"
        " > (LivePhotoApply); (LivePhotoSampler)",
    ),
    "LivePhotoPriorNoise": (
        "livephoto_prior_noise",
        False,
        "(LivePhotoPriorInversion); (LivePhotoApply) > LivePhotoPriorNoise; (CFGGuider); (KSamplerSelect); (BasicScheduler);"
        " (LivePhotoReferenceEncode) > Sample with the prior",
    ),
    "LivePhotoReferenceEncode": (
        "livephoto_demo",
        True,
        "Photo; (LivePhotoDemoLoader); (Frames) > LivePhotoReferenceEncode > (LivePhotoPriorInversion)",
    ),
    "LivePhotoSampler": (
        "livephoto_demo",
        False,
        "(LivePhotoApply); (Re-weight Motion Text); (Re-weight negative); (LivePhotoPriorInversion); (Frames) > LivePhotoSampler"
        " > (VAEDecode)",
    ),
    "LivePhotoTextReweight": (
        "livephoto_demo",
        True,
        "What moves, and how; (LivePhotoDemoLoader); (Frames) > (Encode the text) > Re-weight Motion Text > (LivePhotoSampler)",
    ),
    "LivePhotoWanGuider": (
        "livephoto_wan",
        False,
        "(LivePhotoWanLoader); LivePhotoWanIntensity > LivePhotoWanGuider > (SamplerCustomAdvanced)",
    ),
    "LivePhotoWanIntensity": (
        "livephoto_wan",
        False,
        "(LivePhotoWanLoader); What moves, and how; Negative text > LivePhotoWanIntensity > LivePhotoWanGuider",
    ),
    "LivePhotoWanLoader": ("livephoto_wan", False, "LivePhotoWanLoader > LivePhotoWanIntensity; LivePhotoWanGuider"),
    "LivePhotoWanReference": (
        "livephoto_wan",
        False,
        "Photo; Wan2.1's VAE; (Frames) > LivePhotoWanReference > (SamplerCustomAdvanced)",
    ),
    "LivePhotoWanSigmas": ("livephoto_wan", False, "LivePhotoWanSigmas; KSamplerSelect > SamplerCustomAdvanced"),
}
# in pixels of the page: widths of the node and of its neighbours and the gap between columns, by the number of columns
SHAPES = {2: (340, 260, 96), 3: (270, 240, 48), 4: (255, 225, 32)}
ROW_GAP, MARGIN = 20, 14
READY = "Boolean(window.app?.graph && app.extensionManager.workflow?.activeWorkflow)"
# only the graph and the widgets that lie on it are to be seen
BARE = """document.head.append(Object.assign(document.createElement("style"), {
    textContent: "body * {visibility: hidden} #graph-canvas, .dom-widget, .dom-widget * {visibility: visible}"
}))"""
DRAWN = "new Promise(done => requestAnimationFrame(() => setTimeout(() => requestAnimationFrame(() => done(true)), 300)))"
# `ended` becomes "yes", or what went wrong
RUN = """(window.ended = null,
    app.api.addEventListener("execution_success", () => window.ended = "yes", {once: true}),
    app.api.addEventListener("execution_error", event => window.ended = event.detail.exception_message, {once: true}),
    app.queuePrompt(0).then(() => window.ended ??= Object.keys(app.lastNodeErrors ?? {}).length ? "it was refused" : null), null)"""
# what is shown of results comes with a node's first drawing
SHOWN = """app.graph._nodes.every(node => node.flags.collapsed
    || (app.nodeOutputs[node.id]?.images ?? []).every((_, number) => node.imgs?.[number]?.complete))"""
# (columns of [id, whether folded], the node's type, its width, the others'): takes away the rest, and wires that would go behind
CUT = """(columns, own, ownWidth, otherWidth) => {
    const kept = new Map(columns.flat());
    for (const node of [...app.graph._nodes]) {
        if (!kept.has(node.id)) { app.graph.remove(node); continue; }
        node.flags.collapsed = kept.get(node.id);
        // a folded node is as wide as its title, within this width
        const width = node.flags.collapsed ? 400 : node.type == own ? ownWidth : otherWidth;
        node.setSize([width, node.computeSize()[1]]);
        node.badges = [];
        // the page would cut it after 20 characters
        if (node.flags.collapsed && node.title.length > 20) node.title = node.title.slice(0, 19).replace(/ \\S{0,7}$/, "") + "…";
        if (node.type == own) Object.assign(node, LGraphCanvas.node_colors.blue);
    }
    const place = new Map(columns.flatMap((column, number) => column.map(([id]) => [id, number])));
    const middle = place.get(app.graph._nodes.find(node => node.type == own).id);
    for (const link of [...app.graph.links.values()]) {
        const from = place.get(link.origin_id), to = place.get(link.target_id);
        if (from >= to || from < middle && middle < to) app.graph.removeLink(link.id);
    }
    for (const group of [...app.graph._groups]) app.graph.remove(group);
    app.canvas.deselectAll();
    app.canvas.draw(true, true);
}"""
# (columns, gaps between columns and rows, margin): puts them side by side at the canvas's corner; gives [x, y, width, height]
LAY_OUT = """(columns, columnGap, rowGap, margin) => {
    const boxes = columns.map(column => column.map(([id]) => {
        const node = app.graph.getNodeById(id), [x, y, width, height] = node.getBounding();
        return {node, width, height, left: node.pos[0] - x, top: node.pos[1] - y};
    }));
    const heights = boxes.map(column => column.reduce((sum, box) => sum + box.height + rowGap, -rowGap));
    const tallest = Math.max(...heights);
    let x = 0;
    boxes.forEach((column, number) => {
        const width = Math.max(...column.map(box => box.width));
        let y = (tallest - heights[number]) / 2;
        for (const box of column) {
            // the first column's nodes lie on its right, so that their wires are short
            const aside = number ? 0 : width - box.width;
            box.node.pos = [x + aside + box.left, y + box.top];
            y += box.height + rowGap;
        }
        x += width + columnGap;
    });
    const frame = app.canvas.canvas.getBoundingClientRect();
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [margin, margin];
    app.canvas.draw(true, true);
    return [frame.x, frame.y, x - columnGap + 2 * margin, tallest + 2 * margin];
}"""


def columns_of(graph: dict, names: str) -> list[list[tuple[int, bool]]]:
    """Columns of (id, whether folded) for titles as in PICTURES."""
    ids = {node.get("title") or node["type"]: node["id"] for node in graph["nodes"]}
    columns = [[name.strip() for name in column.split(";")] for column in names.split(" > ")]
    return [[(ids[name.strip("()")], name.startswith("(")) for name in column] for column in columns]


def picture(page, name: str, photo: str) -> Image.Image:
    """The node's graph on ComfyUI's page."""
    workflow, runs, names = PICTURES[name]
    graph = json.loads((ROOT / "workflows" / f"{workflow}.json").read_text(encoding="utf-8"))
    for node in graph["nodes"]:
        if node["type"] == "LoadImage":
            node["widgets_values"][0] = photo
    # a node that need not run again would not show its text again
    page.evaluate('fetch("/api/free", {method: "POST", body: JSON.stringify({free_memory: true})}).then(() => true)')
    page.evaluate(f"app.loadGraphData({json.dumps(graph)})")
    if runs:
        page.evaluate(RUN)
        if (ended := page.wait("window.ended", 300)) != "yes":
            raise SystemExit(f"{workflow} did not run: {ended}")
    columns = columns_of(graph, names)
    width, others, gap = SHAPES[len(columns)]
    page.evaluate(f"({CUT})({json.dumps(columns)}, '{name}', {width}, {others})")
    lay_out = f"({LAY_OUT})({json.dumps(columns)}, {gap}, {ROW_GAP}, {MARGIN})"
    page.evaluate(f"{DRAWN}.then(() => {lay_out})")
    page.wait(SHOWN)
    # a node grows when its picture is there
    x, y, width, height = page.evaluate(f"{DRAWN}.then(() => {lay_out})")
    page.evaluate(DRAWN)
    clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
    shot = page.call("Page.captureScreenshot", format="png", clip=clip)["data"]
    return Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--server", default="http://127.0.0.1:8188")
parser.add_argument("--photo", default="example.png", help="a picture in ComfyUI's input folder")
parser.add_argument("nodes", nargs="*", metavar="NODE", help="only these nodes' pictures")
options = parser.parse_args()
if unknown := sorted(set(options.nodes) - set(PICTURES)):
    parser.error(f"no picture is known for {', '.join(unknown)}: add it to PICTURES")
browser = runpy.run_path(str(ROOT / "tests" / "comfyui" / "browser.py"))
if (program := browser["find"]()) is None:
    raise SystemExit("no Chromium: put one on the PATH or name it in CHROMIUM")
with TemporaryDirectory() as folder:
    page = browser["Browser"](program, Path(folder), 1600, 1200)
    try:
        # twice the page's pixels, for sharp letters at every width of the panel
        page.call("Emulation.setDeviceMetricsOverride", width=1600, height=1200, deviceScaleFactor=2, mobile=False)
        page.open(options.server)
        page.wait(READY, 120)
        page.evaluate(BARE)
        for name in options.nodes or PICTURES:
            made, path = picture(page, name, options.photo), ROOT / "web" / "docs" / name / "graph.webp"
            with atomic_path(path) as unfinished:
                made.save(unfinished, "WEBP", quality=75, method=6)
            print(f"{path.relative_to(ROOT)}  {made.width}x{made.height}  {path.stat().st_size} bytes")
    finally:
        page.close()
