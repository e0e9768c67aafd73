"""PANNs checkpoints: the official `Cnn14` (`pytorch/models.py`), which carry their front end's constants along."""

from __future__ import annotations

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.rules import LINEAR, VECTOR, Rearrange, Rule, Table
from alm_jax.convert.sizes import count, shape_of
from alm_jax.models.encoders.cnn14 import Cnn14Config

_CONV2D = Rearrange("o i t f -> t f i o")
# Fourier and mel matrices of the front end (`audio.frontend`), and how many batches a batch norm has seen.
_FRONT_END = (
    "spectrogram_extractor.stft.conv_real.weight",
    "spectrogram_extractor.stft.conv_imag.weight",
    "logmel_extractor.melW",
)
_COUNT = "num_batches_tracked"


def official(config: Cnn14Config) -> Table:
    """`conv_block1.conv1.weight`, ..."""
    norms = {"norm": "bn0"}
    rules = []
    for index in range(len(config.channels)):
        ours, theirs = f"blocks.{index}", f"conv_block{index + 1}"
        for half in "12":
            rules.append(Rule(f"{ours}.conv{half}.kernel", f"{theirs}.conv{half}.weight", _CONV2D))
            norms[f"{ours}.norm{half}"] = f"{theirs}.bn{half}"
    leaves = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for ours, theirs in norms.items():
        rules += [Rule(f"{ours}.{leaf}", f"{theirs}.{name}", VECTOR) for leaf, name in leaves.items()]
    dead = (*_FRONT_END, *(f"{theirs}.{_COUNT}" for theirs in norms.values()))
    if config.classes is None:
        return Table(tuple(rules), dead, ignored=("fc1.*", "fc_audioset.*"))
    for ours, theirs in (("embedding", "fc1"), ("head", "fc_audioset")):
        rules.append(Rule(f"{ours}.kernel", f"{theirs}.weight", LINEAR))
        rules.append(Rule(f"{ours}.bias", f"{theirs}.bias", VECTOR))
    return Table(tuple(rules), dead)


def sizes(file: TensorFile) -> Cnn14Config:
    """Sizes read off a file."""
    default = Cnn14Config()
    norm, classes = shape_of(file, r"bn0\.weight$", 1), shape_of(file, r"fc_audioset\.weight$", 2)
    blocks = range(1, count(file.keys(), r"conv_block(\d+)\."))
    convs = [shape_of(file, rf"conv_block{index}\.conv2\.weight$", 4) for index in blocks]
    return Cnn14Config(
        mels=norm[0] if norm else default.mels,
        channels=tuple(conv[0] for conv in convs) if convs and all(convs) else default.channels,
        classes=classes[0] if classes else None,
    )
