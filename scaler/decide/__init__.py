"""What to do: one answer per worker count, each number with its reason."""
