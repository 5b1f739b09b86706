"""What the terminal asks and shows: options, completion, progress, tables."""
