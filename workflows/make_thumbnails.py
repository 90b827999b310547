"""Makes workflows/NAME.jpg, the pictures in ComfyUI's template browser, from what a running ComfyUI makes of the workflows.

    python workflows/make_thumbnails.py --server http://127.0.0.1:8188 --photo cat.jpg

Needs this project installed (pip install -e .). A workflow that the server refuses, for want of its models, gets a drawing of
its graph.
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from PIL import Image, ImageDraw, ImageOps

from livephoto_core.media import read_clip

FOLDER = Path(__file__).parent
SIZE, PAPER, BOX, EDGE, WIRE = 512, (30, 31, 34), (70, 73, 80), (140, 146, 158), (196, 140, 60)


def clip_picture(server: str, graph: dict, photo: str | None) -> Image.Image | None:
    """Four frames of the clip that a workflow saves; None where the server refuses it."""
    for node in graph.values():
        if node["class_type"] == "LoadImage" and photo:
            node["inputs"]["image"] = photo
    try:
        request = Request(f"{server}/prompt", json.dumps({"prompt": graph}).encode(), {"Content-Type": "application/json"})
        number = json.load(urlopen(request))["prompt_id"]
    except HTTPError as error:
        if error.code == 400:
            return None
        raise
    while not (done := json.load(urlopen(f"{server}/history/{number}"))):
        time.sleep(0.5)
    files = [file for output in done[number]["outputs"].values() for file in output.get("images", []) if file["type"] == "output"]
    if not files:
        raise SystemExit(f"the workflow saved no clip: {done[number]['status']['messages'][-1]}")
    with TemporaryDirectory() as folder:
        path = Path(folder) / files[-1]["filename"]
        path.write_bytes(urlopen(f"{server}/view?{urlencode(files[-1])}").read())
        frames = (read_clip(path).frames * 255).round().byte().permute(0, 2, 3, 1).numpy()
    shown = [Image.fromarray(frames[round(k * (len(frames) - 1) / 3)]) for k in range(4)]
    width, height = shown[0].size
    columns = min((1, 2, 4), key=lambda c: abs(width * c - height * 4 / c))
    sheet = Image.new("RGB", (columns * (width + 4) - 4, 4 // columns * (height + 4) - 4), PAPER)
    for k, frame in enumerate(shown):
        sheet.paste(frame, (k % columns * (width + 4), k // columns * (height + 4)))
    return sheet


def graph_picture(ui: dict) -> Image.Image:
    """The workflow's boxes and wires."""
    nodes = {n["id"]: n for n in ui["nodes"] if n["type"] != "Note"}
    left, top = (min(n["pos"][axis] for n in nodes.values()) for axis in (0, 1))
    right, bottom = (max(n["pos"][axis] + n["size"][axis] for n in nodes.values()) for axis in (0, 1))
    picture = Image.new("RGB", (right - left + 1, bottom - top + 1), PAPER)
    draw = ImageDraw.Draw(picture)
    for node in nodes.values():
        (x, y), (width, height) = node["pos"], node["size"]
        draw.rectangle((x - left, y - top, x - left + width, y - top + height), fill=BOX, outline=EDGE, width=6)
    for _, source, _, target, _, _ in ui["links"]:
        (x, y), width, end = nodes[source]["pos"], nodes[source]["size"][0], nodes[target]["pos"]
        draw.line((x + width - left, y - top + 10, end[0] - left, end[1] - top + 10), fill=WIRE, width=4)
    return picture


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--server", default="http://127.0.0.1:8188")
parser.add_argument("--photo", help="a picture in ComfyUI's input folder; else the one that the workflow names")
options = parser.parse_args()
for path in sorted(FOLDER.glob("*.json")):
    api = json.loads((FOLDER / "api" / path.name).read_text(encoding="utf-8"))
    made = clip_picture(options.server, api, options.photo) or graph_picture(json.loads(path.read_text(encoding="utf-8")))
    tile = ImageOps.pad(made, (SIZE, SIZE), Image.Resampling.LANCZOS, PAPER)
    tile.save(path.with_suffix(".jpg"), quality=88)
    print(path.with_suffix(".jpg"), path.with_suffix(".jpg").stat().st_size)
