"""LivePhoto through torch.compile as newer ComfyUI uses it."""

import pytest
import torch


@pytest.fixture(scope="module")
def found(inside):
    return inside("compiled")("one_after_the_other")


@pytest.mark.parametrize("name", ["strong", "weak", "windows"])
def test_a_compiled_unet_is_not_taken_for_another_models(found, name):
    assert torch.allclose(found[f"{name} compiled"], found[name], atol=1e-4)


def test_the_cases_differ(found):
    assert (found["strong"] - found["weak"]).abs().max() > 0.1
