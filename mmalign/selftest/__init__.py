"""What anybody can ask of an installation: does it work here, and is a run that is killed and resumed the run that was left alone."""
