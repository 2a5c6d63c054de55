"""What only a converted model's root does: it loads checkpoints of wrapped models, and is pickled whole."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torchvision
from harness import error_below
from torch import nn

from pfa_convert import UserError, convert, couple, load, revert, save


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.Linear(4, 3)

    def forward(self, x):
        return self.module(x)


def prefixed(state, prefix):
    result = type(state)((f"{prefix}{key}", value + 1) for key, value in state.items())
    result._metadata = {f"{prefix}{key}".rstrip("."): value for key, value in state._metadata.items()}
    return result


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("of", ["plain", "converted"])
def test_a_checkpoint_of_a_wrapped_model_loads(prefix, of):
    plain = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model = convert(plain, "fa")
    state = {"plain": plain, "converted": copy.deepcopy(model)}[of].state_dict()
    assert str(model.load_state_dict(prefixed(state, prefix))) == "<All keys matched successfully>"
    for key, value in state.items():
        assert torch.equal(dict(model.state_dict())[key], value + 1), key


def test_a_checkpoint_with_a_compiled_part_loads():
    model = convert(nn.Sequential(nn.Sequential(nn.Linear(4, 3))), "fa")
    state = {key.replace("0.0.", "0._orig_mod.0."): value + 1 for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert torch.equal(model[0][0].bias, state["0._orig_mod.0.bias"])


def test_a_model_with_a_submodule_of_that_name_loads_its_own_checkpoint_and_a_wrapped_one_no_more():
    model = convert(Inner(), "fa")
    model.load_state_dict({key: value + 1 for key, value in model.state_dict().items()})
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({f"module.{key}": value for key, value in model.state_dict().items()})


def test_a_checkpoint_that_does_not_fit_is_refused_as_ever():
    model = convert(nn.Sequential(nn.Linear(4, 3)), "fa")
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({"module.1.weight": torch.zeros(3, 4)})


def test_a_saved_file_of_a_compiled_model_loads(tmp_path):
    model = convert(torchvision.models.squeezenet1_1(), "fa")
    save(torch.compile(model), tmp_path / "model.safetensors", "torchvision/squeezenet1_1")
    again = load(tmp_path / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_a_coupled_model_is_pickled_and_copied_without_its_optimizer(tmp_path):
    model = convert(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), "pfa")
    couple(model, torch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.randn(5, 4)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(error_below(again, x), error_below(model, x))
        assert again.conversion == model.conversion
        couple(again, torch.optim.SGD(again.parameters(), lr=0.1))


def test_a_model_whose_modules_apply_weights_themselves_is_pickled_into_another_process(tmp_path):
    torch.manual_seed(0)
    attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    wrapped = torchvision.models.vision_transformer.MLP(8, [6, 8])
    model, x = convert(nn.Sequential(attention, wrapped), "kp"), torch.randn(2, 3, 8)
    torch.save((model, x, error_below(model, x)), tmp_path / "model.pt")
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "model, x, below = torch.load(sys.argv[1], weights_only=False)\n"
        "x.requires_grad_(); model(x).sum().backward()\n"
        "print((x.grad - below).abs().max().item() < 1e-6, len(model.conversion.sites))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"True {len(model.conversion.sites)}\n", done.stderr


def test_a_timm_model_whose_attention_applies_a_bias_of_its_own_is_pickled():
    import timm

    model = convert(timm.create_model("beit_base_patch16_224", depth=1, embed_dim=32, num_heads=2), "fa")
    again, x = pickle.loads(pickle.dumps(model)), torch.randn(1, 3, 224, 224)
    model.eval(), again.eval()
    assert torch.equal(error_below(again, x), error_below(model, x))
    again.reset_classifier(3)
    assert again.conversion.sites[-1].weight_shape == (3, 32)


def test_revert_leaves_nothing_of_the_root():
    plain = nn.Sequential(nn.Linear(4, 3))
    back = revert(convert(plain, "fa"))
    assert vars(back).keys() == vars(plain).keys() and type(back) is nn.Sequential
    with pytest.raises(UserError):
        revert(back)
