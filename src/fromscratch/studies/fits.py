"""Curves through the results of several settings: a line, a parabola in the log of the batch, a power law, and the
critical batch of gradient noise.

Intervals are 95%, from the scatter of the points around the curve.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from fromscratch.errors import UsageError
from fromscratch.studies.contrasts import Floats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval; the ends are infinite where the data set no bound."""

    value: float
    low: float
    high: float


def _estimate(value: float, radius: float) -> Estimate:
    return Estimate(float(value), float(value - radius), float(value + radius))


@dataclass(frozen=True)
class Prediction:
    """A value of a fitted curve."""

    value: float
    warning: str | None
    """What lies outside the data, if anything: the fit is an extrapolation there."""


@dataclass(frozen=True)
class Fit:
    """A fitted curve and the data behind it."""

    formula: str
    parameters: Mapping[str, Estimate]
    data: Mapping[str, tuple[float, ...]]
    """The columns that the curve depends on, by name."""
    observed: tuple[float, ...]
    residual_deviation: float
    """Standard deviation of the points around the curve."""
    curve: Callable[..., Any]
    """Takes one keyword argument for each column."""
    y_name: str = "loss"
    answer: str = ""
    """The parameter that is a place in the only column, such as the best batch; empty where there is none."""

    def predict(self, **at: float) -> Prediction:
        """Returns the curve's value, with a warning outside the range of the data. Raises UsageError."""
        if set(at) != set(self.data):
            raise UsageError(f"prediction at {', '.join(at) or 'nothing'}: give {', '.join(self.data)}")
        if wrong := [f"{name} = {value:g}" for name, value in at.items() if not (math.isfinite(value) and value > 0)]:
            raise UsageError(f"prediction at {', '.join(wrong)}: must be finite and above 0")
        outside = self._outside(at)
        warning = f"extrapolation: {'; '.join(outside)}" if outside else None
        return Prediction(float(self.curve(**at)), warning)

    def warnings(self) -> list[str]:
        """Says where the answer, or an end of its interval, lies outside the data."""
        if not self.answer:
            return []
        (column,), found = self.data, self.parameters[self.answer]
        problems = [f"extrapolation: the {self.answer} {line}" for line in self._outside({column: found.value})]
        low, high = min(self.data[column]), max(self.data[column])
        if not (low <= found.low and found.high <= high):
            problems.append(
                f"the interval of the {self.answer} {column}, {found.low:.4g} to {found.high:.4g}, reaches outside the "
                f"data ({low:g} to {high:g}): add settings further apart, or more results"
            )
        return problems

    def _outside(self, at: Mapping[str, float]) -> list[str]:
        return [
            f"{name} = {value:.6g} is outside the data ({min(self.data[name]):g} to {max(self.data[name]):g})"
            for name, value in at.items()
            if not min(self.data[name]) <= value <= max(self.data[name])
        ]


def _columns(num_parameters: int, observed: ArrayLike, **columns: ArrayLike) -> tuple[Floats, dict[str, Floats]]:
    """Checks the data of a fit. Raises UsageError."""
    y = np.asarray(observed, dtype=np.float64)
    arrays = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    if len(y) <= num_parameters or any(len(array) != len(y) for array in arrays.values()):
        lengths = ", ".join(f"{len(array)} of {name}" for name, array in arrays.items())
        raise UsageError(
            f"fit to {len(y)} results ({lengths}): needs equally many of each, and more than {num_parameters}"
        )
    for name, array in {"results": y, **arrays}.items():
        if not (np.isfinite(array) & (array > 0)).all():
            raise UsageError(f"fit: {name} must be finite and above 0; leave out runs that diverged")
    return y, arrays


def _linear(terms: Floats, y: Floats) -> tuple[Floats, Floats, float, float]:
    """Least squares: coefficients, their covariance, the deviation around the curve, and the t of the interval."""
    solution, _, rank, _ = np.linalg.lstsq(terms, y, rcond=None)
    coefficients = np.asarray(solution, dtype=np.float64)
    if rank < terms.shape[1]:
        raise UsageError(f"fit: the data have too few different values for {terms.shape[1]} parameters; add settings")
    df = len(y) - terms.shape[1]
    variance = float(((y - terms @ coefficients) ** 2).sum()) / df
    covariance = variance * np.linalg.inv(terms.T @ terms)
    return coefficients, covariance, math.sqrt(variance), float(stats.t.isf((1 - LEVEL) / 2, df))


