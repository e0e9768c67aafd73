"""MS-CLAP: both towers of the official package, the audio tower from the waveform on, clips of several lengths."""

from __future__ import annotations

import json
import re
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.signal import get_window

from alm_jax.audio.frontend import LibrosaLogMel
from alm_jax.convert import clap as tables
from alm_jax.convert.formats import TensorFile, open_tensors
from alm_jax.convert.load import load
from alm_jax.core import tree
from alm_jax.kernels.log_mel.reference import frame, windowed_power
from alm_jax.models.clap import Clap, ClapConfig, last_token, text_batch
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.encoders.htsat import HtsatConfig
from golden.report import TOLERANCE, Computed, Report, error

BEHIND_WAVEFORM = 3e-5  # the fixtures' README, of taps behind a waveform
_FILTERS = "audio_encoder.base.htsat.logmel_extractor.melW"
_POSITIONS = "caption_encoder.base.wpe.weight"


def check(prefix: Path, report: Report) -> None:
    """Compare everything recorded, the stored filters with ours, and the filling up of texts."""
    sizes = json.loads(Path(f"{prefix}_config.json").read_text())
    file = open_tensors(Path(f"{prefix}.safetensors"))
    config = clap_config(sizes, file)
    like = tree.abstract(lambda key: Clap(config, key))
    model = tree.unflatten(like, load(tree.flatten(like), [(file, tables.official(config))]))
    io = dict(np.load(f"{prefix}_io.npz"))
    if _FILTERS in file.keys():
        report.compare(_FILTERS, config.frontend.filters(), file.read(_FILTERS))
    texts = [row[seen == 1] for row, seen in zip(io["text_ids"], io["text_mask"])]
    ids, mask = text_batch(texts, sizes["text_len"])
    report.same("text_ids, filled up by us", ids, io["text_ids"])
    report.same("text_mask, ours", mask, io["text_mask"])
    report.account(
        io, inputs=("s*_raw_int16", "text_ids", "text_mask"), computed=_COMPUTED, results=_Results(sizes, io, model)
    )


def clap_config(c: dict[str, Any], file: TensorFile) -> ClapConfig:
    """Our config of a fixture's sizes; the rows of the position table are those of its weights."""
    audio, front, text = c["htsat"], c["front_end"], c["gpt2"]
    rate = re.search(r"@(\d+)", c["raw"])
    return ClapConfig(
        audio=HtsatConfig(
            mels=front["mel_bins"],
            image=audio["spec_size"],
            patch=audio["patch"],
            stride=audio.get("patch_stride", audio["patch"]),
            embed_dim=audio["embed_dim"],
            depths=tuple(audio["depths"]),
            heads=tuple(audio["num_heads"]),
            window=audio["window_size"],
            mlp_ratio=audio["mlp_ratio"],
            norm_eps=audio["norm_eps"],
            classes=audio["num_classes"],
        ),
        text=Gpt2Config(
            vocab_size=text["vocab"],
            dim=text["hidden"],
            depth=text["layers"],
            heads=text["heads"],
            mlp_dim=4 * text["hidden"],
            positions=file.shape(_POSITIONS)[0],
        ),
        dim=c["d_proj"],
        frontend=LibrosaLogMel(
            sample_rate=int(rate[1]) if rate else LibrosaLogMel.sample_rate,
            filter_rate=front["sample_rate_for_mel"],
            n_fft=front["n_fft"],
            hop=front["hop"],
            num_mels=front["mel_bins"],
            low_freq=front["fmin"],
            high_freq=front["fmax"],
        ),
    )


