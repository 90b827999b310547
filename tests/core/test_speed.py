"""The benchmark's command at a tiny size: it writes a whole JSON and a table, or one line about what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
SYSTEMS = ["plain", "animatediff", "pia", "livephoto"]


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


def test_benchmark_at_a_tiny_size(tmp_path):
    tiny = ("--channels", "64,64,64,64", "--sizes", "64", "--frames", "2", "--rounds", "1", "--clip-steps", "1", "--device", "cpu")
    parts = ("--parts", "steps,memory,clips,training,ssim,demo")
    done = python("-m", "benchmarks.speed", "-o", tmp_path / "out", *tiny, "--cfg", "2", *parts)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "speed.json").read_text())
    [entry] = report["steps"]
    systems = entry["systems"]
    assert list(systems) == SYSTEMS
    assert all(found["seconds"]["median"] > 0 and 0 < found["share_of_peak"] < 1 for found in systems.values())
    assert systems["plain"]["flops"] < systems["animatediff"]["flops"] < systems["pia"]["flops"]
    # a process with torch in it, and none of the memory of the one that measures the others
    assert all(2**26 < found["peak_memory"] < 2**32 for found in systems.values())
    assert systems["plain"]["peak_memory"] < systems["livephoto"]["peak_memory"]
    [clips] = report["clips"]
    assert list(clips["seconds"]) == SYSTEMS[1:] and all(found["median"] > 0 for found in clips["seconds"].values())
    [training] = report["training"]
    assert len(training["systems"]) == 3
    assert all(found["clips_a_second"] > 0 and found["peak_memory"] > 2**26 for found in training["systems"].values())
    for entry in report["ssim"]:
        assert set(entry["difference"]) - {"compiled"} == {"livephoto"} and max(entry["difference"].values()) < 1e-4
    [demo] = report["demo"]
    assert set(demo["seconds"]) == {"fp32", "bf16"} and demo["psnr"]["bf16"] > 40
    table = (tmp_path / "out" / "speed.md").read_text()
    assert "| 64x64x2, cfg 2, fp32, widths 64/64/64/64 | PIA (diffusers) |" in table
    assert "| plain loop, cached latents, 64x64x2, " in table
    assert report["machine"]["torch"] in table


REFUSED = {
    "--channels 64,96,64,64": "--channels is (64, 96, 64, 64): give four multiples of 64",
    "--device tpu9": "cannot use the device 'tpu9'",
    "--device meta": "--device is 'meta': choose cpu or cuda",
    "--precision float16 --parts training": "training is not measured in float16",
    "--cfg 0.5": "--cfg is [0.5]: give numbers from 1",
    "--out FILE/report": "cannot write",
}
ALL = "import json, sys; from benchmarks.speed.__main__ import main; print([main(a) for a in json.loads(sys.argv[1])])"


def test_benchmark_refuses_what_it_cannot_measure(tmp_path):
    (tmp_path / "FILE").touch()
    refused = dict(REFUSED)
    if not torch.cuda.is_available():
        refused["--device cuda"] = "cannot use the device 'cuda'"
    usual = ["-o", str(tmp_path / "out"), "--device", "cpu"]
    given = [[*usual, *options.replace("FILE", str(tmp_path / "FILE")).split()] for options in refused]
    done = python("-c", ALL, json.dumps(given))
    assert done.stdout == f"{[2] * len(refused)}\n"
    lines = done.stderr.splitlines()
    assert len(lines) == len(refused)
    for line, words in zip(lines, refused.values(), strict=True):
        assert line.startswith("benchmarks.speed: ") and words in line
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]
