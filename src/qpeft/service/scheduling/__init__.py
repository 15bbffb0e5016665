"""Submissions, their cost estimates, and the order of jobs. No database, no HTTP."""
