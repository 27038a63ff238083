"""How evidence is taken: functions of (rank, workload, request) that return one record."""
