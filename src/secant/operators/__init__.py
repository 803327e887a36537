"""Linear algebra that knows no language model: operators, their products and their decompositions."""
