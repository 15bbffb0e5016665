"""Costs of running circuits: budgets, result cache, and jobs that are sent once."""
