"""Images on disk to tables of samples to arrays. Knows neither the models nor the orchestration."""
