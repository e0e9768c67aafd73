"""APT's ablation of its aligner (table IX, "Linear"; table X, "MAE" without one): LTU's in the Q-Former's place.

    alm train apt/vicuna_7b_linear --out runs/apt_7b_linear

The features are averaged to 32 tokens, over all frequencies and two neighbours in time, and projected. Such an aligner
reads no text and there is nothing to align before the language model, so the recipe is the last stage of
`apt/vicuna_7b`.
"""

from dataclasses import replace
from math import prod
from pathlib import Path

from alm_jax.core.config import load_config_file
from alm_jax.models.aligners.pooled_linear import PooledLinearConfig
from alm_jax.models.apt import LAYOUT
from alm_jax.train.config import Experiment


def get_config() -> Experiment:
    published = load_config_file(Path(__file__).with_name("vicuna_7b.py")).get_config()
    encoder, decoder = published.model.encoder, published.model.decoder
    times, frequencies = encoder.grid
    # Audio-MAE's patches run through the frequencies first: neighbours in one long row are all frequencies of a time.
    aligner = PooledLinearConfig(encoder.dim, decoder.dim, (1, prod(encoder.grid)), time_pool=frequencies * times // 32)
    return replace(
        published,
        name="apt_vicuna_7b_linear",
        model=replace(published.model, aligner=aligner),
        layout=replace(LAYOUT, aligner_text_tokens=0),
        aligner_tokenizer=None,
        stages=(replace(published.stages[-1], drop=()),),
        weights=published.weights[:1],
    )
