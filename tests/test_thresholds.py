"""The share of keys that matter, against rows whose share is known."""

import pytest
import tiny
from test_diagnostics import identity, maps, samples_of, uniform

from linattn import families
from linattn.evaluation import diagnostics, thresholds


@pytest.mark.parametrize("threshold", thresholds.THRESHOLDS)
def test_known_rows(threshold):
    assert thresholds.kept_keys(uniform(9), threshold).item() == 1
    assert thresholds.kept_keys(identity(8), threshold).item() == 1 / 8
    assert thresholds.kept_keys(identity(1), threshold).item() == 1


def test_a_share_is_counted_key_by_key():
    drawn = maps(2, 3, 7, sharp=4.0)
    for picture in range(2):
        for head in range(3):
            kept = 0
            for row in drawn[picture, head].tolist():
                kept += sum(weight >= 0.1 * max(row) for weight in row)
            share = thresholds.kept_keys(drawn, 0.1)[picture, head].item()
            assert share == pytest.approx(kept / 49, abs=1e-12)


def test_a_higher_threshold_keeps_fewer():
    drawn = maps(1, 2, 30, sharp=3.0)
    shares = [thresholds.kept_keys(drawn, g).mean().item() for g in (0, 1e-3, 1e-2, 1e-1, 1)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1
    assert shares[-1] == pytest.approx(1 / 30)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")], ids=str)
def test_a_threshold_is_a_share(threshold):
    with pytest.raises(ValueError, match="threshold is"):
        thresholds.kept_keys(uniform(3), threshold)


def test_every_head_and_noise_has_a_row():
    pipe = tiny.pipeline()
    latents, labels = samples_of(2)
    table = thresholds.by_head(pipe, latents, labels, (0.2, 0.9), (0.01, 0.1), layers=[1])
    heads = families.layers(pipe)[1].shape.heads
    assert len(table) == 2 * 2 * (heads + 1)
    row = next(row for row in table if row["head"] == 1 and row["measure"] == "kept at 0.1")
    t = diagnostics.level_time(0.2)
    noisy = diagnostics.noised(pipe, latents, t, 0)
    (attention_map, _) = diagnostics.layer_maps(pipe, noisy, t, labels, [1])[1]
    by_hand = thresholds.kept_keys(attention_map, 0.1)[:, 1].mean().item()
    assert row["noise"] == 0.2
    assert row["value"] == pytest.approx(by_hand, rel=1e-5)
