"""What `transformers` computes with a model's weights, layer by layer, and how far ours is from it.

A stream is the residual stream after a layer, with the model's final norm applied where it has one: that is what our
model gives when it stops after this layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.convert.layouts import LAYOUTS
from alm_jax.convert.load import contents, fold
from alm_jax.convert.save import tensors
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.decoders.whisper import WhisperSeq2SeqConfig
from alm_jax.models.encoders.ast import AstConfig
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.encoders.whisper import WhisperConfig
from alm_jax.models.registry import module_of
from alm_jax.models.text.bert import BertConfig

TOLERANCE = 1e-4  # float32 on both sides, sums in another order, over many layers
_TOKENS = 16  # of a text
_SEED = 0

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Recording:
    """Inputs of a model and what an implementation made of them.

    Attributes:
        inputs, outputs: by name. streams: `{stack: [layers, ...]}`, under our names of the stacks (`blocks`).
    """

    inputs: Arrays
    outputs: Arrays
    streams: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """How models of one class of config are called, here and in `transformers`.

    Attributes:
        inputs: from a config and a random generator.
        ours: from our model and the inputs to outputs.
        stacks: `{stack of ours: (the output whose streams it makes, their layers, their final norm or "")}`.
        layout: of their state dict, in `LAYOUTS`; "" where `transformers` has no such model.
        make: their module from the settings of its `config.json`.
        theirs: from it and the inputs as tensors to outputs.
    """

    inputs: Callable[[Any, np.random.Generator], Arrays]
    ours: Callable[[Any, Arrays], dict[str, Any]]
    stacks: Mapping[str, tuple[str, str, str]]
    layout: str = ""
    make: Callable[[dict[str, Any]], Any] | None = None
    theirs: Callable[[Any, dict[str, Any]], dict[str, Any]] | None = None


def reference(config: Any, arrays: Mapping[str, Any]) -> Recording:
    """What the model of `transformers` makes of random inputs.

    Args:
        config, arrays: of a part; `{path: array}`, read tensor by tensor and cast to float32.

    Raises:
        CheckpointError: PyTorch is not installed, `transformers` has no such model, or it does not take the weights.
    """
    family = family_of(config)
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            "the comparison needs PyTorch: pip install 'alm_jax[torch]', or record it where that is installed (alm "
            "verify --record) and give the --recording here"
        ) from error
    inputs = family.inputs(config, np.random.default_rng(_SEED))
    module = _filled(family, config, arrays)
    streams: dict[str, list[Any]] = {stack: [] for stack in family.stacks}
    for stack, (_, layers, norm) in family.stacks.items():
        after = module.get_submodule(norm) if norm else lambda x: x
        for layer in module.get_submodule(layers):
            layer.register_forward_hook(
                lambda _, __, out, kept=streams[stack], after=after: kept.append(
                    after(out[0] if isinstance(out, tuple) else out)
                )
            )
    with torch.no_grad():
        outputs = family.theirs(module, {name: torch.from_numpy(value) for name, value in inputs.items()})
    return Recording(
        inputs,
        {name: value.numpy() for name, value in outputs.items()},
        {stack: np.stack([value.numpy() for value in kept]) for stack, kept in streams.items()},
    )


def _filled(family: Family, config: Any, arrays: Mapping[str, Any]) -> Any:
    """The module of `transformers` with the weights, in float32."""
    import torch

    layout = LAYOUTS[family.layout]
    module = family.make(layout.settings(config)).eval()
    state = module.state_dict()
    style = contents(state, layout.table(config)).style
    given = {}
    for tensor in tensors(arrays, layout.table(config), style):
        given[tensor.key] = torch.from_numpy(np.array(tensor.read(), np.float32))
    odd = {
        "keys that it lacks": sorted(set(given) - set(state)),
        "keys that nothing fills": sorted(set(state) - set(given)),
        "wrong shapes": [key for key in given if key in state and given[key].shape != state[key].shape],
    }
    if any(odd.values()):
        lines = "; ".join(f"{what}: {', '.join(fold(keys))}" for what, keys in odd.items() if keys)
        raise CheckpointError(f"{type(module).__name__} does not take the weights: {lines}")
    module.load_state_dict(given, assign=True)
    return module


def compare(config: Any, arrays: Mapping[str, Any], recording: Recording) -> Iterator[tuple[str, float]]:
    """(layer or output, error) of our model, in the order of the computation; one at a time.

    An error is max|a - b| / max(1, max|b|); infinite where shapes differ, NaN where either side has one.

    Args:
        arrays: `{path: array}` of the model with this config, in float32.

    Raises:
        CheckpointError: the recording is of another model.
    """
    family, like = family_of(config), tree.abstract(lambda key: module_of(config)(config, key))
    inputs = {name: jnp.asarray(value) for name, value in recording.inputs.items()}
    run = jax.jit(lambda arrays: family.ours(tree.unflatten(like, arrays), inputs))
    _check_recording(recording, config, jax.eval_shape(run, dict(arrays)).keys() if _fits(inputs, config) else ())
    for stack, streams in recording.streams.items():
        for count, stream in enumerate(streams, 1):
            some = {p: leaf[:count] if p.startswith(f"{stack}.") else leaf for p, leaf in arrays.items()}
            yield f"{stack} {count} of {len(streams)}", error(run(some)[family.stacks[stack][0]], stream)
    whole = run(dict(arrays))
    for name, value in recording.outputs.items():
        yield name, error(whole[name], value)


def _fits(inputs: Mapping[str, Any], config: Any) -> bool:
    """Whether recorded inputs are a model's, but for the number of rows and their length."""
    own = family_of(config).inputs(config, np.random.default_rng(_SEED))
    kind = lambda arrays: {name: (value.ndim, value.shape[2:]) for name, value in arrays.items()}
    return kind(own) == kind(inputs)


