"""Files of any kind: read safely, written whole or not at all; zips, arrays and logits in them."""
