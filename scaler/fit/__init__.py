"""What was learned from the records, each number with its interval. Needs no torch."""
