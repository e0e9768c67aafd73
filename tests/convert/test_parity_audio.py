"""Audio models against PyTorch with random weights, in and out (`tests.convert.parity`).

`transformers` has Whisper and AST. The truth for Audio-MAE and CNN14 is written out here as the official code has it.
"""

import jax
import numpy as np
import pytest

from alm_jax.convert import ast, whisper
from alm_jax.convert.formats import open_tensors
from alm_jax.convert.layouts import LAYOUTS, config_of, detect
from alm_jax.convert.load import load
from alm_jax.convert.save import export, save_safetensors
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError
from alm_jax.models.decoders.whisper import WhisperDecoderConfig, WhisperSeq2Seq, WhisperSeq2SeqConfig
from alm_jax.models.encoders.ast import Ast, AstConfig
from alm_jax.models.encoders.audio_mae import AudioMae, AudioMaeConfig
from alm_jax.models.encoders.cnn14 import Cnn14, Cnn14Config
from alm_jax.models.encoders.whisper import WhisperConfig
from alm_jax.models.registry import CONFIGS, module_of
from tests.convert.parity import DEEP, SIMPLE, assert_close, check_pair, randomise, state, torch

pytestmark = pytest.mark.torch

RNG = np.random.default_rng(0)
MEL = RNG.standard_normal((2, 24, 8)).astype(np.float32)  # Whisper
SPECTROGRAM = RNG.standard_normal((2, 46, 36)).astype(np.float32)  # AST, Audio-MAE
LOG_MEL = RNG.standard_normal((2, 37, 16)).astype(np.float32)  # CNN14
TOKENS = RNG.integers(0, 40, (2, 7))

WHISPER = WhisperSeq2SeqConfig(
    WhisperConfig(mels=8, dim=32, heads=4, depth=2, positions=12),
    WhisperDecoderConfig(vocab_size=40, dim=32, heads=2, depth=3, positions=10),
)
AST = AstConfig(frames=46, mels=36, time_stride=10, frequency_stride=8, dim=32, heads=4, depth=2, mlp_dim=48)


def torch_whisper():
    from transformers import WhisperConfig as Config
    from transformers import WhisperForConditionalGeneration

    settings = whisper.seq2seq_to_hf_config(WHISPER)
    return WhisperForConditionalGeneration(Config(**settings, pad_token_id=0))


def test_whisper(record_property):
    theirs = torch_whisper()
    assert whisper.from_hf_config(theirs.config.to_dict()) == WHISPER
    ours = check_pair(
        record_property,
        model="Whisper",
        module=WhisperSeq2Seq,
        config=WHISPER,
        table=LAYOUTS["whisper_seq2seq_hf"].table(WHISPER),
        theirs=theirs,
        ours_out=lambda model: model(MEL, TOKENS),
        theirs_out=lambda model: (
            model(input_features=torch.tensor(MEL).transpose(1, 2), decoder_input_ids=torch.tensor(TOKENS)).logits
        ),
        rebuilt=torch_whisper,
    )
    tensors = state(theirs)
    assert detect(tensors) == "whisper_hf" and detect(tensors, whole=True) == "whisper_seq2seq_hf"
    _check_decoding(ours)


def _check_decoding(model):
    """Token by token with a cache as all at once: the same float32 sums in another order."""
    audio = model.decoder.audio_kv(model.encoder(MEL).values[0])
    expected = model(MEL, TOKENS)
    prefill, decode = jax.jit(model.decoder.prefill, static_argnames="slots"), jax.jit(model.decoder.decode)
    hidden, cache = prefill(TOKENS[:, :3], audio, slots=8)
    logits = [model.decoder.logits(hidden)]
    for index in (3, 4):
        hidden, cache = decode(TOKENS[:, index : index + 1], audio, cache, index)
        logits.append(model.decoder.logits(hidden))
    hidden, cache = decode(TOKENS[:, 5:], audio, cache, 5)
    logits.append(model.decoder.logits(hidden))
    assert_close(np.concatenate(logits, axis=1), expected, SIMPLE)


