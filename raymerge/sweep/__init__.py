"""Many recipes, one read of their sources, and a decision at the end."""
