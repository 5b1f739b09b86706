"""Networks, losses, corruptions, scoring and metrics in plain torch and numpy: no disk, no orchestration."""
