"""API v1 and the routes of other clients: one file for each group of routes, and what they share."""
