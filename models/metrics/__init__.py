"""Metrics of image scores and of pixels, exact, on arrays."""
