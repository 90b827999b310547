import json, os, subprocess, sys
import torch
from livephoto_core.media_write import write_clip

def test_two(tmp_path, tiny_base_folder, tiny_adapter_file):
    clips = tmp_path / "clips"; clips.mkdir()
    for i in range(12): write_clip(torch.rand(3, 3, 32, 32), clips / f"{i}.webp")
    (clips/"c.csv").write_text("path,caption\n" + "".join(f"{i}.webp,snow falls\n" for i in range(12)))
    def go(data):
        c = tmp_path / "r.yaml"
        c.write_text(json.dumps({"base": str(tiny_base_folder), "out": str(tmp_path/"o"), "start_adapter": str(tiny_adapter_file), "data": {"path": data, "held_out": 1}, "steps": 1, "batch": 2}))
        return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "livephoto_core.cli", "train", str(c)], env={**os.environ, "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True, timeout=200)
    bad = go(str(tmp_path/"none"))
    print(bad.stderr[-1500:])
    assert bad.returncode
    done = go(str(clips))
    print(done.stdout, done.stderr[-1500:])
    assert done.returncode == 0 and (tmp_path/"o/adapter.safetensors").exists()
    assert done.stdout.count("no clip skipped") == 1
