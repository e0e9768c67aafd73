"""Greedy transcription against `generate` of `transformers`."""

import numpy as np
import pytest

from alm_jax.convert.layouts import LAYOUTS
from alm_jax.convert.whisper import seq2seq_to_hf_config
from alm_jax.core.errors import UsageError
from alm_jax.infer.transcribe import transcribe
from alm_jax.models.decoders.whisper import WhisperDecoderConfig, WhisperSeq2Seq, WhisperSeq2SeqConfig
from alm_jax.models.encoders.whisper import WhisperConfig
from tests.convert.parity import build, randomise, state, torch

pytestmark = pytest.mark.torch

CONFIG = WhisperSeq2SeqConfig(
    WhisperConfig(mels=8, dim=32, heads=4, depth=1, positions=12),
    WhisperDecoderConfig(vocab_size=20, dim=32, heads=4, depth=2, positions=16),
)
PROMPT, EOS, NEW = (1, 2), 0, 9
MEL = np.random.default_rng(0).standard_normal((6, 24, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def theirs():
    from transformers import WhisperConfig as Config
    from transformers import WhisperForConditionalGeneration

    torch.manual_seed(1)
    ids = {"pad_token_id": EOS, "eos_token_id": EOS, "bos_token_id": 1, "decoder_start_token_id": 1}
    model = WhisperForConditionalGeneration(Config(**seq2seq_to_hf_config(CONFIG), **ids, begin_suppress_tokens=None))
    return randomise(model.eval(), std=0.5)


@pytest.fixture(scope="module")
def ours(theirs):
    return build(WhisperSeq2Seq, CONFIG, state(theirs), LAYOUTS["whisper_seq2seq_hf"].table(CONFIG))


@pytest.mark.parametrize("suppress, first", [((), ()), ((3, 5, 7), (0, 11))])
def test_the_same_ids(ours, theirs, suppress, first):
    from transformers.generation import GenerationMixin

    rules = {"suppress_tokens": list(suppress) or None, "begin_suppress_tokens": list(first) or None}
    expected = GenerationMixin.generate(  # Whisper's own adds language and timestamp rules
        theirs,
        torch.tensor(MEL).transpose(1, 2),
        decoder_input_ids=torch.tensor([PROMPT] * len(MEL)),
        max_new_tokens=NEW,
        do_sample=False,
        num_beams=1,
        **rules,
    ).numpy()[:, len(PROMPT) :]
    expected = [row[: np.argmax(np.append(row, EOS) == EOS)].tolist() for row in expected]
    options = {"eos_id": EOS, "max_new_tokens": NEW, "suppress": suppress, "suppress_first": first}
    texts = transcribe(ours, MEL, PROMPT, **options)
    assert texts == expected
    assert len({len(text) for text in texts}) > 1  # some end before others
    assert transcribe(ours, MEL[3:4], PROMPT, **options) == texts[3:4]


@pytest.mark.parametrize("prompt, new", [((), 4), (PROMPT, 15)])
def test_what_does_not_fit_is_refused(ours, prompt, new):
    with pytest.raises(UsageError, match="at most 16 in all"):
        transcribe(ours, MEL, prompt, eos_id=EOS, max_new_tokens=new)
