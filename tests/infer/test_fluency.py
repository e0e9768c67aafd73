"""FENSE's detector against PyTorch: random weights in the layout of its authors' files."""

import numpy as np
import pytest

from alm_jax.core.errors import CheckpointError
from alm_jax.infer.fluency import load_error_detector
from tests.infer.test_sentences import SIZES, TEXTS, word_piece

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def written(folder):
    """A detector in a file, and PyTorch's probabilities of an error in `TEXTS`."""
    from transformers import BertConfig, BertModel

    tokenizer = word_piece(folder, "[CLS]", "[SEP]", "[PAD]")
    torch.manual_seed(0)
    sizes = SIZES | {"hidden_size": 128, "max_position_embeddings": 64}  # two heads of 64, as in every BERT of theirs
    encoder = BertModel(BertConfig(vocab_size=tokenizer.get_vocab_size(), **sizes)).eval()
    clf = torch.nn.Linear(128, 5)
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *clf.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape))
    state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    state |= {f"clf.{key}": value for key, value in clf.state_dict().items()}
    torch.save({"model_type": "some/bert", "num_classes": 5, "state_dict": state}, folder / "echecker.ckpt")
    expected = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        ids = ids if len(ids) <= 64 else ids[:63] + ids[-1:]
        with torch.no_grad():
            logits = clf(encoder(torch.tensor([ids])).last_hidden_state[:, 0])
        expected.append(torch.sigmoid(logits)[0, -1].item())
    return np.array(expected)


def test_probabilities_of_an_error(tmp_path):
    expected = written(tmp_path)
    errors = load_error_detector(str(tmp_path / "echecker.ckpt"))
    np.testing.assert_allclose(errors(TEXTS, batch_size=3), expected, atol=1e-5)  # float32, sums in another order
    assert np.ptp(expected) > 0.01


def test_what_is_refused(tmp_path):
    written(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"The detector reads with some/bert's: put its vocab\.txt beside it"):
        load_error_detector(str(tmp_path / "echecker.ckpt"))
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="is no detector of FENSE's"):
        load_error_detector(str(tmp_path / "other.ckpt"))
