"""What a model costs: the report of its counts, and what other tools would print."""
