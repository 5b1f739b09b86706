"""What a sweep tells: lines in the terminal while it runs, its runs' tables and texts, one page at its end."""
