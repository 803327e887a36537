"""Many prompts: studies of them, and what a study says as a whole."""