def torch_ast(config=AST, classes=5):
    from transformers import ASTConfig, ASTForAudioClassification, ASTModel

    settings = ASTConfig(**ast.to_hf_config(AstConfig(**vars(config) | {"classes": classes})))
    return ASTModel(settings) if classes is None else ASTForAudioClassification(settings)


def test_ast_with_its_classifier(record_property):
    config = AstConfig(**vars(AST) | {"classes": 5})
    theirs = torch_ast()
    assert ast.from_hf_config(theirs.config.to_dict()) == config
    check_pair(
        record_property,
        model="AST with classifier",
        module=Ast,
        config=config,
        table=LAYOUTS["ast_modules"].table(config),
        theirs=theirs,
        ours_out=lambda model: model.classify(SPECTROGRAM),
        theirs_out=lambda model: model(torch.tensor(SPECTROGRAM)).logits,
        rebuilt=torch_ast,
        flat=("*.k_proj.bias",),
    )


def test_ast(record_property):
    theirs = torch_ast(classes=None)
    assert ast.from_hf_config(theirs.config.to_dict()) == AST

    def theirs_out(model):
        found = model(torch.tensor(SPECTROGRAM), output_hidden_states=True)
        taps = {f"tap {tap}": found.hidden_states[tap][:, 2:] for tap in (0, 1)}
        return {"features": found.last_hidden_state[:, 2:], "pooled": found.pooler_output} | taps

    def ours_out(model):
        taps = model(SPECTROGRAM, taps=(0, 1)).values
        outputs = {"features": model(SPECTROGRAM).values[0], "pooled": model.pooled(SPECTROGRAM)}
        return outputs | {f"tap {tap}": taps[tap] for tap in (0, 1)}

    check_pair(
        record_property,
        model="AST",
        module=Ast,
        config=AST,
        table=LAYOUTS["ast_modules"].table(AST),
        theirs=theirs,
        ours_out=ours_out,
        theirs_out=theirs_out,
        rebuilt=lambda: torch_ast(classes=None),
        flat=("*.k_proj.bias",),
    )


def test_ast_files_have_the_published_names(tmp_path):
    """What `transformers` writes, read by us, written again, and read by `transformers`."""
    from transformers import ASTForAudioClassification

    theirs = randomise(torch_ast().eval())
    theirs.save_pretrained(tmp_path / "theirs")
    file = open_tensors(tmp_path / "theirs")
    assert detect(file.keys()) == "ast_hf"
    config = config_of(file, "ast_hf")
    assert config == AstConfig(**vars(AST) | {"classes": 5})
    table = LAYOUTS["ast_hf"].table(config)
    like = tree.abstract(lambda key: Ast(config, key))
    ours = tree.unflatten(like, load(tree.flatten(like), [(file, table)]))
    save_safetensors(tmp_path / "ours", export(tree.flatten(ours), table))
    again = open_tensors(tmp_path / "ours")
    assert set(again.keys()) == set(file.keys())
    assert all(again.read(key).tobytes() == file.read(key).tobytes() for key in file.keys())
    theirs.config.save_pretrained(tmp_path / "ours")
    fresh, info = ASTForAudioClassification.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        assert_close(ours.classify(SPECTROGRAM), fresh.eval()(torch.tensor(SPECTROGRAM)).logits, SIMPLE)


