"""Muon: what a step is, and that a run with it goes on from where it was."""

import pytest
import torch

from livephoto_core.training.muon import ADAMW_RMS, MuonAdamW, is_hidden_matrix, orthogonalised

RATE = 1e-2


def parameters(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return made


@pytest.mark.parametrize("shape", [(32, 32), (24, 96), (96, 24)])
def test_all_directions_of_a_matrix_come_out_alike(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # a hundredfold between the strongest and the weakest direction
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, -2, len(s))) @ v
    found = orthogonalised(matrix)
    assert found.shape == matrix.shape
    strengths = torch.linalg.svdvals(found)
    assert strengths.min() > 0.2 and strengths.max() < 1.3
    assert torch.linalg.svdvals(u.T @ found @ v.T - torch.diag((u.T @ found @ v.T).diag())).max() < 1e-3, "turned"


def test_a_step_is_as_long_as_the_rate_says_and_goes_down():
    (weight,) = parameters((48, 96))
    before, gradient = weight.detach().clone(), weight.grad.clone()
    MuonAdamW([{"params": [weight], "orthogonal": True}], lr=RATE, weight_decay=0).step()
    step = weight.detach() - before
    assert step.square().mean().sqrt() == pytest.approx(ADAMW_RMS * RATE, rel=0.15)
    assert (step * gradient).sum() < 0


def test_a_kernel_is_a_matrix_of_its_outputs():
    kernel, matrix = parameters((32, 24, 3, 3))[0], parameters((32, 216))[0]
    with torch.no_grad():
        matrix.copy_(kernel.flatten(1))
    matrix.grad = kernel.grad.flatten(1)
    for parameter in (kernel, matrix):
        optimizer = MuonAdamW([{"params": [parameter], "orthogonal": True}], lr=RATE)
        optimizer.step()
        optimizer.step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_other_groups_are_adamws():
    ours, theirs = parameters((8, 20), (20,)), parameters((8, 20), (20,))
    (beside,) = parameters((32, 32), seed=1)
    mixed = MuonAdamW([{"params": ours, "orthogonal": False}, {"params": [beside], "orthogonal": True}], lr=RATE, fused=True)
    plain = torch.optim.AdamW(theirs, lr=RATE)
    for optimizer in (mixed, plain, mixed, plain):
        optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
    assert len(mixed.param_groups) == 2


@pytest.mark.parametrize("orthogonal", [False, True])
def test_a_loss_scaler_changes_no_step_and_skips_what_overflows(orthogonal):
    (plain,), (scaled,) = parameters((32, 32)), parameters((32, 32))
    MuonAdamW([{"params": [plain], "orthogonal": orthogonal}], lr=RATE).step()
    optimizer = MuonAdamW([{"params": [scaled], "orthogonal": orthogonal}], lr=RATE, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    # gradients as a scaled loss makes them
    scaled.grad = scaler.scale(scaled.grad)
    scaler.step(optimizer)
    scaler.update()
    assert torch.allclose(plain, scaled, atol=1e-6)
    before = scaled.detach().clone()
    scaled.grad = torch.full_like(scaled, torch.inf)
    scaler.step(optimizer)
    assert torch.equal(scaled, before), "went along an infinite gradient"


def test_only_matrices_of_hidden_layers_are_taken():
    wide = torch.zeros(64, 32, 3, 3)
    assert is_hidden_matrix("unet.mid_block.resnets.0.conv1.weight", wide)
    assert is_hidden_matrix("adapter.motion.down_blocks.0.proj_in.weight", torch.zeros(64, 64))
    for name in ("unet.conv_in.weight", "unet.conv_out.weight", "adapter.stem.conv.weight", "text_encoder.embedding.weight"):
        assert not is_hidden_matrix(name, wide)
    assert not is_hidden_matrix("unet.mid_block.resnets.0.norm1.weight", torch.zeros(64))
    assert not is_hidden_matrix("adapter.content.mid_block.to_offset.weight", torch.zeros(12, 64))