class _Results:
    """Our side of every recorded array; `s` is the clip's length in the names (`s7_`).

    Of the streams some values alone may be recorded: every n-th or the first, or, where a long clip goes through in
    several windows, those of one window.
    """

    def __init__(self, sizes: dict[str, Any], io: dict[str, np.ndarray], model: Clap):
        self.io, self.model = io, model
        found = re.match(r"int16/(\d+)", sizes["raw"])
        self.peak = float(found[1]) if found else 32767.0
        self.log_mels, self.heard = cache(self._log_mels), cache(self._heard)

    def waves(self, s: str) -> np.ndarray:
        return self.io[f"s{s}_raw_int16"].astype(np.float32) / np.float32(self.peak)

    def frontend(self, s: str) -> LibrosaLogMel:
        """Of clips that went in as they are, or filled up to the model's own length."""
        front, samples = self.model.config.frontend, self.waves(s).shape[1]
        whole = LibrosaLogMel(**vars(front) | {"seconds": None})
        return whole if int(self.io[f"s{s}_n_frames"]) == 1 + samples // front.hop else front

    def _log_mels(self, s: str) -> np.ndarray:
        return np.stack([self.frontend(s).numpy(wave) for wave in self.waves(s)])

    def frames(self, s: str):
        return self.log_mels(s).shape[1]

    def log_mel(self, s: str, start: str = "0", stop: str | None = None):
        return self.log_mels(s)[:, int(start) : stop and int(stop)]

    def power(self, s: str, start: str, stop: str):
        """As the form for accelerators computes it."""
        front, n_fft = self.frontend(s), self.model.config.frontend.n_fft
        waves = np.pad(self.waves(s), ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
        frames = frame(jnp.asarray(waves), n_fft, front.hop, int(stop))
        return windowed_power(frames, get_window("hann", n_fft), n_fft)[:, int(start) :]

    def _heard(self, s: str) -> dict[str, jax.Array]:
        return _heard(self.model, self.log_mels(s))

    def stream(self, s: str, name: str, kind: str = "", size: str = "1"):
        recorded, streams = self.io[f"s{s}_{name}" + (f"_{kind}{size}" if kind else "")], self.heard(s)[name]
        if name == "img":
            streams = streams[..., :: int(size), :: int(size)]
        else:
            streams = streams[:, :, : int(size)] if kind == "first" else streams[:, :, :: int(size)]
        return min(streams, key=lambda stream: error(stream, recorded))

    def steps(self, s: str, stride: str = "1"):
        """The official code writes each step out as often as it has frames."""
        repeated = np.repeat(self.heard(s)["framewise"], 8 * self.model.config.audio.stride, axis=1)
        return repeated[:, :: int(stride)]

    @cached_property
    def read(self) -> dict[str, jax.Array]:
        return _read(self.model, self.io["text_ids"], self.io["text_mask"])

    def place(self):
        return last_token(self.io["text_ids"])


@jax.jit
def _heard(model: Clap, x: jax.Array) -> dict[str, jax.Array]:
    """Frames [B, frames, mels] -> by recorded names the results, and every stream [windows, B, places, width]."""
    encoder = model.audio.encoder
    clips, steps = encoder.classify(x)
    results = {"latent": encoder.pooled(x), "clipwise": clips, "framewise": steps, "embedding": model.encode_audio(x)}
    return results | jax.vmap(_streams, in_axes=(None, 1))(encoder, encoder.windows(x))


@jax.jit
def _read(model: Clap, ids: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """int [B, L] -> hidden states and embeddings of texts, by recorded names."""
    return {"hidden": model.text.hidden(ids, mask), "embedding": model.encode_text(ids, mask)}


def _streams(encoder: Any, x: jax.Array) -> dict[str, jax.Array]:
    """By recorded names: the image [B, edge, edge], and streams [B, places, width]."""
    image = encoder.image(x)
    x = encoder.embed(image)
    grids = {"patch_embed_tok": x}
    for index, stage in enumerate(encoder.stages):
        x = grids[f"layer{index}"] = stage(x)
    grids["norm"] = encoder.norm(x)
    return {"img": image} | {name: y.reshape(len(y), -1, y.shape[-1]) for name, y in grids.items()}


_COMPUTED: list[Computed] = [
    (r"s(\d+)_n_frames", _Results.frames, None),
    (r"s(\d+)_logmel", _Results.log_mel, BEHIND_WAVEFORM),
    (r"s(\d+)_logmel_frames(\d+)_(\d+)_f32", _Results.log_mel, BEHIND_WAVEFORM),
    (r"s(\d+)_spec_frames(\d+)_(\d+)", _Results.power, BEHIND_WAVEFORM),
    (r"s(\d+)_(img|patch_embed_tok|layer\d+|norm)_(stride|first)(\d+)", _Results.stream, BEHIND_WAVEFORM),
    (r"s(\d+)_(img|patch_embed_tok|layer\d+|norm)", _Results.stream, BEHIND_WAVEFORM),
    (r"s(\d+)_latent", lambda r, s: r.heard(s)["latent"], BEHIND_WAVEFORM),
    (r"s(\d+)_clipwise", lambda r, s: r.heard(s)["clipwise"], BEHIND_WAVEFORM),
    (r"s(\d+)_framewise(?:_stride(\d+))?", lambda r, s, n: r.steps(s, n or "1"), BEHIND_WAVEFORM),
    (r"s(\d+)_embedding", lambda r, s: r.heard(s)["embedding"], BEHIND_WAVEFORM),
    (r"text_hidden", lambda r: r.read["hidden"], TOLERANCE),
    (r"text_pool_index", _Results.place, None),
    (r"text_embedding", lambda r: r.read["embedding"], TOLERANCE),
]
