"""Deltas for others: a model card made of the file, and the way to the Hugging Face Hub."""
