"""What a worker process does: lease jobs over HTTP, run circuits, hand results in. No database."""
