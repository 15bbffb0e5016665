"""The database: tables, one writer, every change of a job's state, and every question asked."""
