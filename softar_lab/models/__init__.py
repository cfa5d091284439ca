"""Models: counts, the transformer body, target tables, objectives, and SoftAR, which joins them."""
