"""From feedback to signals: rewards as advantages, returns and comparisons; nothing here sees a policy."""
