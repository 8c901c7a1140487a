"""What each weight's error does to the answers, measured by forward passes of the fine-tune."""
