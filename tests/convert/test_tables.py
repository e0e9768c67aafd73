"""Layout tables against recorded official checkpoints and freshly made PyTorch models."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.convert.formats import open_tensors
from alm_jax.convert.layouts import LAYOUTS, detect
from alm_jax.convert.load import check, contents, dead, load
from alm_jax.convert.names import ADAPTER, PLAIN, PUBLISHED, Style, style_of
from alm_jax.convert.peft import from_adapter_config, to_adapter_config
from alm_jax.convert.rules import Table
from alm_jax.convert.save import export, save_safetensors
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError
from alm_jax.models.alm import build
from alm_jax.models.clap import LAION_CLAP_FUSED, Clap, ClapConfig
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.decoders.llama import Llama, LlamaConfig, Lora
from alm_jax.models.decoders.whisper import WhisperDecoderConfig, WhisperSeq2Seq, WhisperSeq2SeqConfig
from alm_jax.models.encoders.ast import Ast, AstConfig
from alm_jax.models.encoders.audio_mae import AudioMae, AudioMaeConfig
from alm_jax.models.encoders.beats import Beats, BeatsConfig
from alm_jax.models.encoders.cav_mae import CavMae, CavMaeConfig
from alm_jax.models.encoders.cnn14 import Cnn14, Cnn14Config
from alm_jax.models.encoders.htsat import Htsat, HtsatConfig
from alm_jax.models.encoders.whisper import Whisper, WhisperConfig
from alm_jax.models.ltu import LORA, ltu
from alm_jax.models.ltu_as import ltu_as
from alm_jax.models.text.bert import BertConfig
from tests.convert.dict_file import DictFile, ShapeFile, same_bits

LLAMA = LlamaConfig(vocab_size=50, dim=16, depth=3, heads=4, kv_heads=2, mlp_dim=24)
WHISPER = WhisperConfig(mels=8, dim=16, heads=2, depth=3, positions=20)
CAV_MAE = CavMaeConfig(frames=32, mels=32, dim=8, heads=2, depth=4, joint_depth=1)
SEQ2SEQ = WhisperSeq2SeqConfig(WHISPER, WhisperDecoderConfig(vocab_size=30, dim=16, heads=2, depth=2, positions=12))
AST = AstConfig(frames=32, mels=32, dim=8, heads=2, depth=2, mlp_dim=16, classes=3)
AUDIO_MAE = AudioMaeConfig(frames=32, mels=32, dim=8, heads=2, depth=2, mlp_dim=16, global_pool=False)
HTSAT = HtsatConfig(mels=8, image=32, embed_dim=8, depths=(4, 2), heads=(2, 4), window=4)
MS_CLAP = ClapConfig(HTSAT, Gpt2Config(vocab_size=30, dim=16, depth=2, heads=2, mlp_dim=64, positions=12), dim=12)
CLAP = replace(LAION_CLAP_FUSED, audio=replace(HTSAT, fusion=True), text=BertConfig(30, 16, 2, 2, 24, 12, 2, 1), dim=12)


def shapes(module, config):
    return tree.flatten(tree.abstract(lambda key: module(config, key)))


def made_up(table, target, seed=0, extra=()):
    """Random tensors for a table: the inverse of random parameters, and dead tensors of width 2."""
    rng = np.random.default_rng(seed)
    arrays = {path: rng.standard_normal(leaf.shape).astype(leaf.dtype) for path, leaf in target.items()}
    unused = {key: rng.standard_normal(2).astype(np.float32) for key in table.dead}
    return arrays, dict(export(arrays, table, PLAIN, unused)) | {key: np.ones(3, np.float32) for key in extra}


def there_and_back(tensors, table, target):
    """Read the tensors, write them again in the style in which they came."""
    file = DictFile(tensors)
    arrays = load(target, [(file, table)])
    assert set(arrays) == set(target)
    return arrays, dict(export(arrays, table, style_of(tensors, table), dead(file, table)))


PARTS = {
    "llama_hf": (Llama, LLAMA, ()),
    "llama_gguf": (Llama, LLAMA, ()),
    "whisper_hf": (Whisper, WHISPER, ("model.decoder.layers.0.fc1.weight", "proj_out.weight")),
    "whisper_openai": (Whisper, WHISPER, ("decoder.ln.weight",)),
    "whisper_ctranslate2": (Whisper, WHISPER, ("decoder/layer_0/ffn/linear_0/weight", "decoder/projection/weight")),
    "whisper_seq2seq_hf": (WhisperSeq2Seq, SEQ2SEQ, ()),
    "whisper_seq2seq_openai": (WhisperSeq2Seq, SEQ2SEQ, ()),
    "whisper_seq2seq_ctranslate2": (WhisperSeq2Seq, SEQ2SEQ, ()),
    "ast_hf": (Ast, AST, ()),
    "ast_modules": (Ast, AST, ()),
    "audio_mae": (AudioMae, AUDIO_MAE, ("decoder_blocks.0.attn.qkv.weight", "mask_token", "fc_norm.weight")),
    "beats": (Beats, BeatsConfig(4, 8, 16, 2, 2, 16, 4, 2, 8), ("predictor.weight", "predictor.bias")),
    "cnn14": (Cnn14, Cnn14Config(mels=8, channels=(4, 8)), ("fc1.weight", "fc_audioset.bias")),
    "htsat": (Htsat, HTSAT, ("audio_encoder.base.htsat.tscam_conv.weight", "caption_encoder.base.wte.weight")),
    "htsat_hf": (Htsat, HTSAT, ("text_model.embeddings.word_embeddings.weight", "logit_scale_a")),
    "msclap": (Clap, MS_CLAP, ()),
    "clap_hf": (Clap, CLAP, ()),
    "cav_mae": (CavMae, CAV_MAE, ("blocks_v.0.norm1.weight", "patch_embed_v.proj.bias", "norm.weight", "mask_token")),
    "ltu": (build, ltu(LLAMA, CAV_MAE), ("model.audio_encoder.blocks_v.0.norm1.weight",)),
}


@pytest.mark.parametrize("name", PARTS)
def test_every_parameter_has_a_key_and_comes_back(name):
    """Random parameters -> tensors -> parameters, the layout found from the keys, other models' keys ignored."""
    module, config, foreign = PARTS[name]
    target, table = shapes(module, config), LAYOUTS[name].table(config)
    arrays, tensors = made_up(table, target, extra=foreign)
    assert detect(tensors, whole=True) == name
    assert detect(tensors) == next((part for part, layout in LAYOUTS.items() if layout.whole == name), name)
    loaded, back = there_and_back(tensors, table, target)
    assert same_bits(loaded, arrays)
    assert same_bits(back, {key: value for key, value in tensors.items() if key not in foreign})