def _check_recording(recording: Recording, config: Any, outputs: Collection[str]) -> None:
    """Raise CheckpointError if not all that a recording holds is a model's with these outputs."""
    odd = [name for name in recording.streams if name not in family_of(config).stacks]
    odd += [name for name in recording.outputs if name not in outputs]
    if odd or not (recording.streams or recording.outputs):
        raise CheckpointError(
            f"the recording is of another model than this {type(config).__name__}: it has the inputs "
            f"{', '.join(recording.inputs)}, and {', '.join(odd) or 'no outputs'}"
        )


def error(ours: Any, theirs: Any) -> float:
    """max|ours - theirs| / max(1, max|theirs|)."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        return np.inf
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def save_recordings(path: Path, recordings: Mapping[str, Recording]) -> None:
    """Write recordings by part (`""` for a model that is none): an `.npz` of `PART/inputs/NAME` and so on.

    Raises:
        CheckpointError: it cannot be written.
    """
    arrays = {
        f"{part}/{group}/{name}": value
        for part, recording in recordings.items()
        for group, values in vars(recording).items()
        for name, value in values.items()
    }
    try:
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be written: {problem}") from problem


def read_recordings(path: Path) -> dict[str, Recording]:
    """What `save_recordings` wrote, or another program under the same names.

    Raises:
        CheckpointError: it is no such file.
    """
    groups: dict[str, dict[str, Arrays]] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                part, group, key = name.split("/", 2)
                groups.setdefault(part, {"inputs": {}, "outputs": {}, "streams": {}})[group][key] = arrays[name]
    except (OSError, ValueError, KeyError) as problem:
        raise CheckpointError(f"{path}: expected an .npz of PART/inputs/NAME, PART/outputs/NAME, ...") from problem
    return {part: Recording(**found) for part, found in groups.items()}


def in_transformers(config: Any) -> bool:
    """Whether `reference` has the model."""
    return type(config) in FAMILIES and bool(FAMILIES[type(config)].layout)


def family_of(config: Any) -> Family:
    """How models with such a config are called.

    Raises:
        CheckpointError: it is not known.
    """
    if type(config) not in FAMILIES:
        known = ", ".join(sorted(kind.__name__.removesuffix("Config") for kind in FAMILIES))
        name = type(config).__name__.removesuffix("Config")
        raise CheckpointError(f"a {name} cannot be compared; expected one of {known}")
    return FAMILIES[type(config)]


# --- The families -------------------------------------------------------------------------------------------------


def _by_settings(settings: dict[str, Any]) -> Any:
    import transformers

    kind = settings["model_type"]
    config = transformers.AutoConfig.for_model(kind, **{k: v for k, v in settings.items() if k != "model_type"})
    return getattr(transformers, settings["architectures"][0])(config)


def _whisper_encoder(settings: dict[str, Any]) -> Any:
    from transformers.models.whisper.modeling_whisper import WhisperConfig as Config
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(Config(**settings))


def _ids(config: Any, rng: np.random.Generator) -> Arrays:
    length = min(_TOKENS, config.positions - getattr(config, "position_offset", 0))
    return {"ids": rng.integers(2, config.vocab_size, (2, length))}


def _mel(config: WhisperConfig, rng: np.random.Generator) -> Arrays:
    return {"frames": rng.standard_normal((1, 2 * config.positions, config.mels)).astype(np.float32)}


def _mel_and_ids(config: WhisperSeq2SeqConfig, rng: np.random.Generator) -> Arrays:
    return _mel(config.encoder, rng) | {"ids": _ids(config.decoder, rng)["ids"][:1]}


def _spectrogram(config: AstConfig, rng: np.random.Generator) -> Arrays:
    return {"frames": rng.standard_normal((1, config.frames, config.mels)).astype(np.float32)}


def _features(model: Any, inputs: Arrays) -> dict[str, Any]:
    return {"features": model(inputs["frames"]).values[0]}


def _decode(model: Any, inputs: Arrays) -> dict[str, Any]:
    ids = inputs["ids"]
    positions, ones = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape), jnp.ones_like(ids)
    hidden = model(model.embed(ids), positions, ones, ones)
    return {"hidden": hidden, "logits": model.logits(hidden)}


def _transcribe(model: Any, inputs: Arrays) -> dict[str, Any]:
    features = model.encoder(inputs["frames"]).values[0]
    hidden = model.decoder(inputs["ids"], features)
    return {"features": features, "hidden": hidden, "logits": model.decoder.logits(hidden)}


def _ast(model: Any, inputs: Arrays) -> dict[str, Any]:
    pooled = {"pooled": model.pooled(inputs["frames"])}
    return pooled | ({"logits": model.classify(inputs["frames"])} if model.config.classes else {})


def _torch_ast(module: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    base = getattr(module, "audio_spectrogram_transformer", module)
    pooled = {"pooled": base(inputs["frames"]).pooler_output}
    return pooled | ({"logits": module(inputs["frames"]).logits} if base is not module else {})


def _causal(layers: str, norm: str, layout: str) -> Family:
    theirs = lambda module, inputs: {"logits": module(input_ids=inputs["ids"]).logits}
    return Family(_ids, _decode, {"blocks": ("hidden", layers, norm)}, layout, _by_settings, theirs)


FAMILIES: dict[type, Family] = {
    LlamaConfig: _causal("model.layers", "model.norm", "llama_hf"),
    Gpt2Config: _causal("transformer.h", "transformer.ln_f", "gpt2_hf"),
    BertConfig: Family(
        _ids,
        lambda model, inputs: {"hidden": model(inputs["ids"])},
        {"blocks": ("hidden", "encoder.layer", "")},
        "bert_hf",
        _by_settings,
        lambda module, inputs: {"hidden": module(inputs["ids"]).last_hidden_state},
    ),
    WhisperConfig: Family(
        _mel,
        _features,
        {"blocks": ("features", "layers", "layer_norm")},
        "whisper_hf",
        _whisper_encoder,
        lambda module, inputs: {"features": module(inputs["frames"].mT).last_hidden_state},
    ),
    WhisperSeq2SeqConfig: Family(
        _mel_and_ids,
        _transcribe,
        {
            "encoder.blocks": ("features", "model.encoder.layers", "model.encoder.layer_norm"),
            "decoder.blocks": ("hidden", "model.decoder.layers", "model.decoder.layer_norm"),
        },
        "whisper_seq2seq_hf",
        lambda settings: _by_settings(settings | {"pad_token_id": 0}),
        lambda module, inputs: {
            "logits": module(input_features=inputs["frames"].mT, decoder_input_ids=inputs["ids"]).logits
        },
    ),
    AstConfig: Family(_spectrogram, _ast, {}, "ast_modules", _by_settings, _torch_ast),
    # recorded by the code that they come from
    CavMaeConfig: Family(_spectrogram, _features, {"blocks": ("features", "", "")}),
    AudioMaeConfig: Family(_spectrogram, _features, {"blocks": ("features", "", "")}),
}
