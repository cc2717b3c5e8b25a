"""Tests between variants keep their rate of false claims, and see what a t test sees."""

import numpy as np
import pytest
from scipy import stats
from tiers import rest_slow

from mechint.metrics.statistics import (
    adjusted,
    compare_means,
    crossed_mean,
    digits_for,
    false_discovery_rates,
    sample_mean,
    sample_p_values,
)

SPLITS = 400


def runs(generator: np.random.Generator, seeds: int, shift: float = 0.0, sequences: int = 60) -> np.ndarray:
    """Numbers [runs, M] with variation between runs, between sequences, and of both together."""
    common = 3 * np.sin(np.arange(sequences))  # the same sequences on both sides
    between = 0.5 * generator.standard_normal((seeds, 1))
    return shift + common + between + generator.standard_normal((seeds, sequences))


@pytest.mark.parametrize("seeds", rest_slow([4, 8], [4]))
@pytest.mark.parametrize("metrics", [1, 5])
def test_false_claims_are_at_most_five_per_cent_of_comparisons(seeds: int, metrics: int) -> None:
    generator = np.random.default_rng(seeds)
    claims = 0
    for _ in range(SPLITS):
        effects = []
        for _ in range(metrics):
            a, b = runs(generator, seeds), runs(generator, seeds)
            effects.append(compare_means(a.mean(1), b.mean(1), (a, b)))
        verdicts = [e.verdict(p) for e, p in zip(effects, adjusted(e.p for e in effects), strict=True)]
        claims += any(verdict in ("higher", "lower") for verdict in verdicts)
    # 5 % and what 400 splits may be off by
    assert claims / SPLITS <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / SPLITS)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", rest_slow([5, 10], [5]))
def test_power_is_at_least_nine_tenths_of_a_t_tests(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    found = plain = 0
    spread = np.sqrt(0.25 + 1 / 60)  # of a run's mean
    for _ in range(SPLITS):
        a, b = runs(generator, seeds), runs(generator, seeds, 2 * spread)
        effect = compare_means(a.mean(1), b.mean(1), (a, b))
        found += effect.verdict(effect.p) == "higher"
        plain += stats.ttest_ind(a.mean(1), b.mean(1), equal_var=False).pvalue <= 0.05
    assert plain / SPLITS > 0.7
    assert found >= 0.9 * plain


def test_evaluation_data_count_as_well_as_seeds() -> None:
    """A difference that a few sequences make alone is not a difference on other data."""
    generator = np.random.default_rng(0)
    a, b = runs(generator, 8, sequences=12) * 0.01, runs(generator, 8, sequences=12) * 0.01
    b[:, 0] += 6
    seeds_alone = compare_means(a.mean(1), b.mean(1))
    both = compare_means(a.mean(1), b.mean(1), (a, b))
    assert seeds_alone.p is not None
    assert both.p is not None
    assert seeds_alone.p < 1e-6
    assert both.p > 0.05
    assert both.low is not None
    assert both.low < 0


def test_without_a_paired_side_it_is_welchs_test() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.standard_normal(5), 1 + 2 * generator.standard_normal(7)
    effect = compare_means(a, b)
    expected = stats.ttest_ind(b, a, equal_var=False)
    interval = expected.confidence_interval()
    assert effect.p == pytest.approx(expected.pvalue)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))


def test_no_verdict_without_seeds_or_variation() -> None:
    assert compare_means([1.0], [2.0]).verdict(None) == "too few seeds"
    assert compare_means([1.0, 1.1, 1.2], [7.0, 7.1, 7.2]).verdict(1e-9) == "too few seeds"
    assert compare_means([1.0] * 4, [2.0] * 4).verdict(None) == "not tested"


def test_holm_adjusts_every_p_value_once() -> None:
    assert adjusted([0.01, None, 0.04, 0.03]) == [
        pytest.approx(0.03),
        None,
        pytest.approx(0.06),
        pytest.approx(0.06),
    ]
    assert adjusted([]) == []