def test_detect_refuses_other_layouts():
    with pytest.raises(CheckpointError, match=r"bert\.layer\.\{0\.\.1\}\.weight, \.\.\.; expected one of ltu"):
        detect(["bert.layer.0.weight", "bert.layer.1.weight"])


def ltu_config(config):
    decoder = LlamaConfig(
        vocab_size=config["vocab_size"],
        dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        lora=Lora(rank=config["lora_r"], alpha=config["lora_alpha"], targets=LORA.targets),
    )
    blocks = config["audio_modality_specific_depth"]
    encoder = CavMaeConfig(
        dim=config["audio_embed_dim"],
        heads=config.get("audio_num_heads", 4),
        depth=12,
        joint_depth=12 - blocks,
        mlp_ratio=config["audio_mlp_ratio"],
    )
    return ltu(decoder, encoder)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["ltu_tiny", "ltu_tiny_c"])
def test_official_ltu_state_dict(golden_ltu, name):
    file = open_tensors(golden_ltu / f"{name}.safetensors")
    tensors = {key: file.read(key) for key in file.keys()}
    config = ltu_config(json.loads((golden_ltu / f"{name}_config.json").read_text()))
    assert detect(file.keys()) == "ltu"
    table = LAYOUTS["ltu"].table(config)
    assert style_of(file.keys(), table) == PUBLISHED
    found = contents(file.keys(), table)
    assert len(found.dead) == 12 * 8 + config.decoder.depth  # two streams' norms a block, one rotary buffer a layer
    arrays, back = there_and_back(tensors, table, shapes(build, config))
    assert same_bits(back, tensors)
    # some values, straight from the names of the official code
    audio, llm, dim = "base_model.model.model.audio_encoder.", "base_model.model.model.", config.encoder.dim
    official = {
        "encoder.blocks.norm1.scale": ("blocks_u.0.norm1_a.weight", "blocks_a.10.norm1.weight"),
        "encoder.blocks.norm2.bias": ("blocks_u.0.norm2_a.bias", "blocks_a.10.norm2.bias"),
        "encoder.blocks.attn.o.bias": ("blocks_u.0.attn.proj.bias", "blocks_a.10.attn.proj.bias"),
    }
    for path, (joint, alone) in official.items():
        np.testing.assert_array_equal(arrays[path][11], tensors[audio + joint])
        np.testing.assert_array_equal(arrays[path][10], tensors[audio + alone])
    qkv = tensors[audio + "blocks_a.3.attn.qkv.weight"]
    np.testing.assert_array_equal(arrays["encoder.blocks.attn.v.kernel"][3], qkv[2 * dim :].T)
    lora = tensors[llm + "layers.1.self_attn.v_proj.lora_B.default.weight"]
    np.testing.assert_array_equal(arrays["decoder.blocks.attn.v.lora_b"][1], lora.T)


