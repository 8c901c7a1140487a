"""What a base and a fine-tune are, and which weight belongs to which."""
