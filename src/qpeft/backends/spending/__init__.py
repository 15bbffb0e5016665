"""What running costs: budgets, results kept on disk, and jobs that are sent once."""
