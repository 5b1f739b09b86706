"""One training from settings to a network: plain torch, importable where Ray, Optuna and MLflow are missing."""
