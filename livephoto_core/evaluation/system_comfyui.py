"""A ComfyUI workflow over HTTP as a system for MotionBench, with the standard library alone."""

from __future__ import annotations

import copy
import http.client
import json
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import LivePhotoError
from ..media import PICTURE_SUFFIXES, read_clip
from ..media_write import write_picture
from .level_values import plain_number
from .systems import Request, System

INPUTS = ("photo", "text", "level", "seed")
REPLY_SECONDS, POLL_SECONDS = 60.0, 0.25


@dataclass(frozen=True)
class Workflow:
    """A graph in ComfyUI's API format, and which inputs of which nodes are ours: {"photo": ("2", "image"), ...}.

    `output` is the node whose clip counts; None: the only one that gives any.
    """

    graph: dict[str, Any]
    places: dict[str, tuple[str, str]]
    output: str | None = None


def read_workflow(path: str | Path, places: Sequence[str], output: str | None) -> Workflow:
    """Read an API workflow, with its inputs named as `photo=NODE.INPUT`, `text=...`, `level=...`, `seed=...`.

    Raises:
        LivePhotoError: no such file, a workflow of the page's own format, or an input that it has not.
    """
    try:
        graph = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LivePhotoError(f"cannot read the workflow {path} ({error}): give a JSON file") from error
    if not isinstance(graph, dict) or not all(isinstance(node, dict) and "class_type" in node for node in graph.values()):
        raise LivePhotoError(f"{path} is no API workflow: in ComfyUI choose Workflow > Export (API)")
    found = dict(_place(text, graph) for text in places)
    if missing := [name for name in ("photo", "text") if name not in found]:
        raise LivePhotoError(f"the workflow's {' and '.join(missing)} must be named: --set {missing[0]}=NODE.INPUT")
    if output is not None and output not in graph:
        raise LivePhotoError(f"the workflow has no node {output!r}: its nodes are {', '.join(graph)}")
    return Workflow(graph, found, output)


def comfyui_system(url: str, workflow: Workflow, size: int, level_values: Sequence[float], seconds: float = 1800) -> System:
    """A workflow on a running ComfyUI; each clip may take `seconds`.

    Args:
        url: such as http://127.0.0.1:8188.
        workflow: see read_workflow.
        size: side of the photo that is uploaded, in pixels.
        level_values: what the level's input gets at level 1 to 10.
        seconds: a clip that takes longer is given up.

    Raises:
        LivePhotoError: not an http address.
    """
    if not url.startswith(("http://", "https://")):
        raise LivePhotoError(f"{url!r} is no address of a ComfyUI: give one such as http://127.0.0.1:8188")
    server = _Server(url.rstrip("/"))

    def animate(requests: Sequence[Request]) -> list[torch.Tensor]:
        return [_make(server, workflow, request, level_values, seconds) for request in requests]

    return System(f"ComfyUI workflow on {urllib.parse.urlsplit(url).netloc}", animate, size)


def _place(text: str, graph: dict[str, Any]) -> tuple[str, tuple[str, str]]:
    name, _, place = text.partition("=")
    node, _, key = place.rpartition(".")
    if name not in INPUTS:
        raise LivePhotoError(f"--set takes one of {', '.join(INPUTS)} as NAME=NODE.INPUT, got {text!r}")
    if key not in graph.get(node, {}).get("inputs", {}):
        raise LivePhotoError(f"the workflow has no input {place!r} for the {name}: name a node and its input, as 6.text")
    return name, (node, key)


def _make(
    server: _Server, workflow: Workflow, request: Request, level_values: Sequence[float], seconds: float
) -> torch.Tensor:
    values = {"text": request.text, "level": plain_number(level_values[request.level - 1]), "seed": request.seed}
    values["photo"] = server.upload(request)
    graph = copy.deepcopy(workflow.graph)
    for name, (node, key) in workflow.places.items():
        graph[node]["inputs"][key] = values[name]
    outputs = server.run(graph, seconds)
    with tempfile.TemporaryDirectory() as folder:
        return _read(server, _files(outputs, workflow.output), Path(folder))


