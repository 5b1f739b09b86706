"""A trained model as a folder of files, and all that is done with one: knows neither MLflow nor Ray."""
