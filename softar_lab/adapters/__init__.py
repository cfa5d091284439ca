"""Models from elsewhere, made into predictors (K31, K33)."""
