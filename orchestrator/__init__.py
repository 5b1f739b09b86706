"""What a person launches: searches, training jobs, tracking and comparison. Ray, Optuna and MLflow live only here."""
