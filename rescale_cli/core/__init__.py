"""What the field speaks of: a head, the counts of its classes, a post-hoc method, predictions."""
