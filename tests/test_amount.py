"""SOFTAR_CASES means one thing everywhere: what the tests of a file try together."""

import pytest
from amount import per_test, total


@pytest.mark.parametrize("tests", [1, 3, 7 + 7 / 12])
def test_the_tests_of_a_file_share_its_cases(monkeypatch, tests):
    monkeypatch.delenv("SOFTAR_CASES", raising=False)
    assert total(600) == 600
    assert per_test(60, tests) == 60
    monkeypatch.setenv("SOFTAR_CASES", "20000")
    assert total(600) == 20_000
    assert abs(per_test(60, tests) * tests - 20_000) <= tests / 2  # rounded
    monkeypatch.setenv("SOFTAR_CASES", "1")
    assert per_test(60, tests) == 1
