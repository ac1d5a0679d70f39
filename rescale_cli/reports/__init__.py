"""Every result as JSON and as a table for people."""
