"""The MLflow UI as `msad ui` serves it."""
