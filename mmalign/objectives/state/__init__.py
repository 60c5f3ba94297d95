"""Numbers that a method keeps from update to update, and that every checkpoint holds."""
