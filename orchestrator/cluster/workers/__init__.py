"""What runs on a worker for one job, and what becomes of a worker that hangs or dies."""
