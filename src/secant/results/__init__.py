"""Results: descriptions of tables and columns, and the code that shows and writes them from these descriptions."""
