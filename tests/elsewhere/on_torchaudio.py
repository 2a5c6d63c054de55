"""torchaudio: recognition, separation and synthesis."""

from __future__ import annotations

import torch
from catalogue import Case, entry


@entry("torchaudio", "conformer")
def conformer() -> Case:
    from torchaudio.models import Conformer

    return Conformer(16, 2, 24, 1, 3, 0.1), (torch.randn(2, 10, 16), torch.tensor([10, 8])), {}


@entry("torchaudio", "emformer")
def emformer() -> Case:
    from torchaudio.models import Emformer

    return (
        Emformer(16, 2, 24, 1, 4, right_context_length=1),
        (torch.randn(2, 9, 16), torch.tensor([8, 8])),
        {},
    )


@entry("torchaudio", "conv-tasnet")
def conv_tasnet() -> Case:
    from torchaudio.models import ConvTasNet

    return ConvTasNet(2, 4, 8, 3, 8, 8, 2, 1), (torch.randn(2, 1, 64),), {}


@entry("torchaudio", "wav2letter")
def wav2letter() -> Case:
    from torchaudio.models import DeepSpeech

    return DeepSpeech(8, 16, 5), (torch.randn(2, 1, 6, 8),), {}


@entry("torchaudio", "wav2vec2")
def wav2vec2() -> Case:
    from torchaudio.models import wav2vec2_model

    model = wav2vec2_model(
        "group_norm", [(8, 5, 4), (8, 3, 2)], False, 16, 0.1, 4, 2, 1, 2, 0.1, 24, 0.1, 0.1, False, 0.0, 5
    )
    return model, (torch.randn(2, 320),), {}


@entry("torchaudio", "wavernn")
def wavernn() -> Case:
    from torchaudio.models import WaveRNN

    model = WaveRNN(
        [2, 2], 8, 4, n_res_block=1, n_rnn=8, n_fc=8, kernel_size=3, n_freq=6, n_hidden=8, n_output=8
    )
    return model, (torch.randn(2, 1, 12), torch.randn(2, 1, 6, 5)), {}


@entry("torchaudio", "tacotron2")
def tacotron2() -> Case:
    from torchaudio.models import Tacotron2

    model = Tacotron2(
        n_mels=6,
        n_symbol=20,
        symbol_embedding_dim=8,
        encoder_embedding_dim=8,
        encoder_n_convolution=1,
        decoder_rnn_dim=8,
        attention_rnn_dim=8,
        attention_hidden_dim=8,
        attention_location_n_filter=4,
        attention_location_kernel_size=3,
        prenet_dim=8,
        postnet_embedding_dim=8,
        postnet_n_convolution=2,
    )
    tokens, lengths = torch.randint(1, 20, (2, 6)), torch.tensor([6, 5])
    return model, (tokens, lengths, torch.randn(2, 6, 4), torch.tensor([4, 4])), {}