class TimmBlock(torch.nn.Module):
    """`Block` of timm's vision_transformer.py."""

    def __init__(self, dim, heads):
        super().__init__()
        linear = torch.nn.Linear
        self.norm1, self.norm2 = (torch.nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.attn = torch.nn.ModuleDict({"qkv": linear(dim, 3 * dim), "proj": linear(dim, dim)})
        self.mlp = torch.nn.ModuleDict({"fc1": linear(dim, 2 * dim), "fc2": linear(2 * dim, dim)})
        self.heads = heads

    def forward(self, x):
        batch, length, dim = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(batch, length, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.attn["proj"]((weights @ v).transpose(1, 2).reshape(batch, length, dim))
        return x + self.mlp["fc2"](torch.nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


class VisionTransformer(torch.nn.Module):
    """`VisionTransformer` of Audio-MAE's models_vit.py; without `global_pool` the encoder of models_mae.py."""

    def __init__(self, dim, heads, depth, patches, stride, global_pool, classes):
        super().__init__()
        self.patch_embed = torch.nn.ModuleDict({"proj": torch.nn.Conv2d(1, dim, 16, stride)})
        self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, 1 + patches, dim))
        self.blocks = torch.nn.ModuleList(TimmBlock(dim, heads) for _ in range(depth))
        setattr(self, "fc_norm" if global_pool else "norm", torch.nn.LayerNorm(dim, eps=1e-6))
        if classes:
            self.head = torch.nn.Linear(dim, classes)
        else:  # the rest of the autoencoder, a part of it
            self.mask_token = torch.nn.Parameter(torch.zeros(1, 1, dim))
            self.decoder_embed = torch.nn.Linear(dim, dim)

    def forward(self, x):
        x = self.patch_embed["proj"](x[:, None]).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        if hasattr(self, "fc_norm"):
            return {"features": x[:, 1:], "logits": self.head(self.fc_norm(x[:, 1:].mean(1)))}
        return {"features": self.norm(x)[:, 1:], "pooled": self.norm(x)[:, 0]}


@pytest.mark.parametrize("stride, pretrained", [(16, False), (10, False), (16, True)])
def test_audio_mae(record_property, stride, pretrained):
    sizes = {"frames": 46, "mels": 36, "stride": stride, "dim": 32, "heads": 4, "depth": 2, "mlp_dim": 64}
    config = AudioMaeConfig(**sizes, global_pool=not pretrained, classes=None if pretrained else 5)
    patches = int(np.prod(config.grid))
    theirs = VisionTransformer(32, 4, 2, patches, stride, not pretrained, config.classes)

    def ours_out(model):
        last = {"pooled": model.pooled(SPECTROGRAM)} if pretrained else {"logits": model.classify(SPECTROGRAM)}
        return {"features": model(SPECTROGRAM).values[0]} | last

    check_pair(
        record_property,
        model=f"Audio-MAE, {'pretrained' if pretrained else 'fine-tuned'}, stride {stride}",
        module=AudioMae,
        config=config,
        table=LAYOUTS["audio_mae"].table(config),
        theirs=theirs,
        ours_out=ours_out,
        theirs_out=lambda model: model(torch.tensor(SPECTROGRAM)),
    )
    assert detect(state(theirs)) == "audio_mae"


class ConvBlock(torch.nn.Module):
    """`ConvBlock` of the official pytorch/models.py."""

    def __init__(self, features_in, features_out):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(features_in, features_out, 3, padding=1, bias=False)
        self.conv2 = torch.nn.Conv2d(features_out, features_out, 3, padding=1, bias=False)
        self.bn1, self.bn2 = (torch.nn.BatchNorm2d(features_out) for _ in range(2))

    def forward(self, x, pool):
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.nn.functional.avg_pool2d(torch.relu(self.bn2(self.conv2(x))), pool)


class TorchCnn14(torch.nn.Module):
    """`Cnn14` of the official pytorch/models.py from its log-mel on; the constants of its front end lie beside it."""

    def __init__(self, mels, channels, classes):
        super().__init__()
        conv = {name: torch.nn.Conv1d(1, 9, 16, bias=False) for name in ("conv_real", "conv_imag")}
        self.spectrogram_extractor = torch.nn.ModuleDict({"stft": torch.nn.ModuleDict(conv)})
        self.logmel_extractor = torch.nn.ParameterDict({"melW": torch.ones(9, mels)})
        self.bn0 = torch.nn.BatchNorm2d(mels)
        for index, size in enumerate(zip((1, *channels), channels), start=1):
            setattr(self, f"conv_block{index}", ConvBlock(*size))
        self.fc1 = torch.nn.Linear(channels[-1], channels[-1])
        self.fc_audioset = torch.nn.Linear(channels[-1], classes)
        self.depth = len(channels)

    def forward(self, x):
        x = self.bn0(x[:, None].transpose(1, 3)).transpose(1, 3)
        for index in range(1, self.depth + 1):
            x = getattr(self, f"conv_block{index}")(x, 1 if index == self.depth else 2)
        steps = x.mean(3)
        embedding = torch.relu(self.fc1(steps.max(2).values + steps.mean(2)))
        return {"features": steps.transpose(1, 2), "embedding": embedding, "logits": self.fc_audioset(embedding)}


def test_cnn14(record_property):
    config = Cnn14Config(mels=16, channels=(4, 8, 8, 16), classes=5)
    theirs = TorchCnn14(16, config.channels, 5)
    ours = check_pair(
        record_property,
        model="PANNs CNN14",
        module=Cnn14,
        config=config,
        table=LAYOUTS["cnn14"].table(config),
        theirs=theirs,
        ours_out=lambda model: {
            "features": model(LOG_MEL).values[0],
            "embedding": model.pooled(LOG_MEL),
            "logits": model.classify(LOG_MEL),
        },
        theirs_out=lambda model: model(torch.tensor(LOG_MEL)),
        tolerance=DEEP,  # eight convolutions and as many batch norms
    )
    assert detect(state(theirs)) == "cnn14"
    buffers = {path for path, leaf in tree.variables(ours).items() if type(leaf).__name__ == "Buffer"}
    assert len(buffers) == 2 * (1 + 2 * 4)
    assert jax.jit(lambda model: model(LOG_MEL).values)(ours).shape == (1, 2, 37 // 8, 16)


def test_published_sizes():
    """Parameters of the files on the hub; PANNs' are counted without running statistics (Kong et al. 2020)."""
    published = {
        "whisper_seq2seq_tiny": 37_760_640,
        "whisper_seq2seq_base": 72_593_920,
        "whisper_seq2seq_small": 241_734_912,
        "whisper_seq2seq_medium": 763_857_920,
        "whisper_seq2seq_large_v2": 1_543_304_960,
        "whisper_seq2seq_large_v3": 1_543_490_560,
        "whisper_seq2seq_large_v3_turbo": 808_878_080,
        "ast_10_10_0.4593": 86_594_063,
        "cnn14_audioset": 80_753_615,
    }
    for name, count in published.items():
        config = CONFIGS[name]
        leaves = tree.flatten(tree.abstract(lambda key, config=config: module_of(config)(config, key)))
        counted = {path: leaf for path, leaf in leaves.items() if not path.endswith((".mean", ".var"))}
        assert tree.size(counted) == count, name
        if isinstance(config, WhisperSeq2SeqConfig):
            assert whisper.from_hf_config(whisper.seq2seq_to_hf_config(config)) == config


def test_settings_without_a_counterpart():
    wrong = {"d_model": 0, "encoder_layers": "two", "activation_function": "relu", "scale_embedding": True}
    with pytest.raises(CheckpointError) as error:
        whisper.from_hf_config(whisper.seq2seq_to_hf_config(WHISPER) | wrong)
    for part in ("d_model is 0", "encoder_layers is 'two'", "activation_function is 'relu'", "scale_embedding is True"):
        assert part in str(error.value)
    with pytest.raises(CheckpointError, match=r"patch_size is missing; .*qkv_bias is False"):
        ast.from_hf_config({k: v for k, v in ast.to_hf_config(AST).items() if k != "patch_size"} | {"qkv_bias": False})
