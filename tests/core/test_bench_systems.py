"""Systems that MotionBench can measure beside ours: clips in a folder, diffusers pipelines, ComfyUI workflows."""

import csv
import json
import shutil
import socket
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import torch

from livephoto_core.demo.photos import Photo
from livephoto_core.demo.scenes import render
from livephoto_core.errors import LivePhotoError
from livephoto_core.evaluation import suite as suites
from livephoto_core.evaluation.benching import run_suite
from livephoto_core.evaluation.features import clip_features, consistency, dino_features
from livephoto_core.evaluation.level_values import level_values
from livephoto_core.evaluation.scoring import delivered
from livephoto_core.evaluation.suite import FRAMES, THRESHOLDS, Plan, draw_suite
from livephoto_core.evaluation.system_comfyui import Workflow, comfyui_system, read_workflow
from livephoto_core.evaluation.system_diffusers import diffusers_system
from livephoto_core.evaluation.system_folder import export_suite, folder_system
from livephoto_core.evaluation.systems import Request, still_system
from livephoto_core.media import read_image
from livephoto_core.media_write import write_clip, write_picture


@pytest.fixture(scope="module")
def photos():
    from skimage import data

    pixels = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[:, ::2, ::2].contiguous()
    return [Photo("chelsea", pixels)]


@pytest.fixture
def suite(photos, monkeypatch):
    """A text of one motion, and nothing else."""
    monkeypatch.setitem(suites.PLANS, "tiny", Plan(("pan left",), 1, (), 1))
    return draw_suite(photos, "tiny")


def request(size=64, text="camera pans left", level=5):
    photo = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
    return Request("text-pan_left-0-trained", photo, text, level, 7)


@pytest.mark.parametrize("speed", [0.15, 0.3])
def test_the_suites_levels_do_not_go_by_a_systems_size(suite, speed):
    """But for what shrinking a picture smooths. A larger one of the same motion is less alike from frame to frame."""
    scene = replace(suite.text[0].clip.scene, motion="pan left")
    small, large = (render(scene, speed, FRAMES, side) for side in (64, 256))
    system = still_system()
    shrunk, own = replace(system, size=256), replace(system, size=256, thresholds=list(THRESHOLDS))
    assert abs(delivered(large, shrunk) - delivered(small, system)) <= 1
    assert delivered(large, own) > max(delivered(large, shrunk), delivered(small, system))


def test_export_and_clips_in_a_folder(suite, tmp_path):
    system = replace(still_system(), size=128)
    assert export_suite(suite, tmp_path / "todo", system) == 3
    with (tmp_path / "todo" / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == [case.text for case in suite.text]
    assert {row["frames"] for row in rows} == {str(FRAMES)} and all(1 <= int(row["level"]) <= 10 for row in rows)
    assert read_image(tmp_path / "todo" / rows[0]["photo"]).shape == (3, 128, 128)
    assert json.loads((tmp_path / "todo" / "suite.json").read_text())["fingerprint"] == suite.fingerprint
    with pytest.raises(LivePhotoError, match="not empty"):
        export_suite(suite, tmp_path / "todo", system)

    clips = tmp_path / "clips"
    clips.mkdir()
    frames = suite.text[0].clip.frames
    first, second, third = (case.name for case in suite.text)
    write_clip(frames, clips / f"{first}.webp")
    write_clip(frames, clips / f"{second}.mp4")
    with pytest.raises(LivePhotoError, match=r"cannot read .*suite\.json.*copy the suite\.json that livephoto bench export wrote"):
        folder_system(clips, suite)
    shutil.copy(tmp_path / "todo" / "suite.json", clips)
    with pytest.raises(LivePhotoError, match=f"1 of 3 clips .* the first is {third}"):
        folder_system(clips, suite)
    with pytest.raises(LivePhotoError, match=f"made for the suite tiny {suite.fingerprint}, this is tiny 0123.*the same --suite"):
        folder_system(clips, replace(suite, fingerprint="0123"))
    (clips / third).mkdir()
    for number, frame in enumerate(frames):
        write_picture(frame, clips / third / f"{number}.png")
    assert folder_system(clips, suite).size == 128, "the limits are of photos as large"
    result = run_suite(folder_system(clips, suite), suite)
    assert [row.seen for row in result.rows] == ["pan left"] * 3
    assert [row.level for row in result.rows] == [int(row["level"]) for row in rows]


@pytest.fixture(scope="module")
def pipeline_folder(tiny_base_folder, tmp_path_factory):
    """A PIA pipeline of random weights, as small as it goes."""
    from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, PIAPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    pipeline = PIAPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        text_encoder=CLIPTextModel.from_pretrained(tiny_base_folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(tiny_base_folder / "tokenizer"),
        unet=UNet2DConditionModel(
            block_out_channels=(8, 8),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=24,
            attention_head_dim=4,
            norm_num_groups=2,
        ),
        motion_adapter=MotionAdapter(
            block_out_channels=(8, 8),
            motion_layers_per_block=1,
            motion_norm_num_groups=2,
            motion_num_attention_heads=2,
            conv_in_channels=9,
        ),
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )
    folder = tmp_path_factory.mktemp("pia") / "pia"
    pipeline.save_pretrained(folder)
    return folder


def test_a_diffusers_pipeline(pipeline_folder):
    inputs = {"num_inference_steps": 1, "guidance_scale": 1.0}
    system = diffusers_system(pipeline_folder, 64, "cpu", "motion_scale", level_values("0,0,0,0,1,1,1,2,2,2"), inputs)
    first, again = (system.animate([request()])[0] for _ in range(2))
    assert system.name == "PIAPipeline pia" and first.shape == (FRAMES, 3, 64, 64)
    assert torch.equal(first, again), "the seed decides"
    assert first.min() >= 0 and first.max() <= 1
    with pytest.raises(LivePhotoError, match="no input 'speed'"):
        diffusers_system(pipeline_folder, 64, "cpu", "speed", level_values(None), {})


def test_a_folder_that_is_no_pipeline(tmp_path):
    with pytest.raises(LivePhotoError, match=r"model_index\.json"):
        diffusers_system(tmp_path, 64, "cpu", None, level_values(None), {})
    (tmp_path / "model_index.json").write_text('{"_class_name": "PIAPipeline", "vae": ["diffusers", "AutoencoderKL"]}')
    with pytest.raises(LivePhotoError, match="cannot load"):
        diffusers_system(tmp_path, 64, "cpu", None, level_values(None), {})


def test_level_values():
    assert level_values(None) == list(range(1, 11))
    for text in ("1,2", "a,b,c,d,e,f,g,h,i,j", "1,2,3,4,5,6,7,8,9,nan"):
        with pytest.raises(LivePhotoError):
            level_values(text)


GRAPH = {
    "2": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 0]}},
}
PLACES = ["photo=2.image", "text=6.text"]


