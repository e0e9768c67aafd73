"""The image front end against `transformers`, and what is read from files."""

import av
import numpy as np
import pytest
from PIL import Image

from alm_jax.core.errors import DataError
from alm_jax.vision.frontend import ImageFrontend
from alm_jax.vision.io import load_frames, load_image


@pytest.mark.parametrize("shape", [(50, 31), (300, 411), (224, 224)])
def test_the_processor_of_transformers(shape):
    """The same Pillow resize; then float32 rounding of values below 3."""
    processing = pytest.importorskip("transformers.models.blip.image_processing_pil_blip")
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    processor = processing.BlipImageProcessorPil(size={"height": 224, "width": 224})
    expected = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    ours = ImageFrontend().numpy(pixels)
    assert ours.dtype == np.float32 and ours.shape == ImageFrontend().feature_shape
    np.testing.assert_allclose(ours, np.moveaxis(np.asarray(expected), 0, -1), atol=1e-6)


def test_pixels_of_the_wrong_kind():
    for wrong in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(DataError, match="expected uint8"):
            ImageFrontend().numpy(wrong)


def test_images_become_rgb(tmp_path):
    Image.new("L", (3, 2), 7).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png"), np.full((2, 3, 3), 7))
    (tmp_path / "text.png").write_text("no image")
    for name in ("text.png", "absent.png"):
        with pytest.raises(DataError, match=name):
            load_image(tmp_path / name)


def test_frames_of_a_video(tmp_path):
    """Ten frames that grow brighter: the middle ones of two halves, and of five parts (lossy coding: +-4)."""
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for i in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * i + 20, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for count, wanted in ((2, [2, 7]), (5, [1, 3, 5, 7, 9]), (20, np.repeat(np.arange(10), 2))):
        frames = load_frames(path, count)
        assert frames.shape == (count, 32, 32, 3)
        np.testing.assert_allclose(frames.mean((1, 2, 3)), 20 * np.array(wanted) + 20, atol=4)


def test_files_without_frames(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("text.mp4", "absent.mp4"):
        with pytest.raises(DataError, match=name):
            load_frames(tmp_path / name, 2)
