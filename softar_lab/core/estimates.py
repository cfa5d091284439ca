"""Numbers that carry how sure they are."""

import math

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor


class Estimate(float):
    """A float that carries its standard error, in its own unit; 0 where it is exact.

    Arithmetic gives plain floats.
    """

    standard_error: float

    def __new__(cls, value: float, standard_error: float = 0.0):
        """Make one.

        Raises:
            ValueError: for a negative standard error.
        """
        if standard_error < 0:
            raise ValueError(f"a standard error is at least 0, not {standard_error!r}")
        estimate = super().__new__(cls, value)
        estimate.standard_error = float(standard_error)
        return estimate

    @classmethod
    def mean(cls, values: "Float[Tensor, ' N'] | Float[np.ndarray, ' N']") -> "Estimate":
        """The mean of N independent values (N,) with its standard error; NaN for a single value.

        Raises:
            ValueError: where there is no value.
        """
        values = np.asarray(values, dtype=np.float64)
        if not len(values):
            raise ValueError("no value to take the mean of")
        spread = values.std(ddof=1) if len(values) > 1 else math.nan
        return cls(values.mean(), spread / math.sqrt(len(values)))

    def __repr__(self) -> str:
        return (
            f"{float(self):.6g}"
            if self.standard_error == 0
            else f"{float(self):.6g} ± {self.standard_error:.2g}"
        )

    def __reduce__(self):
        return Estimate, (float(self), self.standard_error)


def interval(values: np.ndarray, quantile: float | None = None) -> dict[str, float]:
    """The mean of values, one per seed, with its 95 % t interval.

    Args:
        values: independent values (N,).
        quantile: half the interval's width in standard errors. None: the t quantile of 95 %.

    Returns:
        mean, low, high, seeds; for a single seed, low and high are NaN.
    """
    n, mean = len(values), values.mean()
    if quantile is None and n > 1:
        quantile = stdtrit(n - 1, 0.975)
    half = quantile * values.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": n}