@pytest.mark.golden
@pytest.mark.torch
def test_published_layout_in_and_out(golden_ltu):
    """The published file holds LoRA and audio weights; the language model comes from its own checkpoint."""
    pytest.importorskip("torch")
    trained = open_tensors(golden_ltu / "ltu_tiny_c_trained.bin")
    config = ltu_config(json.loads((golden_ltu / "ltu_tiny_c_config.json").read_text()))
    target, table = shapes(build, config), LAYOUTS["ltu"].table(config)
    base = Llama(LlamaConfig(**{**vars(config.decoder), "lora": None}), jax.random.key(0))
    base_file = DictFile(dict(export(tree.flatten(base), LAYOUTS["llama_hf"].table(base.config))), "base")
    with pytest.raises(
        CheckpointError, match=r"no key fills: decoder\.blocks\.attn\.k\.kernel, .*, decoder\.norm\.scale$"
    ):
        check(target, [(trained, table)])
    arrays = load(target, [(trained, table), (base_file, LAYOUTS["llama_hf"].table(config.decoder).under("decoder."))])
    assert set(arrays) == set(target)
    mine, _ = tree.split(arrays, ("encoder.*", "aligner.*", "*.lora_?"))
    back = dict(export(mine, table, style_of(trained.keys(), table), dead(trained, table)))
    assert same_bits(back, {key: trained.read(key) for key in trained.keys()})


@pytest.mark.golden
def test_published_7b_keys_map_onto_the_7b_model(golden_ltu):
    """Names and shapes alone: nothing left over on either side, and no memory."""
    record = json.loads((golden_ltu / "ltu_7b_keys.json").read_text())
    config = ltu(LlamaConfig(lora=LORA))
    target, table = shapes(build, config), LAYOUTS["ltu"].table(config)
    published = ShapeFile(record["published_bin"], path="ltu_ori_paper.bin")
    base = {}
    for key, shape in record["other_peft_names"].items():
        layers = range(32) if ".layers.0." in key else [0]
        for i in layers:
            base[key.replace(".layers.0.", f".layers.{i}.").removeprefix("base_model.model.")] = shape
    language = LAYOUTS["llama_hf"].table(config.decoder).under("decoder.")
    fills = check(target, [(published, table), (ShapeFile(base, path="vicuna"), language)])
    assert set(fills) == set(target)
    found = contents(published.keys(), table)
    assert len(published.tensors) == 376 and not found.unmapped and not found.ignored
    # README of the official code: 93,065,216 trainable values, norms of unused streams included
    count = sum(np.prod(shape) for shape in record["published_bin"].values())
    ours = sum(leaf.size for path, leaf in target.items() if fills[path].file is published)
    assert (count, ours) == (93065216, 93065216 - len(found.dead) * 768)
    with pytest.raises(CheckpointError) as error:
        check(target, [(published, table)])
    unfilled = [path for path in target if fills[path].file is not published]
    assert str(error.value).endswith("parameters that no key fills: " + ", ".join(unfilled))


