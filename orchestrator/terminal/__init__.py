"""What a person works with: commands and their options, completion, tables, a notebook."""
