"""From base and fine-tune to a delta, and back."""
