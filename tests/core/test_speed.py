"""The benchmark's command at a tiny size: it writes a whole JSON and a table, or one line about what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def measured(folder, *options):
    command = [sys.executable, "-m", "benchmarks.speed", "-o", str(folder), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


def test_benchmark_at_a_tiny_size(tmp_path):
    tiny = ("--channels", "32,32,32,32", "--sizes", "64", "--frames", "2", "--rounds", "1", "--device", "cpu")
    done = measured(tmp_path / "out", *tiny, "--cfg", "2", "--parts", "steps,ssim")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "speed.json").read_text())
    [entry] = report["steps"]
    systems = entry["systems"]
    assert list(systems) == ["plain", "animatediff", "pia", "livephoto"]
    assert all(found["seconds"]["median"] > 0 and 0 < found["share_of_peak"] < 1 for found in systems.values())
    assert systems["plain"]["flops"] < systems["animatediff"]["flops"] < systems["pia"]["flops"]
    assert all(entry["difference"] < 1e-4 for entry in report["ssim"])
    table = (tmp_path / "out" / "speed.md").read_text()
    assert "| 64x64x2, cfg 2, fp32, widths 32/32/32/32 | PIA (diffusers) |" in table
    assert report["machine"]["torch"] in table


def test_benchmark_refuses_what_it_cannot_measure(tmp_path):
    done = measured(tmp_path, "--channels", "32,40,32,32")
    assert done.returncode == 2
    assert done.stderr == "benchmarks.speed: --channels is (32, 40, 32, 32): give four multiples of 32\n"
    assert not list(tmp_path.iterdir())
