"""A small world of states and actions, in which the best policy and every policy's worth are known exactly."""