def fit_line(x: ArrayLike, observed: ArrayLike, *, x_name: str, y_name: str) -> Fit:
    """Fits ``y = intercept + slope x``, such as peak memory against micro-batch.

    Needs at least 3 results. Raises UsageError for too few or for values that are not above 0.
    """
    y, columns = _columns(2, observed, **{x_name: x})
    values = columns[x_name]
    (intercept, slope), covariance, deviation, t = _linear(np.stack([np.ones_like(values), values], axis=1), y)
    radius = t * np.sqrt(np.diag(covariance))
    return Fit(
        f"{y_name} = {intercept:.6g} + {slope:.6g} {x_name}",
        {
            "intercept": _estimate(intercept, radius[0]),
            "slope": _estimate(slope, radius[1]),
        },
        {x_name: tuple(values)},
        tuple(y),
        deviation,
        lambda **at: intercept + slope * np.asarray(at[x_name]),
        y_name,
    )


def fit_best_batch(batch: ArrayLike, loss: ArrayLike) -> Fit:
    """Fits ``loss = floor + curvature (ln batch - ln best)^2``: the best global batch with its interval.

    The interval is Fieller's (1954, "Some problems in interval estimation"): the batches at which the slope of the
    parabola may be 0. It has infinite ends where the curvature may be 0. Needs at least 4 results. Raises UsageError
    for too few, and where the curve has no minimum.
    """
    y, columns = _columns(3, loss, batch=batch)
    z = np.log(columns["batch"])
    center = float(z.mean())
    terms = np.stack([np.ones_like(z), z - center, (z - center) ** 2], axis=1)
    coefficients, covariance, deviation, t = _linear(terms, y)
    _, slope, curvature = coefficients
    if curvature <= 0:
        raise UsageError(
            f"fit of loss against batch: curvature {curvature:.3g} is not above 0, so no batch is best; "
            "add smaller and larger batches"
        )
    best = -slope / (2 * curvature)
    low, high = _fieller(slope, 2 * curvature, covariance[1:, 1:] * np.array([[1, 2], [2, 4]]), t)
    at_best = np.array([1.0, best, best**2])  # to first order, the floor does not depend on where the best batch is
    floor, radius = float(at_best @ coefficients), t * np.sqrt([covariance[2, 2], at_best @ covariance @ at_best])
    value = math.exp(center + best)
    return Fit(
        f"loss = {floor:.5g} + {curvature:.4g} (ln batch - ln {value:.4g})^2",
        {
            "best": Estimate(value, *np.exp(np.array([low, high]) + center).tolist()),
            "curvature": _estimate(curvature, radius[0]),
            "floor": _estimate(floor, radius[1]),
        },
        {"batch": tuple(columns["batch"])},
        tuple(y),
        deviation,
        lambda batch: floor + curvature * (np.log(batch) - center - best) ** 2,
        answer="best",
    )


def _fieller(constant: float, factor: float, covariance: Floats, t: float) -> tuple[float, float]:
    """Interval of the m with ``constant + factor m = 0``, for two correlated normal estimates."""
    # (constant + factor m)^2 <= t^2 Var(constant + factor m) is a quadratic a m^2 + 2 b m + c <= 0.
    a = factor**2 - t**2 * covariance[1, 1]
    b = constant * factor - t**2 * covariance[0, 1]
    c = constant**2 - t**2 * covariance[0, 0]
    if a <= 0:
        return -math.inf, math.inf
    root = math.sqrt(max(b * b - a * c, 0.0))
    return (-b - root) / a, (-b + root) / a


