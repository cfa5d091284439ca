"""Training: a recipe, the rows it reads, one loop, and what is fitted on a trained model."""
