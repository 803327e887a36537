"""Models as they are loaded: weights, tokenizer, hooks. The only folder that imports transformers."""
