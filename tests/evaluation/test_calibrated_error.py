"""What a perfectly calibrated predictor shows by chance: fresh draws stay below it, and more rows show less."""

import numpy as np

from ruvllm.evaluation.calibration import calibrated_error, calibration_error


def test_of_a_hundred_fresh_draws_about_ninety_five_stay_below_the_bound():
    rng = np.random.default_rng(7)
    expected = rng.random(400)
    bound = calibrated_error(expected)
    drawn = [calibration_error(expected, (rng.random(400) < expected) * 1.0) for _ in range(300)]
    assert 0.90 <= np.mean(np.array(drawn) < bound) <= 0.99
    skewed = np.clip(expected * 0.7, 0, 1)
    assert calibration_error(expected, (rng.random(400) < skewed) * 1.0) > bound


def test_sixteen_times_the_rows_show_a_quarter_of_the_error():
    rng = np.random.default_rng(8)
    few, many = (calibrated_error(rng.random(n)) for n in (250, 4000))
    assert 3 <= few / many <= 5.5
