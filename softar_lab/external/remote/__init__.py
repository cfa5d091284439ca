"""Models served elsewhere, over HTTP."""
