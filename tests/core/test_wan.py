"""LivePhoto-Wan2.1's text module, schedule and files, against outputs of the official code and the list of the released tensors."""

import hashlib
import importlib.util
import math
from pathlib import Path

import pytest
import torch

from livephoto_core.checkpoint import save_adapter
from livephoto_core.errors import LivePhotoError
from livephoto_core.model.wan_text import LEVELS, WanTextModule, check_wan_level
from livephoto_core.wan_files import (
    LowRank,
    WanSize,
    check_wan_file,
    merged,
    read_low_rank,
    read_wan,
    text_module,
    text_shapes,
    wan_shapes,
)
from livephoto_core.wan_schedule import ROUNDINGS, frame_timesteps, model_timesteps, wan_sigmas

# by which the official loader knows the released base.safetensors: md5 over its names and shapes
RELEASED = "71bb75b826bdceb62022846bbaabfa9d"
SMALL = WanSize(width=8, feed_forward=16, blocks=2)
LORA_STRENGTH = 1.2


def load_recipe():
    spec = importlib.util.spec_from_file_location("wan_recipe", Path(__file__).parents[1] / "wan_recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = load_recipe()


@pytest.fixture(scope="module")
def golden():
    return recipe.golden()


@pytest.fixture(scope="module")
def weights():
    return recipe.weights()


@pytest.fixture(scope="module")
def text_weights(weights):
    return {name: weights[name] for name in text_shapes()}


@pytest.fixture(scope="module")
def module(text_weights):
    return text_module(text_weights)


@pytest.fixture(scope="module")
def context():
    return recipe.inputs()["input.context"]


def furthest(golden, name, text):
    """The largest difference of a text [1, 512, 4096] to an entry's rows, and to its mean and deviation."""
    found = {
        "rows_0_40": text[0, :40, :256],
        "rows_500_504": text[0, 500:504, :256],
        "mean_std": torch.stack([text.mean(), text.std(correction=0)]),
    }
    difference = max((value - golden[f"{name}.{part}"]).abs().max().item() for part, value in found.items())
    print(f"{name}: {difference:.1e}")
    return difference


def test_recipe_gives_the_weights_and_inputs_of_the_official_run(golden, weights):
    tensors = {**weights, **recipe.lora(), **recipe.inputs()}
    names = recipe.about()["fingerprint_names"]
    assert set(names) == set(tensors)
    found = torch.stack(
        [torch.stack([t.flatten()[0], t.flatten()[-1], t.mean(), t.std(correction=0)]) for t in map(tensors.get, names)]
    )
    assert torch.allclose(found, golden["recipe.fingerprint"], atol=1e-6)


@pytest.mark.parametrize("level", (0, 3, 6))
@torch.no_grad()
def test_text_module_is_the_official_one(golden, module, context, level):
    assert furthest(golden, f"text_reweight.level{level}", module(context, level)) < 1e-5


@torch.no_grad()
def test_merged_lora_is_the_official_one(golden, text_weights, weights, context):
    changes = read_low_rank(recipe.lora(), {name: tuple(weight.shape) for name, weight in weights.items()}, "lora.safetensors")
    assert set(changes) == set(recipe.about()["lora"]["targets"])
    merged_module = text_module(merged(text_weights, changes, LORA_STRENGTH))
    assert furthest(golden, "lora.text_reweight.level3", merged_module(context, 3)) < 1e-5


@torch.no_grad()
def test_every_level_gives_another_text(module, context):
    some = context[:, 30:44]
    texts = [module(some, level) for level in (0, *LEVELS)]
    closest = min((a - b).abs().mean().item() for i, a in enumerate(texts) for b in texts[:i])
    print(f"closest levels: {closest:.1e}")
    assert closest > 1e-2
    # rows behind the prompt change, too
    assert all((text[:, 7:] - some[:, 7:]).abs().mean() > 1e-2 for text in texts)


@pytest.mark.parametrize(("warmup", "gate"), ((-9.0, 0), (0.0, 0), (0.25, 0.25), (3.0, 1)))
def test_gate(warmup, gate):
    with torch.device("meta"):
        module = WanTextModule()
    module.text_reweight.warmup = torch.nn.Parameter(torch.tensor(warmup))
    assert module.text_reweight.gate() == gate


@torch.no_grad()
def test_shut_gate_leaves_the_text_as_it_is(text_weights, context):
    shut = text_module({**text_weights, "text_reweight.warmup": torch.tensor(-9.0)})
    some = context[:, 30:44]
    assert torch.equal(shut(some, 6), some)


@pytest.mark.parametrize("level", (0, 7, 2.5, math.nan, -1))
def test_level_that_is_none_is_refused(level):
    with pytest.raises(LivePhotoError, match="motion intensity must be a whole number from 1 to 6, got"):
        check_wan_level(level)


def test_schedule_is_the_official_one(golden):
    sigmas = wan_sigmas(12)
    assert torch.equal(sigmas[:-1], golden["e2e.sigmas"][:, 1])
    assert torch.equal(sigmas[1:], golden["e2e.sigmas_next"][:, 1])
    assert torch.equal(1000 * sigmas[:-1], golden["e2e.timesteps"])


@pytest.mark.parametrize(
    ("entry", "steps", "rounding"),
    (("e2e", 12, "float32"), ("schedule_bf16.n12", 12, "bfloat16"), ("schedule_bf16.n30", 30, "bfloat16")),
)
def test_timesteps_of_the_frames_are_the_official_ones(golden, entry, steps, rounding):
    noisy = torch.tensor([[0.0, 1, 1, 1, 1]])
    timesteps = frame_timesteps(1000 * wan_sigmas(steps)[:-1], noisy)
    assert torch.equal(model_timesteps(timesteps, ROUNDINGS[rounding]), golden[f"{entry}.timesteps_model"])
    assert torch.equal(wan_sigmas(steps)[:-1], golden[f"{entry}.sigmas"][:, 1])


def test_frames_of_several_clips_and_branches():
    """The branches of the guidance come one after the other, each with all clips."""
    found = frame_timesteps(torch.tensor([10.0, 20, 30, 40]), torch.tensor([[0.0, 1], [1, 0.5]]))
    assert found.tolist() == [[0, 10], [20, 10], [0, 30], [40, 20]]


# files


def test_names_and_shapes_are_those_of_the_release():
    shapes = {**wan_shapes(WanSize()), **text_shapes()}
    assert (len(shapes), len(text_shapes())) == (853, 28)
    assert sum(math.prod(shape) for shape in text_shapes().values()) == 134_348_801
    lines = sorted(line for name, shape in shapes.items() for line in (name, f"{name}:{'_'.join(map(str, shape))}"))
    assert hashlib.md5(",".join(lines).encode()).hexdigest() == RELEASED


def test_small_file_of_the_released_layout_is_split(tmp_path):
    shapes = {**wan_shapes(SMALL), **text_shapes()}
    found = read_wan(recipe.save_zeros(tmp_path / "base.safetensors", shapes))
    assert {name: tuple(tensor.shape) for name, tensor in found.wan.items()} == wan_shapes(SMALL)
    assert {name: tuple(tensor.shape) for name, tensor in found.text.items()} == text_shapes()
    assert text_module(found.text).motion_intensity_embed.weight.dtype == torch.bfloat16


def test_file_of_the_released_size_passes_the_check(tmp_path):
    from livephoto_core.checkpoint import opened

    path = recipe.save_zeros(tmp_path / "base.safetensors", {**wan_shapes(WanSize()), **text_shapes()})
    with opened(path) as file:
        check_wan_file({name: file.get_slice(name) for name in file.keys()}, path)  # noqa: SIM118


WRONG = {
    "missing": ("text_reweight.ln0_1.bias", None, "1 missing: text_reweight.ln0_1.bias [4096]"),
    "extra": ("text_reweight.cross_attn_2.q.bias", (4096,), "1 unexpected: text_reweight.cross_attn_2.q.bias [4096]"),
    "misshapen": (
        "motion_intensity_embed.weight",
        (11, 8192),
        "1 misshapen: motion_intensity_embed.weight [11, 8192], expected [7, 8192]",
    ),
    "missing_of_wan": ("blocks.1.ffn.0.bias", None, "1 missing: blocks.1.ffn.0.bias [16]"),
    "extra_of_wan": ("img_emb.proj.0.bias", (8,), "1 unexpected: img_emb.proj.0.bias [8]"),
    "misshapen_of_wan": ("head.head.weight", (64, 9), "1 misshapen: head.head.weight [64, 9], expected [64, 8]"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_file_with_a_wrong_tensor_is_refused_by_name(tmp_path, fault):
    name, shape, said = WRONG[fault]
    shapes = {**wan_shapes(SMALL), **text_shapes(), name: shape}
    path = recipe.save_zeros(tmp_path / "base.safetensors", {name: shape for name, shape in shapes.items() if shape is not None})
    with pytest.raises(LivePhotoError) as caught:
        read_wan(path)
    print(caught.value)
    assert said in str(caught.value)
    assert "base.safetensors is not a whole LivePhoto-Wan2.1 base file; 1 " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_tensor_of_whole_numbers_is_refused(tmp_path):
    shapes, name = {**wan_shapes(SMALL), **text_shapes()}, "text_reweight.ln0_0.bias"
    with pytest.raises(LivePhotoError, match=f"1 not F16, BF16 or F32: {name} I64"):
        read_wan(recipe.save_zeros(tmp_path / "base.safetensors", shapes, {name: "I64"}))


def test_plain_wan_is_named(tmp_path):
    with pytest.raises(LivePhotoError, match=r"this is plain Wan2\.1, not LivePhoto-Wan2\.1: it lacks the text module; get base"):
        read_wan(recipe.save_zeros(tmp_path / "wan2.1.safetensors", wan_shapes(SMALL)))


def test_other_files_are_named(tmp_path):
    sd15 = {"model.diffusion_model.input_blocks.0.0.weight": (4, 4), "cond_stage_model.x": (4,)}
    with pytest.raises(LivePhotoError, match=r"not LivePhoto-Wan2\.1, it looks like a Stable Diffusion v1 base model: get base"):
        read_wan(recipe.save_zeros(tmp_path / "sd15.safetensors", sd15))
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(LivePhotoError, match=r"get it again|give the path"):
        read_wan(tmp_path / "cut.safetensors")
    with pytest.raises(LivePhotoError, match=r"none\.safetensors does not exist"):
        read_wan(tmp_path / "none.safetensors")


def test_adapter_of_the_other_model_is_named(tmp_path, tiny_adapter):
    save_adapter(tiny_adapter, tmp_path / "live.safetensors")
    said = r"live\.safetensors is not LivePhoto-Wan2\.1, it looks like a LivePhoto adapter: put it in models/livephoto and use Load"
    with pytest.raises(LivePhotoError, match=said):
        read_wan(tmp_path / "live.safetensors")


def test_names_with_a_prefix_are_named(tmp_path):
    """As ComfyUI's Save Model and others write them."""
    shapes = {f"model.diffusion_model.{name}": shape for name, shape in {**wan_shapes(SMALL), **text_shapes()}.items()}
    said = r"another tool has put a prefix before the names .* \(model\.diffusion_model\.\S+, for example\); get base\.safetensors"
    with pytest.raises(LivePhotoError, match=said):
        read_wan(recipe.save_zeros(tmp_path / "base.safetensors", shapes))


# LoRA

SHAPES = {"blocks.0.ffn.2.weight": (6, 4), "text_reweight.cross_attn_0.q.weight": (5, 5), "blocks.0.norm3.weight": (6,)}
SPELLINGS = {
    "plain": "{}.lora_{A}.weight",
    "peft": "{}.lora_{A}.default.weight",
    "prefix": "diffusion_model.{}.lora_{A}.weight",
    "prefix_peft": "diffusion_model.{}.lora_{A}.default.weight",
    "peft_of_another_name": "{}.lora_{A}.stage_2.weight",
    "kohya": "{}.lora_{down}.weight",
    "prefix_kohya": "diffusion_model.{}.lora_{down}.weight",
}


def low_rank(spelling=SPELLINGS["plain"], rank=2, layers=("blocks.0.ffn.2", "text_reweight.cross_attn_0.q")):
    found = {}
    for number, layer in enumerate(layers):
        outputs, inputs = SHAPES.get(f"{layer}.weight", (5, 5))
        generator = torch.Generator().manual_seed(number)
        found[spelling.format(layer, A="A", down="down")] = torch.randn(rank, inputs, generator=generator)
        found[spelling.format(layer, A="B", down="up")] = torch.randn(outputs, rank, generator=generator)
    return found


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_lora_is_read(spelling):
    expected = read_low_rank(low_rank(), SHAPES, "lora")
    tensors = {**low_rank(SPELLINGS[spelling]), "blocks.0.ffn.2.alpha": torch.tensor(1.0)}
    found = read_low_rank(tensors, SHAPES, "lora")
    assert set(found) == set(expected) == {"blocks.0.ffn.2", "text_reweight.cross_attn_0.q"}
    for layer, change in found.items():
        assert torch.equal(change.up, expected[layer].up)
        assert torch.equal(change.down, expected[layer].down)


def test_what_is_no_part_of_a_lora_is_left_out_with_a_warning(caplog):
    others = {"blocks.0.norm3.diff": torch.zeros(6), "blocks.0.ffn.2.diff_b": torch.zeros(6), "a.alpha": torch.tensor(1.0)}
    found = read_low_rank({**others, **low_rank()}, SHAPES, "my.safetensors")
    assert set(found) == {"blocks.0.ffn.2", "text_reweight.cross_attn_0.q"}
    said = "my.safetensors: tensors that are no part of a plain LoRA are left out: 2, blocks.0.norm3.diff for example"
    assert [record.getMessage() for record in caplog.records] == [said]


def test_whole_lora_warns_of_nothing(caplog):
    read_low_rank({**low_rank(), "blocks.0.ffn.2.alpha": torch.tensor(1.0)}, SHAPES, "my.safetensors")
    assert not caplog.records


def test_merging_divides_by_nothing_and_leaves_the_rest():
    weights = {"a.weight": torch.zeros(2, 3, dtype=torch.bfloat16), "b.weight": torch.ones(2)}
    found = merged(weights, {"a": LowRank(torch.ones(2, 4), torch.ones(4, 3))}, 0.5)
    assert found["a.weight"].dtype == torch.bfloat16
    assert torch.equal(found["a.weight"].float(), torch.full((2, 3), 2.0))
    assert found["b.weight"] is weights["b.weight"]
    assert torch.equal(weights["a.weight"], torch.zeros(2, 3, dtype=torch.bfloat16))


BAD_LORAS = {
    "nothing": (low_rank(layers=("lora_unet_down_blocks_0",)), r"my.safetensors matches nothing in LivePhoto-Wan2.1 \(lora_unet"),
    "empty": ({}, "my.safetensors matches nothing in LivePhoto-Wan2.1: choose lora.safetensors"),
    "another_block": (
        low_rank(layers=("blocks.0.ffn.2", "blocks.39.ffn.2")),
        "my.safetensors does not fit the base file; 1 no linear layer of the base: blocks.39.ffn.2: choose",
    ),
    "norm": (
        {
            **low_rank(layers=("blocks.0.ffn.2",)),
            "blocks.0.norm3.lora_A.weight": torch.zeros(2, 6),
            "blocks.0.norm3.lora_B.weight": torch.zeros(6, 2),
        },
        "1 no linear layer of the base: blocks.0.norm3",
    ),
    "half": (
        {key: value for key, value in low_rank().items() if key != "blocks.0.ffn.2.lora_B.weight"},
        "1 without its other half: blocks.0.ffn.2: choose",
    ),
    "misshapen": (
        {**low_rank(), "blocks.0.ffn.2.lora_A.weight": torch.zeros(2, 7)},
        r"1 misshapen: blocks.0.ffn.2 \[6, 7\], expected \[6, 4\]",
    ),
    "two_ranks": ({**low_rank(), "blocks.0.ffn.2.lora_A.weight": torch.zeros(3, 4)}, "1 misshapen: blocks.0.ffn.2"),
    "two_adapters": (
        {**low_rank(SPELLINGS["peft"]), "blocks.0.ffn.2.lora_A.other.weight": torch.zeros(2, 4)},
        "1 given twice: blocks.0.ffn.2: choose",
    ),
    "no_lora": ({"blocks.0.ffn.2.weight": torch.zeros(6, 4)}, "holds blocks.0.ffn.2.weight, which is no part of a plain LoRA"),
    "lokr": ({"blocks.0.ffn.2.lokr_w1": torch.zeros(6, 4)}, "holds blocks.0.ffn.2.lokr_w1, which is no part of a plain LoRA"),
}


@pytest.mark.parametrize("fault", BAD_LORAS)
def test_lora_that_does_not_fit_is_refused(fault):
    tensors, said = BAD_LORAS[fault]
    with pytest.raises(LivePhotoError, match=said) as caught:
        read_low_rank(tensors, SHAPES, "my.safetensors")
    assert "\n" not in str(caught.value)
