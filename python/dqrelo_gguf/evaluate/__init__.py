"""What a delta keeps of its fine-tune: on text, and on problems with checkable answers."""
