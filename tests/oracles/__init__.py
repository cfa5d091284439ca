"""Slow, plain second versions of what the lab calls exact, written from the definitions."""