def test_workflows_are_checked_before_anything_runs(tmp_path):
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(GRAPH))
    assert read_workflow(path, PLACES, "2") == Workflow(GRAPH, {"photo": ("2", "image"), "text": ("6", "text")}, "2")
    for places in (["photo=2.image"], [*PLACES, "seed=9.seed"], [*PLACES, "size=2.image"]):
        with pytest.raises(LivePhotoError):
            read_workflow(path, places, None)
    with pytest.raises(LivePhotoError, match="no node '30'"):
        read_workflow(path, PLACES, "30")
    path.write_text(json.dumps({"nodes": [], "links": []}))
    with pytest.raises(LivePhotoError, match="Export"):
        read_workflow(path, PLACES, None)


def test_no_comfyui_answers():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    workflow = Workflow(GRAPH, {"photo": ("2", "image"), "text": ("6", "text")})
    with pytest.raises(LivePhotoError, match="no ComfyUI answers"):
        comfyui_system(url, workflow, 64, level_values(None)).animate([request()])
    with pytest.raises(LivePhotoError, match="no address"):
        comfyui_system("127.0.0.1:8188", workflow, 64, level_values(None))


def test_another_server_is_no_comfyui():
    class Page(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_):
            """Not among the tests' output."""

    workflow = Workflow(GRAPH, {"photo": ("2", "image"), "text": ("6", "text")})
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.handle_request).start()
        with pytest.raises(LivePhotoError, match="is no ComfyUI"):
            comfyui_system(f"http://127.0.0.1:{server.server_port}", workflow, 64, level_values(None)).animate([request()])
    with pytest.raises(LivePhotoError, match="no ComfyUI answers"):
        comfyui_system("http://127.0.0.1:81x", workflow, 64, level_values(None)).animate([request()])


def test_feature_scores(suite, tiny_base_folder, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 8, "image_size": 32, "patch_size": 8}
    config = CLIPVisionConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    frames = torch.rand(FRAMES, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for features in (dino_features(tiny_base_folder / "image_encoder", "cpu"), clip_features(tmp_path / "clip", "cpu")):
        assert consistency(features(frames[:1].expand(FRAMES, -1, -1, -1))) == pytest.approx(100, abs=1e-3)
        assert consistency(features(frames)) < 100
    with pytest.raises(LivePhotoError, match="cannot load"):
        dino_features(tmp_path, "cpu")
    with pytest.raises(LivePhotoError, match=r"lacks [0-9]+ weights"):
        clip_features(tiny_base_folder / "image_encoder", "cpu")
    with pytest.raises(LivePhotoError, match="no encoder of pictures"):
        dino_features(tiny_base_folder / "text_encoder", "cpu")
    scorers = {"DINO score": lambda clip: consistency(dino_features(tiny_base_folder / "image_encoder", "cpu")(clip))}
    result = run_suite(still_system(), replace(suite, text=suite.text[:1]), scorers)
    assert result.rows[0].scores["DINO score"] == pytest.approx(100, abs=1e-3)
