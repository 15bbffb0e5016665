"""The web pages: handlers, templates and static files."""
