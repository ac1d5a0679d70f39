"""Where counts and labelled images come from: one function a source."""
