"""What can be asked of a run: attribution, ablation, faithfulness, interpolation, screening, comparison."""
