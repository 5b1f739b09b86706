"""What is searched and what came of it: settings, plans and studies, by Optuna."""
