"""What published reward models look like, and their weights."""
