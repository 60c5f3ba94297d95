"""Reward models as policies: what reads an output (a reader), what makes numbers of what was read (a head), and the policy of both."""