@pytest.mark.golden
def test_ltu_as_layout(golden_ltu):
    with np.load(golden_ltu / "ltuas_tltr_tiny.npz") as arrays:
        tensors = {"model." + key[2:]: arrays[key] for key in arrays if key.startswith("w:")}
        out_dim, dim = arrays["w:audio_proj.1.weight"].shape
    config = ltu_as(LlamaConfig(50, out_dim, 2, 4, 4, 32, lora=LORA), WhisperConfig(mels=8, dim=dim, heads=2, depth=5))
    assert detect(tensors) == "ltu_as"
    target, table = shapes(build, config), LAYOUTS["ltu_as"].table(config)
    aligner, rest = tree.split(target, ("aligner.*",))
    arrays = load(target, [(DictFile(tensors), table)], init=tuple(rest))
    assert set(arrays) == set(aligner)
    assert same_bits(dict(export(arrays, table)), tensors)
    _, whole = made_up(table, {path: leaf for path, leaf in target.items() if not path.startswith("encoder.")})
    language = {key for key in whole if "audio" not in key and "lora" not in key}
    count = len(whole) - len(language)
    assert count == 160 - 4 * 30  # the published file's 160 tensors have 32 layers of LoRA, these two
    encoder = LAYOUTS["whisper_openai"].table(config.encoder).under("encoder.")
    _, speech = made_up(encoder, {path: leaf for path, leaf in target.items() if path.startswith("encoder.")})
    assert set(load(target, [(DictFile(whole), table), (DictFile(speech), encoder)])) == set(target)


def test_ltu_on_stored_features_has_no_encoder():
    config = ltu(LLAMA, CAV_MAE)
    _, tensors = made_up(LAYOUTS["ltu"].table(config), shapes(build, config))
    alone = type(config)(**vars(config) | {"encoder": None})
    target = shapes(build, alone)
    assert set(load(target, [(DictFile(tensors), LAYOUTS["ltu"].table(alone))])) == set(target)


def test_cav_mae_saved_by_data_parallel():
    target, table = shapes(CavMae, CAV_MAE), LAYOUTS["cav_mae"].table(CAV_MAE)
    _, tensors = made_up(table, target)
    tensors = {"module." + key: value for key, value in tensors.items()}
    assert detect(tensors) == "cav_mae"
    assert same_bits(there_and_back(tensors, table, target)[1], tensors)


def test_gguf_rows_are_put_back_in_order():
    """By llama.cpp's own formula (`permute` of convert_hf_to_gguf.py), heads of query and key apart."""
    target = shapes(Llama, LLAMA)
    plain, hf = made_up(LAYOUTS["llama_hf"].table(LLAMA), target)
    arrays = dict(export(plain, LAYOUTS["llama_gguf"].table(LLAMA)))
    for name, heads in (("q", LLAMA.heads), ("k", LLAMA.kv_heads)):
        w = hf[f"model.layers.1.self_attn.{name}_proj.weight"]
        permuted = w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        np.testing.assert_array_equal(arrays[f"blk.1.attn_{name}.weight"], permuted)


