"""Every strength at once, and the choice of one."""
