"""An Estimate is a float that knows its standard error."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from scipy.stats import sem

from softar_lab.core.estimates import Estimate


def test_estimate_is_a_float_with_a_standard_error():
    estimate = Estimate(1.5, 0.25)
    assert estimate == 1.5
    assert estimate + 1 == 2.5
    assert f"{estimate:.2f}" == "1.50"
    assert estimate.standard_error == 0.25
    assert repr(estimate) == "1.5 ± 0.25"
    assert repr(Estimate(2.0)) == "2"


def test_mean_is_that_of_scipy():
    values = np.random.default_rng(0).normal(3, 2, 400)
    for given in (values, torch.from_numpy(values)):
        estimate = Estimate.mean(given)
        assert math.isclose(estimate, values.mean())
        assert math.isclose(estimate.standard_error, sem(values))


def test_one_value_tells_no_standard_error():
    assert math.isnan(Estimate.mean(torch.ones(1)).standard_error)


def test_estimate_survives_copies():
    for again in (
        copy.deepcopy(Estimate(1.0, 0.5)),
        pickle.loads(pickle.dumps(Estimate(1.0, 0.5))),
    ):
        assert (again, again.standard_error) == (1.0, 0.5)


def test_bad_estimates_are_refused():
    with pytest.raises(ValueError, match="at least 0, not -1"):
        Estimate(1.0, -1.0)
    with pytest.raises(ValueError, match="no value"):
        Estimate.mean(torch.zeros(0))
