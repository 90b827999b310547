"""Finds the installed ComfyUI and runs it: scripts inside its python, and its server."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

ROOT = Path(os.path.abspath(__file__)).parents[2]
PACK = "ComfyUI-LivePhoto"
OPTIONS = ("--cpu", "--use-pytorch-cross-attention", "--disable-api-nodes")
FOLDERS = ("custom_nodes", "input", "output", "user", "temp", "models/checkpoints", "models/livephoto", "models/loras")
PYTHONS = ("bin/python", "Scripts/python.exe")


class NoComfyUI(Exception):
    """There is none on this machine."""


@dataclass(frozen=True)
class ComfyUI:
    """An installation: its folder and the python that runs it."""

    path: Path
    python: Path


def find() -> ComfyUI:
    """The ComfyUI to test against.

    Raises:
        NoComfyUI: none found.
        FileNotFoundError: COMFYUI_PATH or COMFYUI_PYTHON names what is not there.
    """
    if named := os.environ.get("COMFYUI_PATH"):
        places = [Path(named).expanduser().absolute()]
        if not _is_comfyui(places[0]):
            raise FileNotFoundError(f"COMFYUI_PATH is {named}, where no ComfyUI lies")
    else:
        installed = [ROOT.parent.parent] if ROOT.parent.name == "custom_nodes" else []
        places = [*installed, Path("~/comfy/ComfyUI").expanduser()]
    path = next((place for place in places if _is_comfyui(place)), None)
    if path is None:
        raise NoComfyUI(f"none in {' or '.join(map(str, places))}; set COMFYUI_PATH to its folder")
    return ComfyUI(path, _python_of(path))


def _is_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy").is_dir()


def _python_of(path: Path) -> Path:
    if named := os.environ.get("COMFYUI_PYTHON"):
        if not shutil.which(named):
            raise FileNotFoundError(f"COMFYUI_PYTHON is {named}, which cannot be run")
        return Path(shutil.which(named))
    folders = path / "venv", path / ".venv", path.parent / "venv"
    for python in (folder / name for folder in folders for name in PYTHONS):
        if python.is_file():
            return python
    raise NoComfyUI(f"{path} has no venv of its own; set COMFYUI_PYTHON to the python that runs it")


def make_base(base: Path) -> Path:
    """Fill a folder for ComfyUI's --base-directory: the pack in its custom_nodes, the other folders empty."""
    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    pack = base / "custom_nodes" / PACK
    try:
        pack.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        # where links need privileges
        shutil.copytree(ROOT, pack, ignore=shutil.ignore_patterns(".*", "out", "runs", "data", "tests", "__pycache__"))
    return base


def _options(base: Path, more: tuple[str, ...]) -> list[str]:
    return [*OPTIONS, "--base-directory", str(base), "--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}", *more]


