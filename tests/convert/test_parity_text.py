"""Text encoders against `transformers` with random weights, in and out (`tests.convert.parity`)."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.convert import bert, qformer
from alm_jax.convert.hub import resolve
from alm_jax.convert.layouts import LAYOUTS
from alm_jax.convert.load import contents, load
from alm_jax.convert.save import export
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError
from alm_jax.infer.sentences import MINILM, load_sentence_encoder
from alm_jax.models.aligners.qformer import PretrainingConfig, QFormer, QFormerConfig
from alm_jax.models.features import AlignerText
from alm_jax.models.text.bert import Bert, BertConfig, sentence_embedding
from tests.convert.dict_file import DictFile, same_bits
from tests.convert.parity import SIMPLE, assert_close, build, check_pair, randomise, record, state, torch

pytestmark = pytest.mark.torch

IDS = np.random.default_rng(0).integers(2, 40, (2, 9))
MASK = np.array([[1] * 9, [1] * 6 + [0] * 3])
TYPES = np.array([[0] * 4 + [1] * 5] * 2)
SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 12, "attn_implementation": "eager"}
KEY_BIAS = ("*self.key.bias",)  # adds the same to all scores of a query


def settings(model):
    """What `config.json` of PyTorch's model holds."""
    return json.loads(model.config.to_json_string(use_diff=False))


def check(record_property, name, make, pooler, types, pad_id=0):
    """`make(settings)` builds PyTorch's model."""
    theirs = make(SIZES)
    config = BertConfig(**vars(bert.from_hf_config(settings(theirs))) | {"pooler": pooler})
    ids = np.where(MASK, IDS, pad_id)
    arguments = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(MASK)}
    arguments |= {} if types is None else {"token_type_ids": torch.tensor(types)}

    def outputs(model):
        hidden = model(ids, jnp.array(MASK), types)
        return {"hidden": hidden * MASK[..., None]} | ({"pooled": model.pooled(hidden)} if pooler else {})

    def torch_outputs(model):
        out = model(**arguments)
        # What stands at padding is not compared: PyTorch gives the rows of its tables there no gradient.
        hidden = out.last_hidden_state * torch.tensor(MASK)[..., None]
        return {"hidden": hidden} | ({"pooled": out.pooler_output} if pooler else {})

    return check_pair(
        record_property,
        model=name,
        module=Bert,
        config=config,
        table=LAYOUTS["bert_hf"].table(config),
        theirs=theirs,
        ours_out=outputs,
        theirs_out=torch_outputs,
        rebuilt=lambda: make(bert.to_hf_config(config)),
        flat=KEY_BIAS,
    )


def test_a_qformer_begins_as_a_bert():
    """Its text alone is BERT's without token types, its words too; queries have copies of the text's feed-forwards."""
    from transformers import BertConfig as Config
    from transformers import BertForMaskedLM

    theirs = randomise(BertForMaskedLM(Config(**SIZES)).eval())
    torch.nn.init.zeros_(theirs.bert.embeddings.token_type_embeddings.weight)
    sizes = {"hidden": 32, "mlp_dim": 48, "depth": 3, "heads": 4, "vocab_size": 40, "positions": 12, "cross_every": 2}
    config = QFormerConfig(dim=8, out_dim=None, queries=3, **sizes, pretraining=PretrainingConfig(6))
    like = tree.abstract(lambda key: QFormer(config, key))
    given = qformer.from_bert(config)
    sources = [(DictFile(state(theirs)), table) for table in given.tables]
    read = load(tree.flatten(like), sources, init=given.lacks)
    lacking = {path.split(".")[0] for path in tree.flatten(like).keys() - read.keys()}
    assert lacking == {"queries", "audio_norm", "cross", "heads"}
    for path in ("up.kernel", "up.bias", "down.kernel", "down.bias"):
        assert np.array_equal(read[f"blocks.query_mlp.{path}"], read[f"blocks.mlp.{path}"])
    assert np.array_equal(read["blocks.query_mlp_norm.scale"], read["blocks.mlp_norm.scale"])
    ours = tree.unflatten(like, tree.flatten(QFormer(config, jax.random.key(0))) | read)
    text = AlignerText(jnp.array(IDS), jnp.array(MASK == 1))
    hidden = ours.outputs(jnp.zeros((2, 1, 8)), text, "unimodal")[1]
    with torch.no_grad():
        out = theirs(torch.tensor(IDS), torch.tensor(MASK), output_hidden_states=True)
    assert_close(hidden * MASK[..., None], out.hidden_states[-1] * torch.tensor(MASK)[..., None], SIMPLE)
    words = ours.heads.words(hidden, ours.embed)
    assert_close(words * MASK[..., None], out.logits * torch.tensor(MASK)[..., None], SIMPLE)


