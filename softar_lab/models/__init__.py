"""Models: the transformer body, embedding tables, objectives, and SoftAR, which joins them."""
