"""Detection scores against cases worked by hand and sed_eval; PSDS of detections that are all or nothing."""

import numpy as np
import pytest

from alm_jax.core.errors import UsageError
from alm_jax.eval.metrics.events import Counts, Event, event_counts, events, micro_macro, psds, segment_counts, spans


def test_what_answers_say():
    assert spans("1.0s-2.5s; 3.0s-4.0s.") == [(1.0, 2.5), (3.0, 4.0)]
    assert spans("It is heard from 1 to 2 seconds, and at 5 - 4.") == [(1.0, 2.0)]
    told = events("Dog bark: [1.0s-2.5s], [3.0s-4.0s]; a bark at 5.0s-6.0s; hum: [0.0s-1.0s]", ["bark", "dog bark"])
    assert told == [("dog bark", 1, 2.5), ("dog bark", 3, 4), ("bark", 5, 6), ("hum", 0, 1)]
    assert events("none", ["dog"]) == []


def test_segments_by_hand():
    """Of 4 segments a dog is heard in 0 and 1, and said in 1 and 2; a cat is said in 3."""
    found = segment_counts([Event("dog", 0.2, 1.4)], [Event("dog", 1.0, 2.5), Event("cat", 3.0, 3.1)], 4.0)
    assert found == {"dog": Counts(2, 2, 1), "cat": Counts(0, 1, 0)}
    assert micro_macro(found) == pytest.approx((2 / 5, 1 / 2))


def test_events_by_hand():
    true = [Event("dog", 1.0, 2.0), Event("dog", 5.0, 9.0)]  # offsets may miss by 0.2 s, and by 20 % of 4 s
    assert event_counts(true, [Event("dog", 1.15, 2.19), Event("dog", 5.1, 8.3)])["dog"].hits == 2
    assert event_counts(true, [Event("dog", 1.25, 2.0), Event("dog", 5.0, 8.1)])["dog"].hits == 0
    assert event_counts(true, [Event("cat", 1.0, 2.0)]) == {"cat": Counts(0, 1, 0), "dog": Counts(2, 0, 0)}
    # Either of two said events fits the first true one, only one of them the second: both find a partner.
    close = [Event("dog", 1.0, 2.0), Event("dog", 1.3, 2.3)]
    assert event_counts(close, [Event("dog", 1.15, 2.15), Event("dog", 0.9, 2.0)])["dog"].hits == 2


def random_events(rng, count):
    onsets = rng.uniform(0, 9, count)
    return [Event(str(rng.choice(["dog", "cat"])), float(t), float(t + rng.uniform(0.2, 1.0))) for t in onsets]


def test_against_sed_eval():
    sed_eval = pytest.importorskip("sed_eval", reason="the reference of these scores: pip install sed_eval")
    rng = np.random.default_rng(0)
    told = lambda given: [
        {"event_label": label, "event_onset": onset, "event_offset": offset, "filename": "a.wav"}
        for label, onset, offset in given
    ]
    segments = sed_eval.sound_event.SegmentBasedMetrics(["dog", "cat"], time_resolution=1.0)
    matched = sed_eval.sound_event.EventBasedMetrics(["dog", "cat"], t_collar=0.2, percentage_of_length=0.2)
    ours = {"segment": {}, "event": {}}
    for _ in range(6):
        true = random_events(rng, 6)
        said = [Event(e.label, e.onset + rng.normal(0, 0.15), e.offset + rng.normal(0, 0.15)) for e in true[:5]]
        said = [e for e in [*said, *random_events(rng, 2)] if 0 <= e.onset < e.offset <= 10]
        segments.evaluate(told(true), told(said), evaluated_length_seconds=10.0)
        matched.evaluate(told(true), told(said))
        for name, found in (("segment", segment_counts(true, said, 10.0)), ("event", event_counts(true, said))):
            ours[name] = {k: ours[name].get(k, Counts()) + found.get(k, Counts()) for k in ("dog", "cat")}
    for name, reference in (("segment", segments), ("event", matched)):
        micro, macro = micro_macro(ours[name])
        assert micro == pytest.approx(reference.results_overall_metrics()["f_measure"]["f_measure"])
        assert macro == pytest.approx(reference.results_class_wise_average_metrics()["f_measure"]["f_measure"])


def test_psds():
    pytest.importorskip("sed_scores_eval", reason="PSDS is counted by it: pip install 'alm_jax[eval]'")
    true = {"a": [Event("dog", 1.0, 3.0), Event("cat", 5.0, 7.0)], "b": [Event("dog", 0.0, 4.0)]}
    seconds = {"a": 10.0, "b": 10.0}
    assert psds(true, true, seconds) == pytest.approx(1.0)
    assert psds(true, {}, seconds) == pytest.approx(0.0)
    # Every dog is found and no cat: half of the classes at no false positive; alpha_st is 0.
    assert psds(true, {name: [e for e in given if e.label == "dog"] for name, given in true.items()}, seconds) == (
        pytest.approx(0.5)
    )
    with pytest.raises(UsageError, match="nothing to detect"):
        psds({}, {}, seconds)