def test_gguf_names_are_llama_cpp_s():
    """The `gguf` package's own map from `transformers` names."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LLAMA.depth)
    keys = {rule.path: rule.names for rule in LAYOUTS["llama_gguf"].table(LLAMA).rules}
    hf = {rule.path: rule.names for rule in LAYOUTS["llama_hf"].table(LLAMA).rules if "lora" not in rule.path}
    assert keys == {
        path: tuple(names.get_name(key, try_suffixes=(".weight",)) for key in theirs) for path, theirs in hf.items()
    }


def test_ctranslate2_packs_as_its_converter_does():
    """By `WhisperLoader` of ctranslate2/converters/transformers.py."""
    target = shapes(Whisper, WHISPER)
    arrays, hf = made_up(LAYOUTS["whisper_hf"].table(WHISPER), target)
    tensors = dict(export(arrays, LAYOUTS["whisper_ctranslate2"].table(WHISPER)))
    expected = {}
    for i in range(WHISPER.depth):
        prefix = f"model.encoder.layers.{i}."
        layer = {key.removeprefix(prefix): value for key, value in hf.items() if key.startswith(prefix)}
        zeros = np.zeros(WHISPER.dim, np.float32)  # of the key projection, which has no bias
        qkv = [layer[f"self_attn.{name}_proj.weight"] for name in "qkv"]
        bias = [layer["self_attn.q_proj.bias"], zeros, layer["self_attn.v_proj.bias"]]
        at = f"encoder/layer_{i}/"
        expected |= {at + "self_attention/linear_0/weight": np.concatenate(qkv)}
        expected |= {at + "self_attention/linear_0/bias": np.concatenate(bias)}
        for theirs, ours in (
            ("self_attention/linear_1", "self_attn.out_proj"),
            ("ffn/linear_0", "fc1"),
            ("ffn/linear_1", "fc2"),
        ):
            expected |= {f"{at}{theirs}/weight": layer[f"{ours}.weight"], f"{at}{theirs}/bias": layer[f"{ours}.bias"]}
        for theirs, ours in (("self_attention", "self_attn_layer_norm"), ("ffn", "final_layer_norm")):
            expected[f"{at}{theirs}/layer_norm/gamma"] = layer[f"{ours}.weight"]
            expected[f"{at}{theirs}/layer_norm/beta"] = layer[f"{ours}.bias"]
    for name in ("conv1", "conv2"):
        expected |= {f"encoder/{name}/{kind}": hf[f"model.encoder.{name}.{kind}"] for kind in ("weight", "bias")}
    expected["encoder/position_encodings/encodings"] = hf["model.encoder.embed_positions.weight"]
    expected["encoder/layer_norm/gamma"] = hf["model.encoder.layer_norm.weight"]
    expected["encoder/layer_norm/beta"] = hf["model.encoder.layer_norm.bias"]
    assert same_bits(tensors, expected)


ADAPTER_CONFIG = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "bias": "none"}


def test_adapter_config():
    lora = from_adapter_config(ADAPTER_CONFIG | {"target_modules": ["v_proj", "q_proj"]})
    assert lora == Lora(8, 16.0, 0.05, ("attn.q", "attn.v"))
    assert from_adapter_config(to_adapter_config(lora)) == lora
    wide = Lora(4, 8.0, 0.0, ("attn.*", "mlp.down"))
    names = ["down_proj", "k_proj", "o_proj", "q_proj", "v_proj"]
    assert to_adapter_config(wide)["target_modules"] == names
    with pytest.raises(CheckpointError) as error:
        odd = {"target_modules": ["c_attn"], "use_dora": True, "bias": "all", "peft_type": "IA3"}
        from_adapter_config({k: v for k, v in ADAPTER_CONFIG.items() if k != "r"} | odd)
    for part in ("use_dora=True", "c_attn", "peft_type='IA3'", "bias='all'", "r is missing"):
        assert part in str(error.value)
    with pytest.raises(CheckpointError, match="no target_modules"):
        from_adapter_config(ADAPTER_CONFIG)


def numpy_state(module):
    return {key: value.detach().numpy().copy() for key, value in module.state_dict().items()}


def torch_llama(**changes):
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig as Config
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    return LlamaForCausalLM(Config(**sizes, num_attention_heads=4, num_key_value_heads=2, **changes))


@pytest.mark.torch
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_llama(tied, tmp_path):
    model = torch_llama(tie_word_embeddings=tied)
    config = LlamaConfig(**vars(LLAMA) | {"tie_embeddings": tied})
    target, table = shapes(Llama, config), LAYOUTS["llama_hf"].table(config)
    for state in (
        numpy_state(model),
        {f"{k}": v for k, v in numpy_state(model).items() if k != "lm_head.weight" or not tied},
    ):
        assert detect(state) == "llama_hf"
        assert same_bits(there_and_back(state, table, target)[1], state)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    file = open_tensors(tmp_path)
    arrays = load(target, [(file, table)])
    out = save_safetensors(tmp_path / "out", export(arrays, table, style_of(file.keys(), table)), shard_bytes=5000)
    again = open_tensors(out)
    assert same_bits({k: again.read(k) for k in again.keys()}, {k: file.read(k) for k in file.keys()})


@pytest.mark.torch
def test_transformers_llama_without_its_head():
    state = numpy_state(torch_llama().model)
    config = LlamaConfig(**vars(LLAMA) | {"tie_embeddings": True})
    table = LAYOUTS["llama_hf"].table(config)
    assert detect(state) == "llama_hf" and style_of(state, table) == Style(bare="model.")
    assert same_bits(there_and_back(state, table, shapes(Llama, config))[1], state)


@pytest.mark.torch
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]])
def test_peft_models_and_adapters(targets, tmp_path):
    """Both key styles of the `peft` package: a wrapped model's own state dict and a saved adapter."""
    peft = pytest.importorskip("peft")
    model = torch_llama()
    options = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    wrapped = peft.get_peft_model(model, options)
    wrapped.save_pretrained(tmp_path)
    lora = from_adapter_config(json.loads((tmp_path / "adapter_config.json").read_text()))
    assert (lora.rank, lora.alpha) == (4, 8)
    config = LlamaConfig(**vars(LLAMA) | {"lora": lora})
    target, table = shapes(Llama, config), LAYOUTS["llama_hf"].table(config)
    state = numpy_state(wrapped)
    assert style_of(state, table) == Style(peft="", adapter="default", base_layer=True)
    arrays, back = there_and_back(state, table, target)
    assert same_bits(back, state)
    adapter = open_tensors(tmp_path / "adapter_model.safetensors")
    assert detect(adapter.keys()) == "llama_lora" and style_of(adapter.keys(), table) == ADAPTER
    base = {key: state[name] for key, name in contents(state, table).mapped.items() if ".lora_" not in key}
    both = load(target, [(DictFile(base), table), (adapter, table)])
    assert same_bits(both, arrays)
    mine, _ = tree.split(arrays, ("*.lora_?",))
    written = dict(export(mine, table, ADAPTER))
    assert same_bits(written, {key: adapter.read(key) for key in adapter.keys()})


