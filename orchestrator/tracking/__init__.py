"""Runs, models and their registry in MLflow, and the only place that knows it."""
