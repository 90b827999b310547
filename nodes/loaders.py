"""Loading: a LivePhoto checkpoint from models/livephoto, and the bundled demo model."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import folder_paths
import torch
from comfy_api.latest import io

from ..livephoto_core.checkpoint import load_adapter
from ..livephoto_core.errors import LivePhotoError
from .precision import weight_dtype
from .types import LoadedModel, ModelType

FOLDER = "livephoto"
DTYPES = torch.float16, torch.bfloat16, torch.float32


def register_folder() -> None:
    """Let ComfyUI know of models/livephoto; what extra_model_paths.yaml added to it stays."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    if not extensions:
        folder_paths.folder_names_and_paths[FOLDER] = (paths, set(folder_paths.supported_pt_extensions))


def file_state(path: str | None) -> str:
    """Tells a file's contents from what it held before, without reading it; a file that is not there is empty."""
    if path is None or not Path(path).is_file():
        return ""
    found = Path(path).stat()
    return f"{found.st_mtime_ns} {found.st_size}"


def load(path: Path) -> LoadedModel:
    """A checkpoint in ComfyUI's memory management, with ComfyUI's layers, so that casts and offloading work.

    Raises:
        LivePhotoError: missing, damaged or no LivePhoto checkpoint.
    """
    device = comfy.model_management.get_torch_device()
    dtype = weight_dtype(device, path.stat().st_size // 2 if path.is_file() else 0, DTYPES)
    adapter = load_adapter(path, comfy.ops.manual_cast, dtype)
    patcher = comfy.model_patcher.ModelPatcher(
        adapter, load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )
    return LoadedModel(patcher, path.name)


class LivePhotoModelLoader(io.ComfyNode):
    """A checkpoint from models/livephoto."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoModelLoader",
            display_name="Load LivePhoto Model",
            category="LivePhoto/loaders",
            description="Loads a LivePhoto checkpoint from models/livephoto.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="A LivePhoto checkpoint (.safetensors) in models/livephoto.",
                )
            ],
            outputs=[ModelType.Output(display_name="livephoto_model", tooltip="For Apply LivePhoto and Re-weight Motion Text.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str | None) -> str:
        """Another one when training or `livephoto calibrate` wrote the file anew; a name that comes by a wire is None here."""
        return file_state(folder_paths.get_full_path(FOLDER, model_name) if model_name else None)

    @classmethod
    def execute(cls, model_name: str) -> io.NodeOutput:
        path = folder_paths.get_full_path(FOLDER, model_name)
        if path is None:
            raise LivePhotoError(
                f"models/{FOLDER} has no file {model_name}: put the checkpoint there, reload ComfyUI's page and choose it again"
            )
        return io.NodeOutput(load(Path(path)))


class LivePhotoDemoLoader(io.ComfyNode):
    """The demo model that comes with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoDemoLoader",
            display_name="Load LivePhoto Demo",
            category="LivePhoto/loaders",
            description=(
                "The small model that comes with the pack: nothing to download, runs on a CPU, makes clips of 16 frames of 64x64."
            ),
            outputs=[
                io.Model.Output(tooltip="The demo's UNet; it needs Apply LivePhoto."),
                io.Clip.Output(tooltip="The demo's text encoder; it knows motion words and little else."),
                io.Vae.Output(tooltip="The demo's VAE: 4 pixels a latent pixel."),
                io.ClipVision.Output(tooltip="The demo's patch encoder, for Encode Reference Photo."),
                ModelType.Output(display_name="livephoto_model", tooltip="For Apply LivePhoto and Re-weight Motion Text."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls) -> str:
        """Another one when the demo was trained further and its files were replaced."""
        from . import demo_model

        return " ".join(file_state(str(path)) for path in sorted(demo_model.FOLDER.rglob("*")))

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from . import demo_model

        return io.NodeOutput(
            demo_model.load_model(),
            demo_model.load_clip(),
            demo_model.load_vae(),
            demo_model.DemoClipVision(),
            load(demo_model.FOLDER / "adapter.safetensors"),
        )
