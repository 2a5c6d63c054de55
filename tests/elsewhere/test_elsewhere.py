"""The catalogue's proof for a dozen models of other libraries; `prove.py` runs it for all of them."""

import os

import pytest
import torch
from catalogue import catalogue
from claims import prove

os.environ["HF_HUB_OFFLINE"] = "1"

CHOSEN = [
    "transformers/gpt2",
    "transformers/mixtral",
    "transformers/xlnet",
    "transformers/sam",
    "diffusers/unet-2d-condition",
    "peft/dora",
    "open_clip/clip",
    "segmentation_models_pytorch/pspnet",
    "monai/attention unet",
    "torchaudio/conformer",
    "torch_geometric/rgcn",
    "snntorch/recurrent leaky",
    "spikingjelly/multi-step",
]


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.filterwarnings("ignore")
def test_the_conversion_is_proved(name):
    entry = catalogue()[name]
    if not entry.installed:
        pytest.skip(f"needs {entry.package}: pip install 'pfa-convert[elsewhere]'")
    torch.manual_seed(0)
    line = prove(name, *entry.factory())
    assert line.status == "proved", line
    assert line.by_example >= line.sites and line.applied > 0


def test_the_catalogue_has_ten_libraries():
    packages = {entry.package for entry in catalogue().values()}
    assert len(packages) >= 10 and len(catalogue()) >= 60
