"""Published benchmarks of rewards over local files: one file each, a function from the files' paths to a `RewardSuite`."""
