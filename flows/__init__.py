"""The order: one file for each production flow, to be read from top to bottom like a recipe."""
