"""LivePhoto goes with what else patches a MODEL: other packs' attention patches, FreeU, LoRAs, before it and after it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file

from livephoto_core.lora import apply_lora

# as in inside/neighbours.py
SCALE, SHIFT = 1.1, 0.1
STRENGTH = 0.8
PICTURE_TOKENS, PICTURE_WEIGHT = 4, 80.0
LAYERS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "mid_block.attentions.0.proj_in",
    "up_blocks.2.attentions.1.transformer_blocks.0.ff.net.2",
)


@pytest.fixture(scope="module")
def lora(demo, tmp_path_factory):
    """A LoRA for the demo in kohya's naming, which ComfyUI reads for SD1.5."""
    generator, tensors = torch.Generator().manual_seed(5), {}
    for layer in LAYERS:
        weight, name = demo[0].unet.get_submodule(layer).weight, f"lora_unet_{layer.replace('.', '_')}"
        down = torch.randn(2, *weight.shape[1:], generator=generator)
        up = torch.randn(weight.shape[0], 2, *[1] * (weight.ndim - 2), generator=generator)
        tensors |= {f"{name}.lora_down.weight": 0.2 * down, f"{name}.lora_up.weight": 0.2 * up, f"{name}.alpha": torch.tensor(2.0)}
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def results(inside, lora):
    return inside("neighbours", prepare=lambda base: (base / "models" / "loras" / lora.name).write_bytes(lora.read_bytes()))


@pytest.mark.parametrize("name", ["neighbour_before", "neighbour_after"])
def test_attention_patches_of_another_pack(results, demo, replay, name):
    found, (base, adapter) = results(name), demo
    layers = [module for path, module in base.unet.named_modules() if path.endswith(".attn2")]
    handles = [layer.register_forward_hook(lambda module, args, output: output + SHIFT) for layer in layers]
    try:
        difference = replay(found, base.unet, adapter, text=lambda context: SCALE * context)
    finally:
        for handle in handles:
            handle.remove()
    print(f"{name}: {difference:.1e}")
    assert difference < 1e-4
    assert replay(found, base.unet, adapter) > 0.01


def test_attention_patches_before_and_after_give_the_same(results):
    before, after = (results(f"neighbour_{where}")["latents"] for where in ("before", "after"))
    assert torch.allclose(before, after, atol=1e-4)
    assert not torch.allclose(before, results("alone")["latents"], atol=1e-2)


@pytest.mark.parametrize("name", ["couple_before", "couple_after"])
def test_packs_that_widen_the_batch_in_a_cross_attention(results, name):
    assert torch.allclose(results(name)["latents"], results("alone")["latents"], atol=1e-5)


def test_packs_that_call_the_unet_past_its_wrappers_are_named(results):
    found = results("calls_past_wrappers")
    assert found["kind"] == "LivePhotoError"
    assert "DeepCache" in found["message"] and "take it out" in found["message"]


def test_a_clone_on_another_unet_has_motion_modules_too(results):
    found = results("on_another_unet")
    for name in ("latents", "again"):
        assert torch.allclose(found[name], found["expected"], atol=1e-5), name


def test_ipadapter(results, demo, replay):
    found, (base, adapter) = results("ipadapter_before"), demo
    attention = base.unet.mid_block.attentions[0].transformer_blocks[0].attn2

    def add_picture(module, args, output):
        """What the cross-attention onto a picture's keys and values adds."""
        q = module.to_q(args[0])
        picture = torch.randn(2, PICTURE_TOKENS, q.shape[-1], generator=torch.Generator().manual_seed(9))
        q, k, v = (rearrange(part, "... n (h d) -> ... h n d", h=module.heads) for part in (q, *picture))
        seen = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
        return output + PICTURE_WEIGHT * F.linear(seen, module.to_out[0].weight)

    handle = attention.register_forward_hook(add_picture)
    try:
        difference = replay(found, base.unet, adapter)
    finally:
        handle.remove()
    print(f"ipadapter: {difference:.1e}")
    assert difference < 1e-4
    assert replay(found, base.unet, adapter) > 0.01
    assert torch.equal(found["latents"], results("ipadapter_after")["latents"])
    assert torch.allclose(results("ipadapter_of_no_weight")["latents"], results("alone")["latents"], atol=1e-5)


def test_freeu(results):
    before, after = (results(f"freeu_{where}")["latents"] for where in ("before", "after"))
    assert torch.equal(before, after)
    assert not torch.allclose(before, results("alone")["latents"], atol=1e-2)
    assert not torch.allclose(before, results("freeu_without_livephoto")["latents"], atol=1e-2)


def test_lora(results, demo, lora, replay):
    before, after = results("lora_before"), results("lora_after")
    assert torch.equal(before["latents"], after["latents"])
    assert not torch.allclose(before["latents"], results("alone")["latents"], atol=1e-2)
    base, adapter = demo
    changed = copy.copy(base)
    changed.unet = copy.deepcopy(base.unet)
    assert apply_lora(changed, lora, STRENGTH) == len(LAYERS)
    difference = replay(after, changed.unet, adapter)
    print(f"lora: {difference:.1e}")
    assert difference < 1e-4
    assert replay(after, base.unet, adapter) > 0.01


def test_lora_leaves_nothing(results):
    assert torch.equal(results("lora_taken_off_again")["latents"], results("alone")["latents"])


def test_clones_share_the_adapters_weights(results):
    assert results("clones") == {"same": True, "count": 3}


@pytest.mark.parametrize("kind", ["e4m3fn", "e5m2"])
def test_options_for_unets_of_eight_bits_leave_ours_alone(inside, results, kind):
    found = inside("eight_bits", f"--fp8_{kind}-unet")("demo_clip")
    assert found["dtypes"] == ["torch.float32"] * 2
    assert torch.allclose(found["latents"], results("alone")["latents"], atol=1e-5)
