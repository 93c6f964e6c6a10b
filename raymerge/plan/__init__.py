"""Planning: pure functions from a recipe and catalogs to a frozen graph."""
