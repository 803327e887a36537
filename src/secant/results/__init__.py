"""Results, described once: tables and columns, and what shows and writes them."""
