"""What is loaded: a language model, its tokenizer, its weights. The only folder that imports transformers."""
