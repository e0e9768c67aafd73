"""Sound files, resampling and log-mel front ends."""

from alm_jax.audio.frontend import KaldiFbank, LibrosaLogMel, WhisperLogMel
from alm_jax.audio.fusion import fused_log_mel
from alm_jax.audio.io import AudioInfo, audio_info, load_audio, write_audio
from alm_jax.audio.resample import resample

__all__ = [
    "AudioInfo",
    "KaldiFbank",
    "LibrosaLogMel",
    "WhisperLogMel",
    "audio_info",
    "fused_log_mel",
    "load_audio",
    "resample",
    "write_audio",
]
