"""Analysis: where soft tokens lie, how far they drift, and the bits of a text under a judge."""
