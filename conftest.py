"""What every test run shares: nbval compares all outputs but pictures."""

PICTURES = ("image/svg+xml", "application/vnd.plotly.v1+json")  # ids drawn at random; never the evidence


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):  # nbval's collector of one notebook
        collector.skip_compare += PICTURES