def _environment() -> dict[str, str]:
    """Ours, less what would let ComfyUI's python see the repository or this process's packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


class Results:
    """What the cases of a script returned: each a dict of tensors and plain values."""

    def __init__(self, folder: Path):
        self.values = json.loads((folder / "values.json").read_text(encoding="utf-8"))
        self.tensors = load_file(folder / "tensors.safetensors")

    def __call__(self, case: str) -> dict[str, Any]:
        if error := self.values[case].get("traceback"):
            raise AssertionError(f"{case} failed inside ComfyUI:\n{error}")
        mark = f"{case}/"
        tensors = {name.removeprefix(mark): tensor for name, tensor in self.tensors.items() if name.startswith(mark)}
        return {**self.values[case], **tensors}


def run_inside(comfyui: ComfyUI, script: str, base: Path, out: Path, *options: str, timeout: float = 280) -> Results:
    """Run the cases of inside/SCRIPT.py with ComfyUI's python.

    Raises:
        AssertionError: the script itself did not run; with the end of what it printed.
    """
    run = Path(os.path.abspath(__file__)).parent / "inside" / "run.py"
    command = [comfyui.python, run, comfyui.path, script, out, *_options(base, options)]
    log = out / "log.txt"
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            command, env=_environment(), cwd=base, stdout=file, stderr=subprocess.STDOUT, timeout=timeout, check=False
        )
    if done.returncode:
        raise AssertionError(f"inside/{script}.py ended with {done.returncode}:\n{_end_of(log)}")
    return Results(out)


def _end_of(log: Path, characters: int = 4000) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-characters:]


@dataclass(frozen=True)
class Run:
    """A graph that ran: the outputs of its nodes, the nodes that did not need to run, and the first error, if any.

    outputs: {node id: {"images": [{"filename", "subfolder", "type"}], ...}}.
    error: {"node_id", "node_type", "exception_type", "exception_message", ...} or None.
    """

    outputs: dict[str, Any]
    cached: frozenset[str]
    error: dict[str, Any] | None


class Refused(Exception):
    """The server did not take a graph; `answer` says why."""

    def __init__(self, answer: dict[str, Any]):
        super().__init__(json.dumps(answer, indent=1))
        self.answer = answer


class Messages:
    """What a server sends to one of its clients over a websocket, in the order in which it comes: pairs of kind and data.

    Previews have the kind "preview" and their bytes as data.
    """

    def __init__(self, port: int, timeout: float = 120):
        self.client = uuid.uuid4().hex
        self._socket = socket.create_connection(("127.0.0.1", port), timeout)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            f"GET /ws?clientId={self.client} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        )
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self._stream = self._socket.makefile("rb")
        head = list(iter(lambda: self._stream.readline().strip(), b""))
        if b"101" not in head[0]:
            raise AssertionError(f"no websocket: {head[0]!r}")

    def __enter__(self) -> Messages:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stream.close()
        self._socket.close()

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        while True:
            # RFC 6455; a server masks nothing, and this one sends each message in one piece
            first, second = self._stream.read(2)
            length = second & 127
            if extended := {126: 2, 127: 8}.get(length):
                length = int.from_bytes(self._stream.read(extended), "big")
            payload = self._stream.read(length)
            if first & 15 == 1:
                message = json.loads(payload)
                yield message["type"], message.get("data")
            elif first & 15 == 2:
                yield "preview", payload


class Server:
    """A running ComfyUI with a base directory of its own."""

    def __init__(self, comfyui: ComfyUI, base: Path, timeout: float = 200):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.base, self._port, self._log = f"http://127.0.0.1:{port}", base, port, base / "server.txt"
        more = "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch", "--preview-method", "latent2rgb"
        options = _options(base, more)
        with self._log.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                [comfyui.python, comfyui.path / "main.py", *options],
                env=_environment(),
                cwd=comfyui.path,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_up(timeout)
        except BaseException:
            self.stop()
            raise

    def _wait_until_up(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while True:
            try:
                self.get("/system_stats")
                return
            except OSError as error:
                if self._process.poll() is not None:
                    raise AssertionError(f"ComfyUI ended with {self._process.returncode}:\n{_end_of(self._log)}") from error
                if time.monotonic() > end:
                    raise AssertionError(f"ComfyUI is not up after {timeout:.0f} s:\n{_end_of(self._log)}") from error
            time.sleep(0.5)

    def stop(self) -> None:
        """End the server."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        """All that the server printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> Any:
        """The JSON behind a GET."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def object_info(self) -> dict[str, Any]:
        """Every node that the server knows, by id."""
        return self.get("/object_info")

    def listen(self) -> Messages:
        """A client's end of a websocket; give its `client` to `queue`."""
        return Messages(self._port)

    def _post(self, path: str, value: dict[str, Any]) -> bytes:
        body, kind = json.dumps(value).encode(), {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, body, kind), timeout=30) as answer:
            return answer.read()

    def queue(self, graph: dict[str, Any], client: str | None = None) -> str:
        """Put a graph (API format) in the queue; returns its id. A client gets messages on its progress.

        Raises:
            Refused: the server found it invalid.
        """
        try:
            return json.loads(self._post("/prompt", {"prompt": graph, **({"client_id": client} if client else {})}))["prompt_id"]
        except urllib.error.HTTPError as error:
            raise Refused(json.load(error)) from error

    def interrupt(self) -> None:
        """As the button does."""
        self._post("/interrupt", {})

    def run(self, graph: dict[str, Any], timeout: float = 250) -> Run:
        """Queue a graph and wait for its end.

        Raises:
            Refused: the server found it invalid.
        """
        prompt, end = self.queue(graph), time.monotonic() + timeout
        while not (history := self.get(f"/history/{prompt}")):
            if time.monotonic() > end:
                raise AssertionError(f"the graph has not ended after {timeout:.0f} s:\n{_end_of(self._log)}")
            if self._process.poll() is not None:
                raise AssertionError(f"ComfyUI ended with {self._process.returncode}:\n{_end_of(self._log)}")
            time.sleep(0.2)
        entry = history[prompt]
        messages = entry["status"]["messages"]
        errors = [detail for kind, detail in messages if kind == "execution_error"]
        cached = (name for kind, detail in messages if kind == "execution_cached" for name in detail["nodes"])
        return Run(entry["outputs"], frozenset(cached), errors[0] if errors else None)

    def files(self, run: Run, node: str) -> list[Path]:
        """The files that an output node wrote."""
        found = []
        for entries in run.outputs.get(node, {}).values():
            for entry in entries if isinstance(entries, list) else []:
                if isinstance(entry, dict) and "filename" in entry:
                    found.append(self.base / entry["type"] / entry["subfolder"] / entry["filename"])
        return found