@pytest.mark.torch
@pytest.mark.parametrize("part", ["whole", "model", "encoder"])
def test_transformers_whisper(part):
    torch = pytest.importorskip("torch")
    from transformers import WhisperConfig as Config
    from transformers import WhisperForConditionalGeneration

    torch.manual_seed(0)
    small = dict(vocab_size=60, d_model=16, max_source_positions=20, num_mel_bins=8, pad_token_id=0)
    sizes = dict(encoder_layers=3, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
    model = WhisperForConditionalGeneration(Config(**small, **sizes, encoder_ffn_dim=64, decoder_ffn_dim=64))
    model = {"whole": model, "model": model.model, "encoder": model.model.encoder}[part]
    state = numpy_state(model)
    assert detect(state) == "whisper_hf"
    table = LAYOUTS["whisper_hf"].table(WHISPER)
    _, back = there_and_back(state, table, shapes(Whisper, WHISPER))
    prefix = {"whole": "model.encoder.", "model": "encoder.", "encoder": ""}[part]
    assert same_bits(back, {key: value for key, value in state.items() if key.startswith(prefix)})


def test_a_checkpoint_of_another_model_is_one_error():
    _, tensors = made_up(LAYOUTS["whisper_hf"].table(WHISPER), shapes(Whisper, WHISPER))
    with pytest.raises(
        CheckpointError, match=r"unknown keys in memory: model\.encoder\..*no key fills: .*embed\.embedding"
    ):
        check(shapes(Llama, LLAMA), [(DictFile(tensors), LAYOUTS["llama_hf"].table(LLAMA))])


def test_a_lora_checkpoint_does_not_fit_a_model_without_lora():
    config = LlamaConfig(**vars(LLAMA) | {"lora": LORA})
    table = LAYOUTS["llama_hf"].table(config)
    _, tensors = made_up(table, shapes(Llama, config))
    with pytest.raises(
        CheckpointError, match=r"no place in the model: model\.layers\.\{0\.\.2\}\.self_attn\.q_proj\.lora_A"
    ):
        check(shapes(Llama, LLAMA), [(DictFile(tensors), table)])
    check(shapes(Llama, LLAMA), [(DictFile({k: v for k, v in tensors.items() if "lora" not in k}), table)])


def test_dtypes_follow_the_target():
    _, tensors = made_up(LAYOUTS["llama_hf"].table(LLAMA), shapes(Llama, LLAMA))
    target = {p: jax.ShapeDtypeStruct(s.shape, jnp.bfloat16) for p, s in shapes(Llama, LLAMA).items()}
    arrays = load(target, [(DictFile(tensors), LAYOUTS["llama_hf"].table(LLAMA) + Table())])
    assert {x.dtype.name for x in arrays.values()} == {"bfloat16"}
