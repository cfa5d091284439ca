"""Models from elsewhere: what others trained, and what others serve."""