def fit_power_law(loss: ArrayLike, **columns: ArrayLike) -> Fit:
    """Fits ``loss = E + A / N^a``, with one more term ``B / D^b`` for each column given (parameters, tokens).

    Each term is written ``c (N / N0)^-a``, N0 the geometric mean of the column. Minimises Huber's loss of the log
    residuals from several starts, as Hoffmann et al. 2022, "Training compute-optimal large language models",
    section 3.3. Intervals come from the curvature at the minimum, for the logarithms of E and of the coefficients.
    Needs more results than parameters: 4 for one column, 6 for two. Raises UsageError for fewer, and where the data do
    not determine the parameters.
    """
    y, arrays = _columns(1 + 2 * len(columns), loss, **columns)
    middle = {name: float(np.exp(np.log(array).mean())) for name, array in arrays.items()}

    def log_curve(theta: Floats, at: Mapping[str, Any]) -> Any:
        """theta: ln E, then ln c and a of each column."""
        terms = np.full(np.shape(next(iter(at.values()))), theta[0])
        for index, name in enumerate(middle):
            log_c, exponent = theta[1 + 2 * index : 3 + 2 * index]
            terms = np.logaddexp(terms, log_c - exponent * np.log(np.asarray(at[name]) / middle[name]))
        return terms

    floor, term = math.log(y.min() / 2), math.log(y.mean() / 2 / len(middle))
    starts = [[floor, *[term, exponent] * len(middle)] for exponent in (0.1, 0.3, 0.6)]

    def residuals(theta: Floats) -> Any:
        return log_curve(theta, arrays) - np.log(y)

    # Huber's loss is nearly linear far from the minimum, where its search ends too soon: plain least squares first.
    near = [optimize.least_squares(residuals, start, method="lm").x for start in starts]
    fits = [optimize.least_squares(residuals, start, loss="huber", f_scale=1e-3, x_scale="jac") for start in near]
    best = min(fits, key=lambda found: float(found.cost))
    df, information = len(y) - len(best.x), best.jac.T @ best.jac
    if not np.linalg.cond(information) < 1e12:
        raise UsageError(f"power law: the data do not determine {len(best.x)} parameters; add settings further apart")
    variance = float((residuals(best.x) ** 2).sum()) / df
    radius = stats.t.isf((1 - LEVEL) / 2, df) * np.sqrt(variance * np.diag(np.linalg.inv(information)))
    ends = [np.exp([value, value - r, value + r]).tolist() for value, r in zip(best.x, radius, strict=True)]
    parameters, formula = {"E": Estimate(*ends[0])}, f"loss = {ends[0][0]:.5g}"
    for index, (name, scale) in enumerate(middle.items()):
        exponent = _estimate(best.x[2 + 2 * index], radius[2 + 2 * index])
        parameters |= {f"{name}_coefficient": Estimate(*ends[1 + 2 * index]), f"{name}_exponent": exponent}
        formula += f" + {ends[1 + 2 * index][0]:.4g} ({name} / {scale:.4g})^-{exponent.value:.4g}"
    return Fit(
        formula,
        parameters,
        {name: tuple(array) for name, array in arrays.items()},
        tuple(y),
        float(y.mean()) * math.sqrt(variance),
        lambda **at: np.exp(log_curve(best.x, at)),
    )


def fit_critical_batch(batch: ArrayLike, squared_norm: ArrayLike) -> Fit:
    """Fits ``squared norm = |G|^2 + tr(S) / batch`` to the gradients of separate batches of two sizes.

    The critical batch tr(S) / |G|^2 is in the unit of ``batch``: larger batches save few steps, smaller ones little
    data. Source: McCandlish et al. 2018, "An empirical model of large-batch training", appendix A.1. All norms are of
    one model, before clipping. The interval is Fieller's, from the spread of the norms at each size.

    Raises UsageError unless there are two sizes with at least two norms each, and where the norms leave no gradient or
    no noise.
    """
    y, columns = _columns(0, squared_norm, batch=batch)
    sizes = np.unique(columns["batch"])
    groups = [y[columns["batch"] == size] for size in sizes]
    if len(sizes) != 2 or min(map(len, groups)) < 2:
        counts = ", ".join(f"{len(group)} of batch {size:g}" for size, group in zip(sizes, groups, strict=True))
        raise UsageError(f"critical batch: {counts}: needs two batch sizes, with at least 2 gradient norms of each")
    (small, large), inverse = sizes, 1 / sizes
    # |G|^2 and tr(S) are linear in the two mean norms; the rows are their coefficients.
    linear = np.array([[-small, large], [1.0, -1.0]]) / np.array([[large - small], [inverse[0] - inverse[1]]])
    signal, noise = linear @ [group.mean() for group in groups]
    if signal <= 0 or noise <= 0:
        raise UsageError(
            f"critical batch: the norms leave {'no gradient' if signal <= 0 else 'no noise'} (|G|^2 = {signal:.3g}, "
            f"tr(S) = {noise:.3g}); measure more batches"
        )
    variances = np.array([group.var(ddof=1) / len(group) for group in groups])
    covariance = (linear * variances) @ linear.T
    t = float(stats.t.isf((1 - LEVEL) / 2, min(map(len, groups)) - 1))
    signs = np.array([1.0, -1.0])  # tr(S) - critical |G|^2 = 0
    low, high = _fieller(noise, -signal, covariance[::-1, ::-1] * np.outer(signs, signs), t)
    if math.isinf(high):  # |G|^2 may be 0
        low = 0.0
    radius = t * np.sqrt(np.diag(covariance))
    residuals = np.concatenate([group - group.mean() for group in groups])
    return Fit(
        f"squared norm = {signal:.4g} + {noise:.4g} / batch",
        {
            "critical": Estimate(float(noise / signal), max(low, 0.0), high),
            "gradient": _estimate(signal, radius[0]),
            "noise": _estimate(noise, radius[1]),
        },
        {"batch": tuple(columns["batch"])},
        tuple(y),
        math.sqrt(float((residuals**2).sum()) / (len(y) - 2)),
        lambda batch: signal + noise / np.asarray(batch),
        "squared norm",
        answer="critical",
    )
