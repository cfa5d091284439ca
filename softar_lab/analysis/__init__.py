"""Analysis: where soft tokens lie, how far they drift, and what a text costs under a judge."""
