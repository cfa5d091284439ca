"""Sweeps (K29, K34): the same call for every cell of a grid, in one process, on all cores, on Ray."""

from .sweep import sweep

__all__ = ["sweep"]
