"""Methods that regress on differences of rewards, or play against an opponent."""
