"""ComfyUI-LivePhoto: the entry point that ComfyUI calls."""


# help pages and translations; ComfyUI looks for them under the folder's name
WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The pack as ComfyUI's extension; imported here, so that tools may look at this folder without ComfyUI."""
    from .nodes import LivePhotoExtension

    return LivePhotoExtension()
