"""A recipe: YAML text to a checked `RunConfig`."""
