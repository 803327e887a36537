"""Studies: many prompts, many models, many machines."""
