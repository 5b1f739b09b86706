"""Networks, losses, corruptions, scoring and metrics in plain torch and numpy. Knows neither the disk nor the orchestration."""