def _files(outputs: dict[str, Any], node: str | None) -> list[dict[str, str]]:
    """The files [{filename, subfolder, type}] of the one node whose clip counts."""
    found = {}
    for name, output in outputs.items():
        lists = [value for value in output.values() if isinstance(value, list)]
        files = [item for items in lists for item in items if isinstance(item, dict) and "filename" in item]
        # previews are temporary: what is saved is the clip
        files = [item for item in files if node is not None or item.get("type") == "output"]
        if files and node in (None, name):
            found[name] = files
    if not found:
        raise LivePhotoError("the workflow ran and saved no clip: end it in a node that saves one, or name one by --output-node")
    if len(found) > 1:
        raise LivePhotoError(f"the workflow saves files in nodes {', '.join(found)}: name the one with the clip by --output-node")
    return next(iter(found.values()))


def _read(server: _Server, files: list[dict[str, str]], folder: Path) -> torch.Tensor:
    paths = []
    for number, file in enumerate(files):
        path = folder / f"{number:05}{Path(file['filename']).suffix.lower()}"
        path.write_bytes(server.file(file))
        paths.append(path)
    pictures = len(paths) > 1 and all(path.suffix in PICTURE_SUFFIXES for path in paths)
    return read_clip(folder if pictures else paths[0]).frames


@dataclass(frozen=True)
class _Server:
    """A ComfyUI server's HTTP interface."""

    url: str

    def upload(self, request: Request) -> str:
        """Put the photo into ComfyUI's input folder; the name that a Load Image node takes."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"motionbench-{request.name}.png"
            write_picture(request.photo, path)
            picture = path.read_bytes()
        edge = uuid.uuid4().hex
        fields = f'--{edge}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
        file = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
        head = f"{fields}{file}Content-Type: image/png\r\n\r\n"
        body = head.encode() + picture + f"\r\n--{edge}--\r\n".encode()
        reply = self._answer("/upload/image", "name", body, f"multipart/form-data; boundary={edge}")
        return f"{reply['subfolder']}/{reply['name']}" if reply.get("subfolder") else reply["name"]

    def run(self, graph: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Queue a graph and wait for its outputs, {node: {...}}."""
        key = self._answer("/prompt", "prompt_id", json.dumps({"prompt": graph}).encode(), "application/json")["prompt_id"]
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            entry = self._answer(f"/history/{key}", None).get(key)
            if entry is not None:
                return _outputs(entry)
            time.sleep(POLL_SECONDS)
        raise LivePhotoError(f"ComfyUI made no clip in {seconds:g} s: see its own log, or allow more time by --seconds")

    def file(self, file: dict[str, str]) -> bytes:
        """The bytes of an output file."""
        query = {"filename": file["filename"], "subfolder": file.get("subfolder", ""), "type": file.get("type", "output")}
        return self._ask(f"/view?{urllib.parse.urlencode(query)}")

    def _answer(self, path: str, needed: str | None, body: bytes | None = None, kind: str | None = None) -> dict[str, Any]:
        """The JSON of a reply, which holds the name `needed`."""
        try:
            reply = json.loads(self._ask(path, body, kind))
        except ValueError:
            reply = None
        if not isinstance(reply, dict) or (needed is not None and needed not in reply):
            raise LivePhotoError(f"what answers at {self.url} is no ComfyUI: give its --url")
        return reply

    def _ask(self, path: str, body: bytes | None = None, kind: str | None = None) -> bytes:
        try:
            request = urllib.request.Request(self.url + path, body, {} if kind is None else {"Content-Type": kind})
            with urllib.request.urlopen(request, timeout=REPLY_SECONDS) as reply:
                return reply.read()
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode(errors="replace")
            raise LivePhotoError(f"ComfyUI refused {path.partition('?')[0]} ({error.code}): {said[:300]}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise LivePhotoError(f"no ComfyUI answers at {self.url} ({reason}): start it, or give its --url") from error


def _outputs(entry: dict[str, Any]) -> dict[str, Any]:
    status = entry.get("status", {})
    if status.get("status_str") == "error":
        failed = [data for name, data in status.get("messages", []) if name == "execution_error"]
        cause = failed[0].get("exception_message", "").strip() if failed else "see its own log"
        raise LivePhotoError(f"the workflow failed in ComfyUI: {cause}")
    return entry.get("outputs", {})
