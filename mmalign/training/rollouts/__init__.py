"""Rollouts of an online run, and what is said of them: prompts, rewards, and the gradients of rewards."""
