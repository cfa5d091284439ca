"""The tour, used as a person would: run it, press Generate, choose another collapse, walk the path, turn it."""

import re

import pytest


@pytest.fixture(scope="module")
def tour(start_lab, notebooks):
    """The tour after Run All."""
    lab = start_lab(notebooks)
    lab.open("00_tour.ipynb")
    lab.run_all()
    return lab
