"""Models that count: exact probabilities from sequences, and frequencies learned by a network."""
