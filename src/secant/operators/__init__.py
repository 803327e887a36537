"""Linear algebra without language models: operators, their products and their singular value decompositions."""
