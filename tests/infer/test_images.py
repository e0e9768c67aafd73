"""Questions about pictures and sound together: APT-BLIP-2 at toy size, from `LoadedModel` to AVQA and `alm ask`."""

import wave
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import alm_jax.cli.ask as ask
from alm_jax.cli.main import main
from alm_jax.core import tree
from alm_jax.core.errors import DataError, UsageError
from alm_jax.core.sequence import collate
from alm_jax.data.layout import lay_out_prompt
from alm_jax.data.templates import PLAIN
from alm_jax.eval.avqa import Question, accuracy, choose
from alm_jax.infer.loaded import LoadedModel, Spec
from alm_jax.infer.rank import rank
from alm_jax.infer.sampling import Sampling
from alm_jax.models.alm import build
from alm_jax.models.apt_blip2 import LAYOUT, parts
from tests.models.test_apt_blip2 import CONFIG, LETTERS, OPTIONS
from tests.modules import randomised

RNG = np.random.default_rng(0)
FRAMES = [RNG.integers(0, 256, (12, 10, 3), np.uint8) for _ in range(2)]
SOUND = RNG.uniform(-0.5, 0.5, 12000).astype(np.float32), 32000
CHOICES = ("dog", "rain", "a car")


@pytest.fixture(scope="module")
def model():
    """Weights large enough that every part shows."""
    made = randomised(lambda key: build(CONFIG, key), 0.2)
    spec = Spec(CONFIG, LAYOUT, PLAIN, Sampling())
    return LoadedModel(spec, tree.flatten(made), LETTERS, aligner_tokenizer=LETTERS)


def test_ranking_by_what_is_seen_and_heard(model):
    """As the model itself ranks the row of the published order, `X_image <BOS> <AUDIO> X_audio X_text`."""
    found = model.rank("why", CHOICES, SOUND, images=FRAMES)
    row = lay_out_prompt(parts("why", frames=2), LAYOUT, LETTERS, **OPTIONS)
    batch = collate([row], 32, slots=1, images=2, pad="left")
    batch.audio = jnp.stack([model.encode([SOUND])[0]])
    batch.image = jnp.asarray(model.see(FRAMES))[None]
    reader = tree.abstract(lambda key: build(replace(CONFIG, encoder=None), key))
    held = {path: leaf for path, leaf in model.arrays.items() if not path.startswith("encoder.")}
    means = rank(tree.unflatten(reader, held), batch, [LETTERS.encode_batch(CHOICES)]).mean[0]
    for choice, mean in zip(CHOICES, means):
        assert found[choice] == pytest.approx(mean, abs=1e-5)
    for other in (model.rank("why", CHOICES, SOUND, images=FRAMES[::-1]), model.rank("why", CHOICES, images=FRAMES)):
        assert max(abs(other[choice] - found[choice]) for choice in CHOICES) > 1e-3  # order and sound make a difference
    several = model.rank(
        ["why", "what is there"], CHOICES, [SOUND, None], images=FRAMES
    )  # one padded, one without sound
    assert several[0] == pytest.approx(found, abs=1e-5)


def test_avqa(model):
    """Each question about its own video; one without sound."""
    videos = {"a": (FRAMES, SOUND), "b": (FRAMES[1:], None)}
    four = (*CHOICES, "nothing")
    best = [model.rank(Question(v, "What?", four, 0).prompt, four, videos[v][1], images=videos[v][0]) for v in "ab"]
    right = [four.index(next(iter(scores))) for scores in best]
    questions = [Question(v, "What?", four, answer) for v, answer in zip("ab", [right[0], (right[1] + 1) % 4])]
    seen = []
    chosen = choose(model, questions, videos.__getitem__, progress=lambda *at: seen.append(at))
    assert chosen == right and seen == [(1, 2), (2, 2)]
    assert accuracy(questions, chosen) == 0.5


def test_asking_from_the_command_line(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ask, "load_model", lambda options: model)
    for i, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 32000, 0, "NONE", ""))
        file.writeframes((SOUND[0] * 32767).astype(np.int16).tobytes())
    images = [f"--image={tmp_path / f'{i}.png'}" for i in range(2)]
    asked = ["ask", "x", *images, "--audio", str(tmp_path / "a.wav"), "why"]
    assert main([*asked, "--choices", ";".join(CHOICES)]) == 0
    expected = model.rank("why", CHOICES, tmp_path / "a.wav", images=FRAMES)
    assert capsys.readouterr().out == f"{next(iter(expected))}\n"
    assert main(["ask", "x", "--image", str(tmp_path / "a.wav"), "why"]) == 2
    assert "the name ends like no picture's and no video's" in capsys.readouterr().err
    assert main(["ask", "x", *images, "--batch", "rows.json", "--out", "out.jsonl"]) == 2
    assert "leave --audio, --image, --example and --input out" in capsys.readouterr().err


def test_what_cannot_be_seen(model, tmp_path):
    blind = LoadedModel(
        replace(model.spec, model=replace(CONFIG, vision=None)),
        {path: leaf for path, leaf in model.arrays.items() if not path.startswith("vision.")},
        LETTERS,
        aligner_tokenizer=LETTERS,
    )
    with pytest.raises(UsageError, match="this model does not see: leave images out"):
        blind.generate("why", images=FRAMES)
    with pytest.raises(DataError, match=r"none\.png"):
        model.generate("why", images=[tmp_path / "none.png"])
    with pytest.raises(UsageError, match="reads 2048: ask for a shorter answer"):
        model.generate("why", images=FRAMES * 400)