def test_digits_follow_the_uncertainty() -> None:
    assert [digits_for(error) for error in (0.3, 0.034, 0.0021, 12.0, None, 0.0)] == [2, 3, 4, 0, 4, 4]


@pytest.mark.parametrize("count", [0, 1, 5, 60])
def test_false_discovery_rates_are_those_of_benjamini_and_hochberg(count: int) -> None:
    p = np.random.default_rng(count).random(count) ** 2
    p[2:3] = np.nan  # not tested, and not counted
    known = np.sort(p[np.isfinite(p)])
    q = false_discovery_rates(p)
    assert np.isnan(q).tolist() == np.isnan(p).tolist()
    for value, found in zip(p, q, strict=True):
        if np.isfinite(value):  # the lowest rate at which the step-up procedure rejects it
            above = [len(known) * other / rank for rank, other in enumerate(known, 1) if other >= value]
            assert found == pytest.approx(min(1.0, *above, 1.0))


def test_a_mean_is_held_against_zero_as_by_a_t_test() -> None:
    values = np.random.default_rng(1).normal(0.2, 1, (7, 12))
    means, errors = values.mean(1), values.std(1, ddof=1) / np.sqrt(12)
    expected = [stats.ttest_1samp(row, 0) for row in values]
    assert sample_p_values(means, errors, 12) == pytest.approx([test.pvalue for test in expected])
    for row, test in zip(values, expected, strict=True):
        found = sample_mean(row)
        assert found.p_value() == pytest.approx(test.pvalue)
        assert found.interval(0.9) == pytest.approx(tuple(test.confidence_interval(0.9)))
    steady = sample_p_values(np.array([0.0, 0.1]), np.zeros(2), 12)
    assert steady.tolist() == [1, 0]
    assert np.isnan(sample_p_values(means, errors, 1)).all()
    assert sample_mean(np.array([1.0])).p_value() is None


@pytest.mark.parametrize(("mean", "bound"), [(0.0, 0.5), (0.3, 0.5), (0.9, 0.5), (-0.3, 0.31)])
def test_equivalence_is_two_one_sided_tests_and_an_interval_inside_the_bound(
    mean: float, bound: float
) -> None:
    values = np.random.default_rng(2).normal(0, 1, 40)
    values += mean - values.mean()
    found = sample_mean(values)
    lower = stats.ttest_1samp(values, -bound, alternative="greater").pvalue
    upper = stats.ttest_1samp(values, bound, alternative="less").pvalue
    assert found.equivalence(bound) == pytest.approx(max(lower, upper))
    low, high = found.interval(0.9)  # type: ignore[misc]
    assert (-bound < low and high < bound) == (max(lower, upper) < 0.05)


def test_a_mean_over_draws_and_sequences_knows_both_errors() -> None:
    """Intervals of a mean with crossed errors hold the truth as often as they say; without one source they do not."""
    generator = np.random.default_rng(3)
    held = held_without = 0
    for _ in range(SPLITS):
        values = (
            generator.normal(0, 1, (10, 1))
            + generator.normal(0, 2, (1, 16))
            + generator.normal(0, 1, (10, 16))
        )
        low, high = crossed_mean(values).interval(0.9)  # type: ignore[misc]
        held += low < 0 < high
        low, high = sample_mean(values.mean(1)).interval(0.9)  # type: ignore[misc]
        held_without += low < 0 < high
    assert held / SPLITS > 0.87
    assert held_without / SPLITS < 0.7 < held / SPLITS < 0.95


def test_draws_that_are_all_the_same_leave_the_error_of_the_sequences() -> None:
    row = np.random.default_rng(4).normal(0, 1, 20)
    one, several = sample_mean(row), crossed_mean(np.tile(row, (5, 1)))
    assert several.error == pytest.approx(one.error)
    assert several.freedom == pytest.approx(one.freedom)
    assert not crossed_mean(row[None]).known
    assert crossed_mean(np.zeros((3, 4))).equivalence(0.1) == 0
