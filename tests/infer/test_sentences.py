"""Sentence embeddings against mean pooling in PyTorch, from a folder as `sentence-transformers` writes it."""

import json

import numpy as np
import pytest

from alm_jax.core.errors import CheckpointError
from alm_jax.infer.sentences import load_sentence_encoder

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

TEXTS = ["a dog barks", "rain falls on a tin roof while cars pass in the distance", "", "a dog " * 40]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def word_piece(folder, opening, closing, pad):
    """A tokenizer over the words of `TEXTS`; `folder` gets its files."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # The ids of padding are those of the published models: 0 in BERT, 1 in RoBERTa.
    specials = [pad, opening] if pad == "[PAD]" else [opening, pad]
    trainer = trainers.WordPieceTrainer(special_tokens=[*specials, closing, "[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in (opening, closing)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{opening} $A {closing}", special_tokens=ids)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"cls_token": opening, "sep_token": closing, "pad_token": pad}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return tokenizer


def written(folder, kind):
    """A model with random weights in a folder, and PyTorch's embeddings of `TEXTS`."""
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    if kind == "bert":
        tokenizer = word_piece(folder, "[CLS]", "[SEP]", "[PAD]")
        make, options = BertModel, {"max_position_embeddings": 64}
        config = BertConfig
    else:
        tokenizer = word_piece(folder, "<s>", "</s>", "<pad>")
        make, options = RobertaModel, {"max_position_embeddings": 66, "type_vocab_size": 1}
        config = RobertaConfig
    torch.manual_seed(0)
    model = make(config(vocab_size=tokenizer.get_vocab_size(), **SIZES, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    modes = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(modes))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48, "do_lower_case": False}))
    expected = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        ids = ids if len(ids) <= 48 else ids[:47] + ids[-1:]
        with torch.no_grad():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        expected.append(torch.nn.functional.normalize(mean, dim=0).numpy())
    return np.stack(expected)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_mean_pooling(tmp_path, kind):
    expected = written(tmp_path, kind)
    encode = load_sentence_encoder(str(tmp_path))
    assert encode.max_tokens == 48
    embeddings = encode(TEXTS, batch_size=3)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)  # float32, sums in another order
    np.testing.assert_allclose(encode(TEXTS[:1]), embeddings[:1], atol=1e-6)
    assert encode([]).shape == (0, 16)


def test_without_a_limit_a_text_is_cut_to_the_table(tmp_path):
    written(tmp_path, "roberta")
    (tmp_path / "sentence_bert_config.json").unlink()
    encode = load_sentence_encoder(str(tmp_path))
    assert encode.max_tokens == 64  # of 66 rows two are never a token's
    assert np.isfinite(encode(TEXTS)).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "texts are pooled by pooling_mode_cls_token; exp"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "max_seq_length is 'long'; expected a number"),
        ("config.json", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("tokenizer.json", None, "no tokenizer.json"),
    ],
)
def test_bad_folders(tmp_path, name, content, message):
    written(tmp_path, "bert")
    path = tmp_path / name
    if content is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | content | {"pooling_mode_mean_tokens": False}))
    with pytest.raises(Exception, match=message) as info:
        load_sentence_encoder(str(tmp_path))
    assert "\n" not in str(info.value)


def test_another_model(tmp_path):
    from safetensors.numpy import save_file

    arrays = {
        "h.0.attn.c_attn.weight": np.zeros((2, 6)),
        "h.0.mlp.c_fc.weight": np.zeros((2, 8)),
        "wpe.weight": [[0.0]],
    }
    save_file({name: np.float32(value) for name, value in arrays.items()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has the layout gpt2_hf; expected a text encoder \(bert_hf\)"):
        load_sentence_encoder(str(tmp_path))
