"""What people see: figures (data first, drawing second), the terminal, one HTML page."""