def test_bert(record_property):
    from transformers import BertConfig as Config
    from transformers import BertModel

    check(record_property, "BERT", lambda told: BertModel(Config(**told)), True, TYPES)


def test_bert_without_pooler(record_property):
    from transformers import BertConfig as Config
    from transformers import BertModel

    make = lambda told: BertModel(Config(**told | {"hidden_act": "gelu_new"}), add_pooling_layer=False)
    check(record_property, "BERT", make, False, None)


def test_roberta(record_property):
    from transformers import RobertaConfig as Config
    from transformers import RobertaModel

    ours = check(record_property, "RoBERTa", lambda told: RobertaModel(Config(**told)), True, None, pad_id=1)
    assert ours.config.position_offset == 2


def test_a_model_for_a_task(record_property):
    """The encoder of a masked language model; its head is left alone."""
    from transformers import BertConfig as Config
    from transformers import BertForMaskedLM

    theirs = BertForMaskedLM(Config(**SIZES))
    config = BertConfig(**vars(bert.from_hf_config(settings(theirs))) | {"pooler": False})
    check_pair(
        record_property,
        model="BERT",
        module=Bert,
        config=config,
        table=LAYOUTS["bert_hf"].table(config),
        theirs=theirs,
        ours_out=lambda model: model(IDS, jnp.array(MASK)),
        theirs_out=lambda model: model.bert(torch.tensor(IDS), torch.tensor(MASK)).last_hidden_state,
        flat=KEY_BIAS,
    )


def test_bert_as_published():
    """`google-bert/bert-base-uncased` names the parts of norms as TensorFlow did; the export names them so again."""
    from transformers import BertConfig as Config
    from transformers import BertForPreTraining

    theirs = BertForPreTraining(Config(**SIZES))
    config, tensors = bert.from_hf_config(settings(theirs)), state(theirs)
    new = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    published = {re.sub(r"LayerNorm\.\w+$", lambda match: new[match[0]], key): tensors[key] for key in tensors}
    assert len(published.keys() - tensors.keys()) == 2 * (1 + 2 * 3 + 1)
    table = LAYOUTS["bert_hf"].table(config)
    style = contents(published, table).style
    ours = tree.flatten(build(Bert, config, published, table))
    back = dict(export(ours, table, style))
    assert same_bits(back, {key: value for key, value in published.items() if key.startswith("bert.")})
    modern = dict(export(ours, table))
    assert same_bits(modern, {key: value for key, value in tensors.items() if key.startswith("bert.")})


def test_sentence_embedding(record_property):
    """Mean pooling and length 1 over an encoder without a pooler, as the sentence encoders are trained."""
    from transformers import BertConfig as Config
    from transformers import BertModel

    make = lambda told: BertModel(Config(**told), add_pooling_layer=False)
    theirs = make(SIZES)
    config = BertConfig(**vars(bert.from_hf_config(settings(theirs))) | {"pooler": False})

    def torch_embedding(model):
        hidden, weight = model(torch.tensor(IDS), torch.tensor(MASK)).last_hidden_state, torch.tensor(MASK)[..., None]
        return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)

    check_pair(
        record_property,
        model="MiniLM sentence encoder",
        module=Bert,
        config=config,
        table=LAYOUTS["bert_hf"].table(config),
        theirs=theirs,
        ours_out=lambda model: {"embedding": sentence_embedding(model(IDS, jnp.array(MASK)), jnp.array(MASK))},
        theirs_out=lambda model: {"embedding": torch_embedding(model)},
        rebuilt=lambda: make(bert.to_hf_config(config)),
        flat=KEY_BIAS,
    )


@pytest.mark.download
def test_minilm(record_property):
    """Sentence embeddings with the published weights, and that near sentences are nearer than others."""
    from transformers import AutoTokenizer, BertModel

    try:
        folder = resolve(MINILM).path
    except CheckpointError as error:
        pytest.skip(str(error))
    theirs, tokenizer = BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = [
        "A dog barks in the distance.",
        "A hound is barking far away.",
        "Rain falls on a tin roof while cars pass.",
    ]
    given = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = theirs(**given).last_hidden_state
    mask = given["attention_mask"].numpy()
    weight = mask[..., None] / mask.sum(1)[:, None, None]
    mean = (hidden.numpy() * weight).sum(1)
    expected = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    embeddings = load_sentence_encoder(MINILM)(texts)
    error = assert_close(embeddings, expected, SIMPLE)
    record(
        record_property,
        model="MiniLM sentence encoder",
        source="transformers.BertModel, published weights",
        errors={"embedding": error},
        directions=("in",),
    )
    likeness = embeddings @ embeddings.T
    assert likeness[0, 1] > 0.6 > 0.4 > likeness[0, 2]
