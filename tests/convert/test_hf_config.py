"""`config.json` of `transformers`: the published models by name, and what is refused."""

import pytest

from alm_jax.convert import bert, gpt2, llama
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.registry import CONFIGS, module_of
from alm_jax.models.text.bert import BertConfig

MODULES = {LlamaConfig: llama, Gpt2Config: gpt2, BertConfig: bert}
PUBLISHED = {
    "vicuna_7b": 6_738_415_616,
    "vicuna_13b": 13_015_864_320,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3.1_8b": 8_030_261_248,
    "llama3.1_70b": 70_553_706_496,
    "llama3.2_1b": 1_235_814_400,
    "llama3.2_3b": 3_212_749_824,
    "tinyllama_1.1b": 1_100_048_384,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1.7b": 1_711_376_384,
    "qwen2_0.5b": 494_032_768,
    "qwen2_1.5b": 1_543_714_304,
    "qwen2_7b": 7_615_616_512,
    "qwen2.5_0.5b": 494_032_768,
    "qwen2.5_1.5b": 1_543_714_304,
    "qwen2.5_7b": 7_615_616_512,
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "bert_base": 109_482_240,
    "bert_large": 335_141_888,
    "minilm_l6": 22_713_216,
    "roberta_base": 124_645_632,
    "roberta_large": 355_359_744,
}
ROPE = {"rope_theta": 1e4, "factor": 2.0}


def parameters(config):
    return tree.size(tree.flatten(tree.abstract(lambda key: module_of(config)(config, key))))


def test_parameters_of_published_models():
    """Decoders: the totals of the published safetensors files (`total_size` of the index over the bytes of a value).

    Text encoders with the pooler and without the head of their training: `num_parameters()` of BertModel, RobertaModel.
    """
    assert PUBLISHED.keys() == {name for name, config in CONFIGS.items() if type(config) in MODULES}
    assert {name: parameters(CONFIGS[name]) for name in PUBLISHED} == PUBLISHED


@pytest.mark.torch
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_in_transformers(name):
    """The class that `to_hf_config` names has as many parameters, and its `config.json` is read as the same config."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    module = MODULES[type(CONFIGS[name])]
    settings = module.to_hf_config(CONFIGS[name])
    kind = getattr(transformers, settings["architectures"][0])
    config = kind.config_class(**settings)
    with torch.device("meta"):
        assert kind(config).num_parameters() == PUBLISHED[name]
    assert module.from_hf_config(config.to_dict()) == CONFIGS[name] == module.from_hf_config(settings)


@pytest.mark.torch
def test_defaults_of_transformers():
    """What a class of settings has when it is told nothing, where that is a published model."""
    transformers = pytest.importorskip("transformers")
    assert llama.from_hf_config(transformers.LlamaConfig().to_dict()) == CONFIGS["vicuna_7b"]
    assert gpt2.from_hf_config(transformers.GPT2Config().to_dict()) == CONFIGS["gpt2"]
    assert bert.from_hf_config(transformers.BertConfig().to_dict()) == CONFIGS["bert_base"]


@pytest.mark.parametrize("form", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope"])
def test_ropes_that_are_not_supported(form, kind):
    settings = llama.to_hf_config(CONFIGS["tinyllama_1.1b"]) | {form: ROPE | {"rope_type": kind}}
    settings.pop({"rope_scaling": "rope_parameters", "rope_parameters": "rope_scaling"}[form])
    with pytest.raises(CheckpointError, match=f"rope_type is '{kind}'; expected default, linear, llama3$"):
        llama.from_hf_config(settings)
    with pytest.raises(CheckpointError, match=f"rope_type is '{kind}'"):  # as older versions wrote it
        llama.from_hf_config(settings | {form: {"type": kind, "factor": 2.0}})


@pytest.mark.parametrize(
    ("module", "name", "change", "messages"),
    [
        (
            llama,
            "qwen2_7b",
            {
                "rope_parameters": ROPE | {"rope_type": "yarn"},
                "use_sliding_window": True,
                "hidden_act": "gelu",
                "mlp_bias": True,
                "num_hidden_layers": None,
            },
            [
                "rope_type is 'yarn'; expected default, linear, llama3",
                "layers see a sliding window; expected full attention",
                "hidden_act is 'gelu' (expected 'silu')",
                "mlp_bias is True (expected False)",
                "num_hidden_layers is missing",
            ],
        ),
        (
            llama,
            "llama3_8b",
            {
                "model_type": "mistral",
                "layer_types": ["full_attention", "sliding_attention"],
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 0,
                    "factor": 8.0,
                    "partial_rotary_factor": 0.5,
                },
                "num_key_value_heads": 0,
            },
            [
                "model_type is 'mistral'; expected llama or qwen2",
                "layers see a sliding window",
                "rope_theta is 0; expected a number above 0",
                "low_freq_factor is 'missing'",
                "partial_rotary_factor is 0.5; expected 1.0",
                "num_key_value_heads is 0; expected a number above 0",
            ],
        ),
        (
            gpt2,
            "gpt2",
            {"activation_function": "silu", "scale_attn_by_inverse_layer_idx": True, "n_head": -1},
            [
                "activation_function is 'silu'; expected gelu, gelu_new, gelu_pytorch_tanh, relu",
                "scale_attn_by_inverse_layer_idx is True (expected False)",
                "n_head is -1; expected a number above 0",
            ],
        ),
        (
            bert,
            "bert_base",
            {"position_embedding_type": "relative_key", "hidden_act": "swish", "is_decoder": True, "model_type": "xlm"},
            [
                "position_embedding_type is 'relative_key' (expected 'absolute')",
                "hidden_act is 'swish'; expected gelu",
                "is_decoder is True (expected False)",
                "model_type is 'xlm'; expected bert or roberta",
            ],
        ),
    ],
    ids=["qwen2", "llama", "gpt2", "bert"],
)
def test_one_error_lists_all_that_has_no_counterpart(module, name, change, messages):
    with pytest.raises(CheckpointError) as info:
        module.from_hf_config(module.to_hf_config(CONFIGS[name]) | change)
    text = str(info.value)
    assert "\n" not in text
    assert [message for message in messages if message not in text] == []
