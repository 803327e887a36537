"""The analyses of a run: attribution, ablation, faithfulness, interpolation, screening, explanation and comparison."""
