"""Tests between variants keep their rate of false claims, and see what a t test sees."""

import numpy as np
import pytest
from scipy import stats

from mechint.metrics.statistics import adjusted, compare_means, digits_for, false_discoveries

SPLITS = 400


def runs(generator: np.random.Generator, seeds: int, shift: float = 0.0, sequences: int = 60) -> np.ndarray:
    """Numbers [runs, M] with variation between runs, between sequences, and of both together."""
    common = 3 * np.sin(np.arange(sequences))  # the same sequences on both sides
    between = 0.5 * generator.standard_normal((seeds, 1))
    return shift + common + between + generator.standard_normal((seeds, sequences))


@pytest.mark.parametrize("seeds", [4, 8])
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


@pytest.mark.parametrize("seeds", [5, 10])
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


def test_discoveries_are_fewer_than_small_p_values() -> None:
    p = np.array([0.001, 0.02, 0.04, 0.5])
    assert false_discoveries(p).tolist() == [True, True, False, False]
    assert false_discoveries(np.zeros(0)).tolist() == []
